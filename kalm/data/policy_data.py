"""The data module of every policy algorithm: minibatches of real and imagined transitions, and evaluation episodes.

Shape letters: K updates of one training step, S policies side by side, B transitions of an update, I distinct
instructions, E numbers in an embedding, T steps of a window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.utils.data import DataLoader
from torchrl.data import ReplayBufferEnsemble

from kalm.core import names
from kalm.core.errors import CheckpointError, DataError
from kalm.core.rollout import Rollout
from kalm.data.choice import check_verdict_weights, weighed_by_verdicts
from kalm.data.evaluation_episodes import DEFAULT_EPISODES, EvaluationEpisodes
from kalm.data.minibatches import PARAPHRASE_STREAM, SYMMETRY_STREAM, Minibatches, Part, Updates, goal_split_parts
from kalm.data.paraphrases import Paraphrases
from kalm.data.rollout_data import RolloutData
from kalm.data.rollout_sources import ImaginedRollouts, RealRollouts
from kalm.data.selection import Selection
from kalm.data.statistics import transition_moments
from kalm.data.symmetry import SymmetricTexts, SymmetricTransitions, SymmetryKind
from kalm.data.training_data import require_least
from kalm.envs.base import Domain
from kalm.envs.simulation import Episode
from kalm.language.encoder import SentenceEncoder
from kalm.store.layout import Key

_SENTENCES_AT_ONCE = 1024  # whose tokens' vectors lie in memory as the encoder makes them


class PolicyData(RolloutData):
    """Real rollouts, imagined rollouts that passed a filter, and the episodes to be judged on.

    Attributes:
        seed: Decides which transitions each update gets.
        num_seeds: Policies that are trained side by side, S; set by the policy. Each gets the minibatches of its own
            seed, ``seed``, ``seed + 1`` and so on.
    """

    # How sentences are read is the policy's: its checkpoint refuses another spec.
    undecided = frozenset({"updates_per_step", "evaluation", "num_goal_tokens"})
    reading_verbs = frozenset({"fit"})

    def __init__(
        self,
        domain: Domain,
        encoder: SentenceEncoder,
        real: RealRollouts,
        imagined: ImaginedRollouts | None = None,
        balance_goal_splits: bool = False,
        goal_split_weights: dict[str, float] | None = None,
        verdict_weights: dict[str, float] | None = None,
        symmetry: SymmetryKind = SymmetryKind.none,
        paraphrase: bool = False,
        num_goal_tokens: int = 0,
        batch_size: int = 100,
        sequence_length: int = 1,
        updates_per_step: int = 20,
        evaluation: EvaluationEpisodes = DEFAULT_EPISODES,
        seed: int = 0,
    ) -> None:
        """Describe the data; nothing is read yet.

        Args:
            domain: The world that the rollouts come from and the policy is judged in.
            encoder: Turns instructions into goal embeddings (paper: BERT).
            real: The real rollouts.
            imagined: The imagined rollouts; null trains on real rollouts only (the baseline).
            balance_goal_splits: Whether the imagined rows are shared out evenly among the goal splits that were
                imagined, rather than by how many transitions of each are left (paper).
            goal_split_weights: How many imagined rows a goal split gets in proportion to the others, where they are
                balanced; 1 for a split that is not named, null for all.
            verdict_weights: How much imagined rollouts count that are ``implausible`` (a flag marks one of their
                transitions) or ``missed`` (their goal was not met), where others count 1; one that is both counts the
                product. Instead of a filter, so use ``imagined.filter: none``; null weighs all alike.
            symmetry: Under which of the domain's symmetries every row is shown, a random one each time, in
                observation, action and sentence alike, as long as the stores have the sentence too; stand-ins bring
                sentences of their own (paper: none).
            paraphrase: Whether a row's sentence is, half of the time, another of the domain's for the same goal (paper:
                no). That knows which sentences mean the same, and nothing of the rule by which a goal is met.
            num_goal_tokens: Tokens of an instruction that the policy reads one by one, at most; its networks are then
                those of ``kalm/rl/networks/token_network.py``. 0 gives it one vector of the whole sentence (paper).
            batch_size: Transitions of one update, or windows, B (paper: 100 for BC, 32 for CQL).
            sequence_length: 1 for transitions; above, an update gets windows of so many steps of a rollout, T, for
                a policy that reads a history; rollouts are then equally likely, rather than transitions.
            updates_per_step: Updates that one training step performs on as many minibatches, K; how often data is
                handed over, not what is learned: update u gets the same transitions for every K.
            evaluation: The episodes to judge a policy on.
            seed: Decides which transitions each update gets.

        Raises:
            DataError: If a number is out of range or a split is unknown.
        """
        super().__init__(locals())
        self.evaluation = evaluation
        self._paraphrase, self._has_stand_ins = paraphrase, symmetry is SymmetryKind.stand_ins
        if paraphrase and self._has_stand_ins:
            raise DataError("paraphrase is true and symmetry is stand_ins, which has no paraphrases; change either")
        self._balance_goal_splits, self._verdict_weights = balance_goal_splits, dict(verdict_weights or {})
        self._goal_split_weights = _checked_weights(domain, dict(goal_split_weights or {}), balance_goal_splits)
        self.batch_size, self.updates_per_step, self.sequence_length = batch_size, updates_per_step, sequence_length
        self.seed, self.num_seeds = seed, 1
        require_least(batch_size=(batch_size, 1), sequence_length=(sequence_length, 1))
        require_least(updates_per_step=(updates_per_step, 1), num_goal_tokens=(num_goal_tokens, 0))
        if num_goal_tokens:
            self.spec = self.domain.spec.with_goals(num_goal_tokens * encoder.embedding_size, num_goal_tokens)
        evaluation.check(domain)
        self._num_imagined_rows = 0
        if imagined:
            check_verdict_weights(self._verdict_weights, imagined.filter)
            self._num_imagined_rows = imagined.num_rows(batch_size, "batch_size")

    def setup(self, stage: str) -> None:
        """Open the stores for training, so that what is wrong with them shows at once; evaluation needs none."""
        if stage == "fit":
            _ = self._minibatches

    @cached_property
    def imagination(self) -> Selection:
        """The imagined rollouts that are learned from, with their weights; none where none were asked for."""
        return weighed_by_verdicts(super().imagination, self._verdict_weights)

    @property
    def observation_mean(self) -> Tensor:
        """Of real rollouts, float32 of shape (O,); of numbers that vary in imagination alone, of all rollouts.

        Such are those of things that no recorded scene has.
        """
        return self._observation_statistics[0]

    @property
    def observation_std(self) -> Tensor:
        """Standard deviation of the same, float32 of shape (O,); 1 where a number never changes."""
        return self._observation_statistics[1]

    @cached_property
    def selection(self) -> Selection:
        """All rollouts that are learned from."""
        return self.training.joined_with(self.imagination)

    @property
    def buffer(self) -> ReplayBufferEnsemble:
        """TorchRL's buffers of row numbers: the real rollouts', then those of the imagined ones."""
        return self._minibatches.buffer

    @cached_property
    def _observation_statistics(self) -> tuple[Tensor, Tensor]:
        mean, std = super().observation_mean, super().observation_std
        is_constant = self.moments[0].spread[self._statistics_of[0]] == 0
        if not (is_constant.any() and len(self.imagination)):
            return mean, std
        of_all, _, _ = transition_moments(self.selection)
        return torch.where(is_constant, of_all.mean, mean), torch.where(is_constant, of_all.std, std)

    def first_rollout(self, goal_split: str) -> Rollout | None:
        """The first rollout in use of a split, a real one where there is any; None where there is no rollout."""
        of_split = self.selection.of_goal_split(goal_split)
        return of_split.rollout(0) if len(of_split) else None

    @cached_property
    def instructions(self) -> list[str]:
        """The distinct sentences of all stores, then those of stand-ins or paraphrases; ``instruction_id`` counts."""
        return self._paraphrases.sentences if self._paraphrases else self._told

    @cached_property
    def goal_embeddings(self) -> Tensor:
        """What ``embed`` makes of each of ``instructions``, shape (I, E)."""
        return self.embed(self.instructions)

    def embed(self, sentences: Sequence[str]) -> Tensor:
        """What a policy is given of sentences, shape (n, E): float32 vectors of each, or float16 ones of its tokens.

        Raises:
            DataError: If one has more than ``num_goal_tokens`` tokens.
        """
        if not self.spec.num_goal_tokens:
            return self.encoder.encode(sentences)
        # Half the numbers' length is half the memory, which thousands of sentences make worthwhile.
        table = torch.zeros(len(sentences), self.spec.goal_embedding_size, dtype=torch.float16)
        for start in range(0, len(sentences), _SENTENCES_AT_ONCE):
            some = sentences[start : start + _SENTENCES_AT_ONCE]
            vectors, is_token = self.encoder.token_vectors(some)
            if vectors.shape[1] > self.spec.num_goal_tokens:
                longest = some[int(is_token.sum(1).argmax())]
                raise DataError(
                    f"num_goal_tokens is {self.spec.num_goal_tokens}, but {longest!r} has {vectors.shape[1]} tokens; "
                    "set num_goal_tokens to as many or more"
                )
            table[start : start + len(some), : vectors[0].numel()] = vectors.flatten(1)
        return table

    def batch(self, index: int) -> TensorDict:
        """The minibatches of training step ``index``: updates K * index to K * (index + 1) - 1.

        Args:
            index: Training step, counted from 0.

        Returns:
            Transitions with the keys of ``kalm.core.names``, shape (K, B), or (K, S, B) for several seeds; the real
            ones come first in each row.
            ``instruction_id`` is a row of ``goal_embeddings``; ``rollout_id`` is unique over all stores. There is a
            ``weight`` if ``verdict_weights`` were given. Windows have one more dimension at the end, T, and have
            ``return_to_go`` and ``padding_mask``.
        """
        if self.num_seeds == 1:
            return self._batch_of_seed(index, self.seed)
        return torch.stack([self._batch_of_seed(index, self.seed + number) for number in range(self.num_seeds)], dim=1)

    def _batch_of_seed(self, index: int, seed: int) -> TensorDict:
        updates = Updates(seed, index * self.updates_per_step, self.updates_per_step)
        rows, padding_mask = self._minibatches.draw(updates)
        columns: dict[Any, Tensor] = dict(zip(self._keys, self.selection.read(self._keys, rows.flatten()), strict=True))

        def words(stream: int) -> Tensor:  # the same for all steps of a window
            return updates.numbers(stream, self.batch_size).flatten().repeat_interleave(self.sequence_length)

        if self._shown is not None:
            columns = self._shown(columns, words(SYMMETRY_STREAM))
        if self._paraphrases is not None:
            shown = self._paraphrases(columns[names.INSTRUCTION_ID], words(PARAPHRASE_STREAM))
            columns[names.INSTRUCTION_ID] = shown
        batch = TensorDict({key: column.unflatten(0, rows.shape) for key, column in columns.items()}, rows.shape)
        if padding_mask is not None:
            batch[names.PADDING_MASK] = padding_mask
        return batch

    def val_dataloader(self) -> DataLoader[list[Episode]]:
        """Lists of validation episodes."""
        return self.evaluation.validation_loader(self.domain)

    def test_dataloader(self) -> DataLoader[list[Episode]]:
        """Lists of test episodes."""
        return self.evaluation.test_loader(self.domain)

    def _first_batch(self) -> int:
        num_updates = self.trainer.global_step if self.trainer is not None else 0
        step, rest = divmod(num_updates, self.updates_per_step)
        if rest:
            raise CheckpointError(
                f"the run stands at update {num_updates}, which is no multiple of updates_per_step "
                f"{self.updates_per_step}; resume with the updates_per_step it was trained with, or a divisor"
            )
        return step

    @cached_property
    def _keys(self) -> list[Key]:
        more: list[Key] = [names.WEIGHT] if self._verdict_weights else []
        more += [names.RETURN_TO_GO] if self.sequence_length > 1 else []
        return [*self.store.keys, *more]

    @cached_property
    def _minibatches(self) -> Minibatches:
        parts = [Part(self.training, self.batch_size - self._num_imagined_rows)]
        if self.imagined and self._balance_goal_splits:
            parts += goal_split_parts(
                self.imagination, self._num_imagined_rows, self.domain.goal_splits, self._goal_split_weights
            )
        elif self.imagined:
            parts.append(Part(self.imagination, self._num_imagined_rows))
        return Minibatches(parts, self.sequence_length)

    @cached_property
    def _shown(self) -> SymmetricTransitions | None:
        return SymmetricTransitions(self._told, self.symmetries) if self.symmetries else None

    @cached_property
    def _told(self) -> list[str]:
        """The distinct sentences of all stores, and what they become with stand-ins."""
        stored = self._stored.line.instructions
        return SymmetricTexts(stored, self.symmetries).distinct if self._has_stand_ins else stored

    @cached_property
    def _paraphrases(self) -> Paraphrases | None:
        sentences = self._stored.line.instructions
        return Paraphrases(self.domain, self.stores, sentences) if self._paraphrase else None


def _checked_weights(domain: Domain, weights: dict[str, float], balance_goal_splits: bool) -> dict[str, float]:
    """The weights of goal splits, if they mean something."""
    if weights and not balance_goal_splits:
        raise DataError("goal_split_weights are given, which nothing reads; set balance_goal_splits to true")
    domain.check_goal_splits(list(weights) or None)
    wrong = {split: weight for split, weight in weights.items() if not 0 < weight < math.inf}
    if wrong:
        raise DataError(f"goal_split_weights has {wrong}; a weight is a number above 0")
    return weights
