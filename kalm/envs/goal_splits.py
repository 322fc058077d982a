"""The named splits of a world's goals: in which order tables have them, what they share, and who may look at which."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import ClassVar

from kalm.core.errors import DataError
from kalm.core.goal import InstructedGoal


class GoalSplits(ABC):
    """What a domain says of its goal splits.

    Attributes:
        goal_splits: Names of the splits that policies are evaluated on, in the order of tables. The first is the one
            that real rollouts are collected for; how new the others are to a learner is the domain's to say.
        sentences_from: Splits that have the sentences of another one, which they differ from in something else, such
            as the place: that other one, by name. No two others share a sentence.
        unseen_splits: Splits that have the goals of another one in sentences that are kept for the test: that other
            one, by name. Nothing imagines, labels, trains or validates on them, see ``learning_splits``.
    """

    goal_splits: ClassVar[tuple[str, ...]] = ("train",)
    sentences_from: ClassVar[Mapping[str, str]] = {}
    unseen_splits: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def instructed_goals(self, goal_split: str) -> list[InstructedGoal]:
        """Every built-in instruction of a split, always in the same order."""

    @property
    def training_split(self) -> str:
        """The split that real rollouts are collected for."""
        return self.goal_splits[0]

    @property
    def told_splits(self) -> tuple[str, ...]:
        """The splits whose sentences are told in training."""
        first = self.training_split
        return tuple(split for split in self.goal_splits if self.sentences_from.get(split, split) == first)

    @property
    def learning_splits(self) -> tuple[str, ...]:
        """The splits that whatever comes before the test may look at: all but those of unseen sentences."""
        return tuple(split for split in self.goal_splits if split not in self.unseen_splits)

    def check_goal_splits(self, goal_splits: Sequence[str] | None) -> list[str]:
        """Names of splits that this domain has; all of them for None.

        Raises:
            DataError: If a name is unknown or none is given; the message lists the known ones.
        """
        chosen = list(self.goal_splits if goal_splits is None else goal_splits)
        unknown = [split for split in chosen if split not in self.goal_splits]
        if unknown or not chosen:
            raise DataError(
                f"goal_splits: {', '.join(map(repr, unknown)) or 'none named'}; the splits are "
                f"{', '.join(self.goal_splits)}"
            )
        return chosen

    def check_learning_splits(self, goal_splits: Sequence[str] | None) -> list[str]:
        """Names of splits that may be looked at before the test; all of those for None.

        Raises:
            DataError: If a name is unknown or none is given, or if the sentences of a split are kept for the test.
        """
        chosen = self.check_goal_splits(self.learning_splits if goal_splits is None else goal_splits)
        if kept := [split for split in chosen if split in self.unseen_splits]:
            raise DataError(
                f"goal_splits: the sentences of {', '.join(map(repr, kept))} are kept for the test; before it only "
                f"{', '.join(self.learning_splits)} may be imagined, labelled, trained or validated on"
            )
        return chosen

    def kept_for_the_test(self, told: Iterable[tuple[str, str]]) -> list[str]:
        """Which of these sentences, each with its split, only a test may show, as problems to raise."""
        return [
            f"{sentence!r} of the split {split!r} is kept for the test"
            for sentence, split in told
            if split in self.unseen_splits or sentence.casefold() in self._unseen_sentences
        ]

    @cached_property
    def _unseen_sentences(self) -> frozenset[str]:
        rows = (row for split in self.unseen_splits for row in self.instructed_goals(split))
        return frozenset(row.instruction.casefold() for row in rows)
