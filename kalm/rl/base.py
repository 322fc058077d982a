"""What every offline-RL algorithm shares: stepping, target networks, normalisation, logging, evaluation.

A subclass holds only its paper: networks, ``losses`` and ``act``. The sum of its losses is minimised by one optimizer
with a parameter group a network; one ``training_step`` performs K updates on K stacked minibatches, because a training
step of Lightning costs as much as an update of a small network. ``global_step`` and ``max_steps`` count updates.

Shape letters: K updates a training step, B batch, O observation, E goal embedding, A action, I instructions.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from tensordict import TensorDictBase
from torch import Tensor, nn

from kalm.errors import CheckpointError, DataError, KalmError
from kalm.evaluation import Episode, EpisodeResult
from kalm.rl.finite import raise_non_finite
from kalm.rl.gradient_step import GradientStep
from kalm.rl.initialization import initialize
from kalm.rl.learning_rate import LearningRate, LearningRateSchedule, ScheduleKind
from kalm.rl.method_call import MethodCall
from kalm.rl.normalizer import Normalizer
from kalm.rl.policy_evaluation import EpisodePolicy, evaluate_policy
from kalm.rl.require import require
from kalm.rl.source_means import source_means
from kalm.rl.transition_batch import TransitionBatch, unstack
from kalm.rl.weight_average import WeightAverage
from kalm.types import PADDING_MASK, SOURCE, WEIGHT, Source, TaskSpec

if TYPE_CHECKING:
    from kalm.data.policy_data import PolicyData
    from kalm.envs.base import Domain

_Recorded = tuple[dict[str, Tensor], dict[str, Tensor]]  # losses, and measurements


class OfflineRLModule(LightningModule):
    """Base of the algorithms in ``kalm/rl``: copy ``bc.py`` to add one.

    Attributes:
        spec: Sizes of observation, action and goal embedding.
        noise_size: Random numbers that ``losses`` asks for a transition, or for a window.
        sequence_length: Transitions that ``losses`` reads as one row: 1, or the steps of a window of a rollout, T.
        episode_results: Results of the latest validation or test, for callbacks.
    """

    goal_embeddings: Tensor
    _source_weights: Tensor | None
    noise_size: int = 0
    sequence_length: int = 1

    def __init__(
        self,
        spec: TaskSpec,
        hidden_sizes: Sequence[int] = (256, 256),
        learning_rate: float = 3e-4,
        discount: float = 0.99,
        target_update_rate: float = 0.005,
        target_update_interval: int = 1,
        normalize_observation: bool = True,
        normalize_goal_embedding: bool = True,
        gradient_clip_norm: float | None = None,
        learning_rate_schedule: ScheduleKind = "constant",
        warmup_updates: int = 0,
        schedule_updates: int | None = None,
        ema_rate: float | None = None,
        source_weights: dict[str, float] | None = None,
        compile: bool = False,
        num_evaluation_envs: int = 64,
    ) -> None:
        """Check and keep the options that all algorithms share.

        Args:
            spec: Sizes of observation, action and goal embedding; the command line takes them from the data.
            hidden_sizes: Width of each hidden layer of every network (paper: 256, 256).
            learning_rate: Adam's step size for every network.
            discount: Worth of a reward one step later, in [0, 1] (paper: 0.99).
            target_update_rate: Part of a target network that is replaced at each of its updates, in (0, 1].
            target_update_interval: Updates between two updates of the target networks.
            normalize_observation: Whether observations are shifted and scaled by the real data's statistics.
            normalize_goal_embedding: Whether goal embeddings are shifted, and scaled as a whole, by the statistics of
                the data's instructions. A sentence encoder crowds its vectors into a corner of the sphere, where a
                small network is slow to tell them apart.
            gradient_clip_norm: Largest norm of the whole gradient; null does not clip.
            learning_rate_schedule: What becomes of the learning rate after the warm-up: it stays (constant), or falls
                to 0 (linear, cosine).
            warmup_updates: Updates over which the learning rate rises from 0.
            schedule_updates: Updates after which it has fallen to 0, the warm-up included; null if it is constant.
            ema_rate: Part of the averaged weights that each update replaces, in (0, 1]; evaluation then acts with the
                average. Null keeps no average.
            source_weights: How much the losses of ``real`` and of ``imaginary`` transitions count; 1 where not given.
                What is logged stays unweighted.
            compile: Whether the losses run through ``torch.compile``; pays off in long runs only.
            num_evaluation_envs: Episodes that run side by side in evaluation; the results do not depend on it.
        """
        super().__init__()
        require(len(hidden_sizes) > 0 and min(hidden_sizes) > 0, "hidden_sizes", hidden_sizes, "widths of 1 or more")
        require(learning_rate > 0, "learning_rate", learning_rate, "above 0")
        require(0 <= discount <= 1, "discount", discount, "in [0, 1]")
        require(0 < target_update_rate <= 1, "target_update_rate", target_update_rate, "in (0, 1]")
        require(target_update_interval >= 1, "target_update_interval", target_update_interval, "1 or more")
        require(
            gradient_clip_norm is None or gradient_clip_norm > 0, "gradient_clip_norm", gradient_clip_norm, "above 0"
        )
        require(ema_rate is None or 0 < ema_rate <= 1, "ema_rate", ema_rate, "in (0, 1], or null")
        require(num_evaluation_envs >= 1, "num_evaluation_envs", num_evaluation_envs, "1 or more")
        self.automatic_optimization = False
        self.spec = spec
        self.hidden_sizes = tuple(hidden_sizes)
        self.learning_rate = learning_rate
        self.discount = discount
        self.target_update_rate = target_update_rate
        self.target_update_interval = target_update_interval
        self.normalize_observation = normalize_observation
        self.normalize_goal_embedding = normalize_goal_embedding
        self.gradient_clip_norm = gradient_clip_norm
        self.num_evaluation_envs = num_evaluation_envs
        self.episode_results: list[EpisodeResult] = []
        self.compile_losses = compile
        self._schedule = LearningRateSchedule(learning_rate_schedule, warmup_updates, schedule_updates)
        self._average = WeightAverage(ema_rate) if ema_rate is not None else None
        self._targets: list[tuple[nn.Module, nn.Module]] = []
        self._measured: dict[str, Tensor] = {}
        self._loaded_updates = 0
        self._has_weights = False  # of its own choice: drawn by the data's seed, or loaded
        self.observation_normalizer = Normalizer(spec.observation_size)
        self.goal_normalizer = Normalizer(spec.goal_embedding_size)
        # The table of goal embeddings belongs to the data, not to the checkpoint.
        self.register_buffer("goal_embeddings", torch.zeros(0, spec.goal_embedding_size), persistent=False)
        self.register_buffer("_source_weights", _source_weights(source_weights), persistent=False)

    # --- what an algorithm defines ---------------------------------------------------------------------------------

    @abstractmethod
    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """The losses whose sum is minimised, one entry an equation of the paper, weights included.

        Returns:
            Loss name -> loss per transition, shape (B,), not reduced.
        """

    @abstractmethod
    def act(self, observation: Tensor, goal_embedding: Tensor) -> Tensor:
        """The action to take.

        Args:
            observation: Normalised, shape (B, O).
            goal_embedding: Normalised, shape (B, E).

        Returns:
            Shape (B,) int64 if actions are discrete, else (B, A) in [-1, 1].
        """

    # --- what an algorithm may use ---------------------------------------------------------------------------------

    def target_of(self, network: nn.Module) -> Any:
        """A frozen copy of ``network`` that follows it by ``target_update_rate`` and ``target_update_interval``."""
        target = copy.deepcopy(network).requires_grad_(False)
        self._targets.append((target, network))
        return target

    def measure(self, name: str, value: Tensor) -> None:
        """Log a quantity that is no loss, such as a Q-value, as ``train/<name>``; shape (B,)."""
        self._measured[name] = value.detach()

    # --- training ----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take the goal embeddings and the observation statistics from the data, and the first weights by its seed."""
        if stage != "fit":
            return
        data = self._data
        if data.spec != self.spec:
            raise DataError(
                f"the policy was built for {self.spec}, but the data have {data.spec}; give both one domain"
            )
        if self.normalize_observation:
            self.observation_normalizer.set_statistics(data.observation_mean, data.observation_std)
        if self.normalize_goal_embedding:
            mean = data.goal_embeddings.mean(0)
            self.goal_normalizer.set_statistics(mean, (data.goal_embeddings - mean).square().mean().sqrt())
        self.goal_embeddings = self.goal_normalizer(data.goal_embeddings.to(self.device))
        if not self._has_weights:
            initialize(self, data.seed, self._targets)
            self._has_weights = True

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with a parameter group for every network that is trained."""
        groups = [
            {"params": list(network.parameters()), "name": name}
            for name, network in self.named_children()
            if any(parameter.requires_grad for parameter in network.parameters())
        ]
        return torch.optim.Adam(groups, lr=self.learning_rate, fused=True)

    def on_fit_start(self) -> None:
        """Refuse a number of updates that training steps cannot hit exactly."""
        max_steps, per_step = self.trainer.max_steps, self._data.updates_per_step
        if max_steps % per_step and max_steps != -1:
            raise KalmError(
                f"trainer.max_steps is {max_steps}, which is no multiple of data.updates_per_step {per_step}; "
                f"use {max_steps // per_step * per_step or per_step} updates, or an updates_per_step that divides it"
            )

    def on_train_start(self) -> None:
        """Look once at how updates are to be made."""
        optimizer = cast(LightningOptimizer, self.optimizers())
        self._gradient_step = GradientStep(self, optimizer, self.gradient_clip_norm)
        rates = [group["lr"] for group in self.configure_optimizers().param_groups]
        self._learning_rate = LearningRate(self._schedule, optimizer.optimizer, rates, self.trainer.global_step)
        self._recorded_losses: Callable[[TransitionBatch], _Recorded] = self._losses_and_measurements
        if self.compile_losses:
            self._recorded_losses = torch.compile(self._losses_and_measurements)
        if self._average is not None:
            self._average.start(dict(self._trained_parameters()))

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        """Perform K updates, one on each of the K minibatches of ``batch`` (batch size (K, B))."""
        first_update = self.trainer.global_step
        minibatches = self.minibatches(batch, self._noise(first_update, batch.shape[:2]), self._weights(batch))
        recorded = [self._update(transitions, first_update + index) for index, transitions in enumerate(minibatches)]
        per_transition = {name: torch.stack([row[name] for row in recorded]) for name in recorded[0]}
        if not self._is_finite(per_transition):
            raise_non_finite(per_transition, dict(self.named_parameters()), batch, first_update)
        num_steps = self.trainer.global_step // len(recorded)
        if num_steps % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            means = source_means(per_transition, batch.get(SOURCE), batch.get(PADDING_MASK, None))
            rate = {f"train/{name}": value for name, value in self._learning_rate.metrics().items()}
            self.log_dict(means | rate | {"step": float(self.trainer.global_step)})

    def minibatches(self, stacked: TensorDictBase, noise: Tensor, weight: Tensor | None) -> Iterator[Any]:
        """What ``losses`` reads of each of K stacked minibatches; a policy of windows overrides it.

        Args:
            stacked: Batch size (K, B), or (K, B, T) for windows of T steps.
            noise: Standard normal numbers, shape (K, B, Z).
            weight: How much each transition counts, of the batch's shape; None if all count 1.
        """
        return unstack(stacked, self.goal_embeddings, self.observation_normalizer, noise, weight)

    def _noise(self, first_update: int, size: Sequence[int]) -> Tensor:
        """Random numbers of updates ``first_update`` and on, each update's a function of its number and the seed."""
        if not self.noise_size:
            return torch.zeros(*size, 0, device=self.device)
        per_update = [
            torch.randn(
                *size[1:], self.noise_size, generator=torch.Generator().manual_seed((self._data.seed << 32) + update)
            )
            for update in range(first_update, first_update + size[0])
        ]
        return torch.stack(per_update).to(self.device)

    def _weights(self, batch: TensorDictBase) -> Tensor | None:
        """How much each transition's losses count, shape (K, B); None if all count alike."""
        weight = batch.get(WEIGHT, None)
        if self._source_weights is None:
            return weight
        of_source = self._source_weights[batch.get(SOURCE).long()]
        return of_source if weight is None else of_source * weight

    def _update(self, batch: TransitionBatch, update: int) -> dict[str, Tensor]:
        """Update number ``update``, from 0, of all networks; every loss and measurement a transition, detached."""
        losses, measured = self._recorded_losses(batch)
        total = torch.stack(list(losses.values())).sum(0, dtype=torch.float32)
        self._learning_rate.set(update)
        self._gradient_step((total if batch.weight is None else total * batch.weight).mean())
        if (update + 1) % self.target_update_interval == 0:
            self._update_targets()
        if self._average is not None:
            self._average.update(update + 1)
        return {name: loss.detach() for name, loss in losses.items()} | measured

    def _losses_and_measurements(self, batch: TransitionBatch) -> _Recorded:
        losses = self.losses(batch)
        measured, self._measured = self._measured, {}
        return losses, measured

    def _trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    @torch.no_grad()
    def _update_targets(self) -> None:
        for target, network in self._targets:
            torch._foreach_lerp_(list(target.parameters()), list(network.parameters()), self.target_update_rate)

    @torch.no_grad()
    def _is_finite(self, per_transition: dict[str, Tensor]) -> bool:
        """Whether all losses are finite, and all parameters, which a gradient that is not would have spoilt."""
        norm = nn.utils.get_total_norm(self.parameters())
        return bool(torch.stack([norm, *(values.sum() for values in per_transition.values())]).isfinite().all())

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights as every module does; training then goes on from them."""
        self._has_weights = True
        return super().load_state_dict(*args, **kwargs)

    @property
    def num_updates(self) -> int:
        """Updates behind the present weights, in training as well as after loading a checkpoint."""
        return max(self.trainer.global_step, self._loaded_updates)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which policy the weights belong to; add the averaged ones."""
        checkpoint["kalm_policy"] = self._identity
        if self._average is not None:
            checkpoint["kalm_average"] = dict(self._average.tensors)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the weights of another algorithm or for other sizes, before torch lists every mismatched tensor."""
        found = checkpoint.get("kalm_policy")
        if found != self._identity:
            raise CheckpointError(
                f"the checkpoint holds {found or 'no policy of kalm'}, but the configuration asks for "
                f"{self._identity}; name the checkpoint of that policy, or the configuration it was made with"
            )
        if self._average is not None:
            if "kalm_average" not in checkpoint:
                raise CheckpointError(
                    f"ema_rate is {self._average.rate}, but the checkpoint holds no averaged weights: it was trained "
                    "with ema_rate null; set that"
                )
            self._average.tensors = dict(checkpoint["kalm_average"])
        self._loaded_updates = int(checkpoint["global_step"])

    @property
    def _identity(self) -> dict[str, Any]:
        return {"algorithm": type(self).__name__, "hidden_sizes": list(self.hidden_sizes), **asdict(self.spec)}

    # --- evaluation --------------------------------------------------------------------------------------------------

    def forward(self, observation: Tensor, goal_embedding: Tensor) -> Tensor:
        """The action to take, from what the environment and the sentence encoder give; see ``act``.

        It is that of the averaged weights if there are any.
        """
        inputs = self.observation_normalizer(observation), self.goal_normalizer(goal_embedding)
        if self._average is None or not self._average.tensors:
            return self.act(*inputs)
        return MethodCall(self, self.act).using(self._average.tensors, *inputs)

    def on_validation_epoch_start(self) -> None:
        """Forget the previous evaluation."""
        self.episode_results = []

    def on_test_epoch_start(self) -> None:
        """Forget the previous evaluation."""
        self.episode_results = []

    def validation_step(self, batch: list[Episode], batch_idx: int) -> None:
        """Run episodes and keep their results for the callbacks."""
        self.episode_results += self._evaluate(batch)

    def test_step(self, batch: list[Episode], batch_idx: int) -> None:
        """Run episodes and keep their results for the callbacks."""
        self.episode_results += self._evaluate(batch)

    def _evaluate(self, episodes: list[Episode]) -> list[EpisodeResult]:
        data, policy = self._data, self.start_episodes(self._data.domain, episodes)
        return evaluate_policy(policy, self.device, data.encoder, data.domain, episodes, self.num_evaluation_envs)

    def start_episodes(self, domain: Domain, episodes: Sequence[Episode]) -> EpisodePolicy:
        """The policy as ``episodes`` will ask it; one that remembers overrides it and keeps a history for each."""
        return lambda observation, goal_embedding, episode: self(observation, goal_embedding)

    @property
    def _data(self) -> PolicyData:
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise KalmError(
                f"{type(self).__name__} got no data module; pass kalm.data.policy_data.PolicyData to the trainer as "
                "datamodule: observation statistics and goal embeddings come from it"
            )
        return cast("PolicyData", data)


def _source_weights(weights: Mapping[str, float] | None) -> Tensor | None:
    """Weight of each source, in the order of ``Source``; None if all are 1."""
    given, labels = dict(weights or {}), [source.label for source in Source]
    allowed = f"numbers of 0 or more for {' and '.join(labels)}"
    require(set(given) <= set(labels) and all(w >= 0 for w in given.values()), "source_weights", weights, allowed)
    return torch.tensor([given.get(label, 1.0) for label in labels]) if set(given.values()) - {1.0} else None
