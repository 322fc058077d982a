"""Sentences that are kept for the test reach nothing that learns, imagines, labels or validates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from kalm.core.errors import DataError
from kalm.core.goal import InstructedGoal
from kalm.data.evaluation_episodes import EvaluationEpisodes
from kalm.data.goal_data import GoalData
from kalm.data.grounding_data import GroundingData
from kalm.data.policy_data import PolicyData
from kalm.data.rollout_sources import ImaginedRollouts, RealRollouts
from kalm.llm.imagination.rollout_engine import sentences_of_goals
from kalm.store.collect import open_domain_store
from kalm.store.labelling import distinct_goals
from tests.chain_domain import ChainDomain
from tests.data.rollouts import imagined_rollouts, real_rollouts, write_store
from tests.data.test_goal_data import write_goals
from tests.word_encoder import WordEncoder

KEPT = "kept for the test"


class UnseenChain(ChainDomain):
    """The chain, which is also asked for its easy goals in words that are kept for the test."""

    goal_splits: ClassVar[tuple[str, ...]] = (*ChainDomain.goal_splits, "easy_unseen")
    unseen_splits: ClassVar[dict[str, str]] = {"easy_unseen": "easy"}

    def instructed_goals(self, goal_split: str) -> list[InstructedGoal]:
        """The chain's, and those of easy goals backwards."""
        if goal_split != "easy_unseen":
            return super().instructed_goals(goal_split)
        return [InstructedGoal(row.goal, row.instruction[::-1], goal_split) for row in self.instructed_goals("easy")]


DOMAIN = UnseenChain()
UNSEEN = {row.instruction for row in DOMAIN.instructed_goals("easy_unseen")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a real store and an imagined one."""
    write_store(tmp_path / "real", real_rollouts(60))
    write_store(tmp_path / "easy", imagined_rollouts(40, "easy"))
    return tmp_path


def policy_data(folder: Path, **evaluation: Any) -> PolicyData:
    """Of both stores."""
    imagined = ImaginedRollouts([str(folder / "easy")])
    episodes = EvaluationEpisodes(6, 9, **evaluation)
    real = RealRollouts(str(folder / "real"))
    return PolicyData(DOMAIN, WordEncoder(), real, imagined, batch_size=8, evaluation=episodes)


def splits(loader: Any) -> Iterator[str]:
    """Of the episodes of a loader, each once, in order."""
    yield from dict.fromkeys(episode.instructed.goal_split for episode in (one for batch in loader for one in batch))


def test_the_test_tries_them_and_validation_does_not(folder: Path) -> None:
    """By default, and where the splits to test are named."""
    data = policy_data(folder)
    assert list(splits(data.val_dataloader())) == ["train", "rephrase", "easy", "hard"]
    assert list(splits(data.test_dataloader())) == ["train", "rephrase", "easy", "hard", "easy_unseen"]
    data = policy_data(folder, goal_splits=["easy_unseen", "easy"])
    assert list(splits(data.val_dataloader())) == ["easy"]
    assert list(splits(data.test_dataloader())) == ["easy_unseen", "easy"]


def test_validation_on_them_is_refused(folder: Path) -> None:
    """Asked for by name, or as all that is tested."""
    with pytest.raises(DataError, match=f"'easy_unseen' are {KEPT}; before it only train, rephrase, easy, hard"):
        policy_data(folder, validation_splits=["train", "easy_unseen"])
    data = policy_data(folder, goal_splits=["easy_unseen"])
    assert list(splits(data.test_dataloader())) == ["easy_unseen"]
    with pytest.raises(DataError, match="goal_splits: none named"):
        data.val_dataloader()


def test_they_are_not_imagined(folder: Path) -> None:
    """Neither as a split nor out of a file under another split's name, nor as links of a chain."""
    common: Any = {"domain": DOMAIN, "encoder": WordEncoder(), "real": RealRollouts(str(folder / "real"))}
    with pytest.raises(DataError, match=KEPT):
        GoalData(**common, num_rollouts={"easy": 4, "easy_unseen": 4})
    goals = write_goals(folder / "goals.jsonl", "mine", sorted(UNSEEN)[0].upper(), goal_split="easy")
    with pytest.raises(DataError, match=f"asks to imagine what only a test may show.*\n.*{KEPT}"):
        _ = GoalData(**common, num_rollouts={"easy": 4}, goals_file=goals).all_shards
    imagined = GoalData(**common, num_rollouts=dict.fromkeys(DOMAIN.learning_splits, 30)).all_shards
    told = {item.instructed.instruction for shard in imagined for item in shard.items}
    links = {row.instruction for rows in sentences_of_goals(DOMAIN).values() for row in rows}
    assert len(told) == 15, "every sentence of the chain's"
    assert links == told - {row.instruction for row in DOMAIN.instructed_goals("rephrase")}, "of the first split"
    assert not UNSEEN & (told | {DOMAIN.instruction_for(row.goal) for row in DOMAIN.instructed_goals("easy_unseen")})


def test_grounding_does_not_validate_on_them(folder: Path) -> None:
    """What it imagines in validation, and what it may be told to."""
    common: Any = {"num_held_out": 5, "num_imagined": 8, "real": RealRollouts(str(folder / "real"))}
    batches = [batch for loader in GroundingData(DOMAIN, WordEncoder(), **common).val_dataloader() for batch in loader]
    imagined = [item.instructed for batch in batches for item in batch.items]
    assert {row.goal_split for row in imagined} == set(DOMAIN.learning_splits)
    assert not UNSEEN & {row.instruction for row in imagined}
    with pytest.raises(DataError, match=KEPT):
        GroundingData(DOMAIN, WordEncoder(), **common, goal_splits=["easy_unseen"])


def test_labels_are_not_asked_about_them() -> None:
    """A goal is named by a sentence of a split for learning."""
    assert {row.instruction for row in distinct_goals(DOMAIN, "easy")} <= {
        row.instruction for row in DOMAIN.instructed_goals("easy")
    }
    with pytest.raises(DataError, match=KEPT):
        distinct_goals(DOMAIN, "easy_unseen")


@pytest.mark.parametrize("goal_split", ["easy_unseen", "easy"])
def test_a_store_that_tells_them_is_refused(tmp_path: Path, goal_split: str) -> None:
    """By the sentence, whatever its split is called; every reader of rollouts comes through this door."""
    (instructed, *_) = DOMAIN.instructed_goals("easy_unseen")
    told = InstructedGoal(instructed.goal, instructed.instruction, goal_split)
    rollouts = [DOMAIN.label_rollout(told, r.observations, r.actions, r.source) for r in real_rollouts(3)]
    write_store(tmp_path / "own", rollouts)
    with pytest.raises(DataError, match=f"tells what only a test may show.*\n.*of the split '{goal_split}' is {KEPT}"):
        open_domain_store(DOMAIN, str(tmp_path / "own"))
    assert open_domain_store(ChainDomain(), str(tmp_path / "own")).num_rollouts == 3
