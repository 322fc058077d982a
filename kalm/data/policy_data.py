"""The data module of every policy algorithm: minibatches of real and imagined transitions, and evaluation episodes.

Shape letters: K updates of one training step, S policies side by side, B transitions of an update, I distinct
instructions, E numbers in an embedding, O numbers in an observation, T steps of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from tensordict import TensorDict
from torch import Tensor
from torch.utils.data import DataLoader
from torchrl.data import ReplayBufferEnsemble

from kalm.core import names
from kalm.core.changes import changes
from kalm.core.errors import CheckpointError, DataError
from kalm.core.names import TaskSpec
from kalm.core.rollout import Rollout
from kalm.data.episode_lists import EvaluationSeed, episode_loader
from kalm.data.filters import RolloutFilter, select_imagined_rollouts, select_rollouts
from kalm.data.goal_split_parts import goal_split_parts
from kalm.data.index_batches import IndexedBatches
from kalm.data.lined_up import LinedUpStores
from kalm.data.mixture import MixturePart, mixture_buffer
from kalm.data.moments import Moments
from kalm.data.symmetry import RelabelledTransitions
from kalm.data.task_spec import task_spec
from kalm.data.top_returns import top_return_rollouts
from kalm.data.transition_moments import transition_moments
from kalm.data.verdict_weights import check_verdict_weights, rollout_weights
from kalm.data.windows import RolloutStatistics, rollout_statistics
from kalm.envs.base import Domain
from kalm.envs.simulation import Episode
from kalm.language.encoder import SentenceEncoder
from kalm.store.domain_store import collect_if_absent, open_domain_store
from kalm.store.layout import Key, transition_columns
from kalm.store.reader import RolloutStore

_RELABELLING_STREAM = 255  # of the sampler's random words; far from those of the mixture's parts


class PolicyData(LightningDataModule):
    """Real rollouts, imagined rollouts that passed a filter, and the episodes to be judged on.

    Attributes:
        spec: Sizes for the policy; known before any data is read.
        domain: The world.
        encoder: The frozen sentence encoder.
        seed: Decides which transitions each update gets.
        num_seeds: Policies that are trained side by side, S; set by the policy. Each gets the minibatches of its own
            seed, ``seed``, ``seed + 1`` and so on.
    """

    def __init__(
        self,
        domain: Domain,
        encoder: SentenceEncoder,
        real: str,
        imagined: Sequence[str] = (),
        filter: RolloutFilter = RolloutFilter.both,
        imagined_fraction: float = 0.5,
        balance_goal_splits: bool = False,
        relabel: bool = False,
        verdict_weights: dict[str, float] | None = None,
        top_return_fraction: float = 1.0,
        imagined_top_return_fraction: float | None = None,
        return_discount: float = 1.0,
        max_real_rollouts: int | None = 6400,
        num_collected_rollouts: int = 10000,
        collect_seed: int = 0,
        batch_size: int = 100,
        sequence_length: int = 1,
        updates_per_step: int = 20,
        num_validation_episodes: int = 40,
        num_test_episodes: int = 200,
        goal_splits: Sequence[str] | None = None,
        goals_file: str | None = None,
        seed: int = 0,
    ) -> None:
        """Describe the data; nothing is read yet.

        Args:
            domain: The world that the rollouts come from and the policy is judged in.
            encoder: Turns instructions into goal embeddings (paper: BERT).
            real: Folder of the store of real rollouts; collected there when absent.
            imagined: Folders of stores of imagined rollouts; none trains on real rollouts only (the baseline).
            filter: What an imagined rollout must be to be used: none (paper), plausible, success or both.
            imagined_fraction: Part of every minibatch that is imagined, in (0, 1], to the nearest row (paper: 0.5).
            balance_goal_splits: Whether the imagined rows are shared out evenly among the goal splits that were
                imagined, rather than by how many transitions of each are left (paper).
            relabel: Whether every row is shown under a random one of the domain's relabellings, such as the colours of
                equal balls exchanged, in observation, action and sentence alike, as long as the stores have the
                sentence too (paper: no). Sentences must name what is exchanged.
            verdict_weights: How much imagined rollouts count that are ``implausible`` (a flag marks one of their
                transitions) or ``missed`` (their goal was not met), where others count 1; one that is both counts the
                product. Instead of a filter, so use ``filter: none``; null weighs all alike.
            top_return_fraction: Share of the rollouts of each source and goal split to use, those of the highest
                return, in (0, 1]; it is taken of what the filter and ``max_real_rollouts`` leave. With BC it makes
                filtered BC.
            imagined_top_return_fraction: The same for imagined rollouts where it should be another; null takes
                ``top_return_fraction``.
            return_discount: Worth of a reward one step later in that return, in [0, 1]; 1 adds all rewards up. Below,
                of two rollouts that meet their goal the shorter one has the higher return.
            max_real_rollouts: Use the first so many real rollouts; null uses all (paper: 6400 on CLEVR-Robot).
            num_collected_rollouts: Real rollouts to collect when ``real`` is absent.
            collect_seed: Seed of that collection.
            batch_size: Transitions of one update, or windows, B (paper: 100 for BC, 32 for CQL).
            sequence_length: 1 for transitions; above, an update gets windows of so many steps of a rollout, T, for
                a policy that reads a history; rollouts are then equally likely, rather than transitions.
            updates_per_step: Updates that one training step performs on as many minibatches, K; how often data is
                handed over, not what is learned: update u gets the same transitions for every K.
            num_validation_episodes: Episodes a split in validation.
            num_test_episodes: Episodes a split in test.
            goal_splits: Splits to evaluate on; null takes all of the domain's.
            goals_file: JSON lines of your own goals to evaluate on, in place of the domain's.
            seed: Decides which transitions each update gets.

        Raises:
            DataError: If a number is out of range or a split is unknown.
        """
        super().__init__()
        self.domain, self.encoder = domain, encoder
        self.spec: TaskSpec = task_spec(domain, encoder)
        self._real, self._imagined, self._filter = real, list(imagined), filter
        self._verdict_weights = dict(verdict_weights or {})
        self._balance_goal_splits, self._relabel = balance_goal_splits, relabel
        imagined_fraction_kept = (
            top_return_fraction if imagined_top_return_fraction is None else imagined_top_return_fraction
        )
        self._top_return_fractions = (top_return_fraction, imagined_fraction_kept)
        self._return_discount = return_discount
        self._max_real_rollouts = max_real_rollouts
        self._num_collected_rollouts, self._collect_seed = num_collected_rollouts, collect_seed
        self.batch_size, self.updates_per_step = batch_size, updates_per_step
        self.sequence_length = sequence_length
        self._num_validation_episodes, self._num_test_episodes = num_validation_episodes, num_test_episodes
        self._goal_splits, self._goals_file, self.seed = domain.check_goal_splits(goal_splits), goals_file, seed
        self.num_seeds = 1
        sizes = {"batch_size": batch_size, "sequence_length": sequence_length, "updates_per_step": updates_per_step}
        for name, value in sizes.items():
            if value < 1:
                raise DataError(f"{name} is {value}; it must be 1 or more")
        check_verdict_weights(self._verdict_weights, filter)
        if not (all(0 < fraction <= 1 for fraction in self._top_return_fractions) and 0 <= return_discount <= 1):
            raise DataError(
                f"top_return_fraction is {top_return_fraction}, imagined_top_return_fraction is "
                f"{imagined_top_return_fraction} and return_discount is {return_discount}; the first two must be in "
                "(0, 1], the last in [0, 1]"
            )
        if seed < 0:
            raise DataError(f"seed is {seed}; it must be 0 or more")
        if relabel and not domain.symmetries:
            raise DataError(f"relabel is true, but the domain {domain.name} has no relabellings; set it to false")
        self._num_imagined_rows = round(batch_size * imagined_fraction) if self._imagined else 0
        if self._imagined and not 0 < self._num_imagined_rows <= batch_size:
            raise DataError(
                f"imagined_fraction {imagined_fraction} of batch_size {batch_size} makes {self._num_imagined_rows} "
                f"imagined rows; it must make 1 to {batch_size}. To train on real rollouts only, leave imagined empty"
            )

    def prepare_data(self) -> None:
        """Collect the real store when it is absent and training needs it; refuse what imagined data lacks before."""
        trainer = self.trainer
        if trainer is not None and trainer.state.fn is not None and trainer.state.fn != "fit":
            return
        for path in self._imagined:
            open_domain_store(self.domain, path)
        collect_if_absent(self.domain, self._real, self._num_collected_rollouts, self._collect_seed)

    def setup(self, stage: str) -> None:
        """Open the stores for training, so that what is wrong with them shows at once; evaluation needs none."""
        if stage == "fit":
            _ = self.buffer

    @cached_property
    def stores(self) -> list[RolloutStore]:
        """The real store, then the imagined ones."""
        return [open_domain_store(self.domain, path) for path in (self._real, *self._imagined)]

    def state_dict(self) -> dict[str, Any]:
        """What decides, with seed and update, which transitions an update gets; Lightning puts it into checkpoints."""
        real, *imagined = [store.fingerprint[:12] for store in self.stores]
        return {
            **{"real": real, "imagined": imagined, "filter": self._filter.name},
            **{"batch_size": self.batch_size, "imagined_rows": self._num_imagined_rows},
            **{"max_real_rollouts": self._max_real_rollouts, "sequence_length": self.sequence_length},
            **{"top_return_fractions": list(self._top_return_fractions), "return_discount": self._return_discount},
            **{"verdict_weights": self._verdict_weights, "balance_goal_splits": self._balance_goal_splits},
            "relabel": self._relabel,
            "num_devices": self.trainer.world_size if self.trainer is not None else 1,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on training with other data than those of the checkpoint; evaluation does not mind."""
        is_resumed = self.trainer is not None and self.trainer.state.fn == "fit"
        changed = changes(state_dict, self.state_dict()) if is_resumed else []
        if changed:
            raise CheckpointError(
                f"the run cannot go on with other data than it began with: {'; '.join(changed)}. Set those back, or "
                "start afresh under another --experiment"
            )

    @cached_property
    def buffer(self) -> ReplayBufferEnsemble:
        """The stores joined, each restricted to the rollouts in use; member 0 is the real one.

        The imagined stores follow, once for all goal splits or once for each.
        """
        real, *imagined = self.stores
        parts = [MixturePart([real], [self._real_rollouts], self.batch_size - self._num_imagined_rows)]
        if imagined and self._balance_goal_splits:
            parts += goal_split_parts(
                imagined, self._imagined_rollouts, self._num_imagined_rows, self.domain.goal_splits
            )
        elif imagined:
            parts.append(MixturePart(imagined, self._imagined_rollouts, self._num_imagined_rows))
        rank = self.trainer.global_rank if self.trainer is not None else 0
        return mixture_buffer(parts, self.seed, rank, self.sequence_length)

    def first_rollout(self, goal_split: str) -> Rollout | None:
        """The first rollout in use of a split, a real one where there is any; None where there is no rollout."""
        for store, rows in zip(self.stores, [self._real_rollouts, *self._imagined_rollouts], strict=True):
            of_split = rows[torch.from_numpy(store.goal_splits[rows.numpy()] == goal_split)]
            if len(of_split):
                return store.rollout(int(of_split[0]))
        return None

    @cached_property
    def instructions(self) -> list[str]:
        """The distinct sentences of all stores; ``instruction_id`` counts them."""
        return self._lined_up.instructions

    @cached_property
    def goal_embeddings(self) -> Tensor:
        """Sentence embedding of each of ``instructions``, float32 of shape (I, E)."""
        return self.encoder.encode(self.instructions)

    @property
    def observation_mean(self) -> Tensor:
        """Mean of the real observations in use, float32 of shape (O,)."""
        return self._observation_moments.mean

    @property
    def observation_std(self) -> Tensor:
        """Their standard deviation, float32 of shape (O,); 1 where an entry never changes."""
        return self._observation_moments.std

    @property
    def rollout_statistics(self) -> RolloutStatistics:
        """What a policy of windows has to know of the rollouts in use."""
        return rollout_statistics(self.stores, [self._real_rollouts, *self._imagined_rollouts])

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
        window = (self.sequence_length,) if self.sequence_length > 1 else ()
        size = (self.updates_per_step, self.batch_size, *window)
        self.buffer.sampler.seed = seed
        self.buffer.sampler.next_update = index * self.updates_per_step
        words = self._relabelling_words() if self._relabelled is not None else None
        sample = self.buffer.sample(prod(size))
        member = sample["index", "buffer_ids"]
        store = torch.where(member > 0, (member - 1) % max(1, len(self._imagined)) + 1, member)
        columns = self._lined_up.numbered({key: sample[key] for key in self._keys}, store)
        if self._relabelled is not None and words is not None:
            columns = self._relabelled(columns, words)
        if self._verdict_weights:
            columns[names.WEIGHT] = self._rollout_weights[columns[names.ROLLOUT_ID]]
        if window:
            columns[names.RETURN_TO_GO] = self._lined_up.return_to_go(store, sample["index", "index"])
            columns[names.PADDING_MASK] = sample["index", "padding_mask"]
        return TensorDict({key: column.unflatten(0, size) for key, column in columns.items()}, batch_size=size)

    def _relabelling_words(self) -> Tensor:
        """Random numbers for every transition of a training step, (K * B * T,); the steps of a window share theirs."""
        words = self.buffer.sampler.random_words(_RELABELLING_STREAM, self.updates_per_step, self.batch_size)
        return (
            torch.from_numpy((words >> np.uint64(1)).astype(np.int64)).flatten().repeat_interleave(self.sequence_length)
        )

    def train_dataloader(self) -> DataLoader[TensorDict]:
        """Training steps' minibatches without end, going on where the trainer's update counter stands."""
        return IndexedBatches(self.batch, start=self._first_step).dataloader()

    def val_dataloader(self) -> DataLoader[list[Episode]]:
        """Lists of validation episodes, the same for every run."""
        return self._episodes(self._num_validation_episodes, EvaluationSeed.VALIDATION)

    def test_dataloader(self) -> DataLoader[list[Episode]]:
        """Lists of test episodes, the same for every run, none of them used in validation."""
        return self._episodes(self._num_test_episodes, EvaluationSeed.TEST)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move tensors; leave lists of episodes as they are, which Lightning would try to take apart."""
        return batch if isinstance(batch, list) else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def _first_step(self) -> int:
        num_updates = self.trainer.global_step if self.trainer is not None else 0
        step, rest = divmod(num_updates, self.updates_per_step)
        if rest:
            raise CheckpointError(
                f"the run stands at update {num_updates}, which is no multiple of updates_per_step "
                f"{self.updates_per_step}; resume with the updates_per_step it was trained with, or a divisor"
            )
        return step

    def _episodes(self, num_episodes: int, seed: EvaluationSeed) -> DataLoader[list[Episode]]:
        return episode_loader(self.domain, self._goal_splits, num_episodes, seed, self._goals_file)

    @cached_property
    def _keys(self) -> list[Key]:
        return list(transition_columns(self.stores[0].manifest))

    @cached_property
    def _real_rollouts(self) -> Tensor:
        real, rollouts = self.stores[0], select_rollouts(self.stores[0], RolloutFilter.none, self._max_real_rollouts)
        return top_return_rollouts([real], [rollouts], self._top_return_fractions[0], self._return_discount)[0]

    @cached_property
    def _imagined_rollouts(self) -> list[Tensor]:
        imagined = self.stores[1:]
        rollouts = select_imagined_rollouts(imagined, self._filter)
        return top_return_rollouts(imagined, rollouts, self._top_return_fractions[1], self._return_discount)

    @cached_property
    def _rollout_weights(self) -> Tensor:
        return rollout_weights(self.stores[0], self.stores[1:], self._verdict_weights)

    @cached_property
    def _lined_up(self) -> LinedUpStores:
        return LinedUpStores(self.stores)

    @cached_property
    def _relabelled(self) -> RelabelledTransitions | None:
        return RelabelledTransitions(self._lined_up.instructions, self.domain.symmetries) if self._relabel else None

    @cached_property
    def _observation_moments(self) -> Moments:
        return transition_moments(self.stores[0], self._real_rollouts)[0]
