"""What every offline-RL algorithm shares: stepping, target networks, normalisation, logging, evaluation.

A subclass holds only its paper: networks, ``losses`` and ``act``. The sum of its losses is minimised by one optimizer
with a parameter group a network; one ``training_step`` performs K updates on K stacked minibatches, because a training
step of Lightning costs as much as an update of a small network. ``global_step`` and ``max_steps`` count updates.

Shape letters: K updates a training step, S policies side by side, B batch, O observation, E goal embedding, A action.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from kalm.core.errors import KalmError, require
from kalm.core.names import PADDING_MASK, SOURCE
from kalm.core.specs import Spec, VectorObservation
from kalm.envs.simulation import Episode, EpisodeResult
from kalm.rl.training.batches import Normalizer, TransitionBatch, TransitionWeights, check_fit, unstack
from kalm.rl.training.optimization import GradientStep, LearningRate, LearningRateSchedule, ScheduleKind, WeightAverage
from kalm.rl.training.policy_evaluation import EpisodePolicy, evaluate_policy
from kalm.rl.training.randomness import initialize, update_noise
from kalm.rl.training.recorded import is_finite, raise_non_finite, source_means, stack_recorded
from kalm.rl.training.side_by_side import MethodCall, policy_of, side_by_side, stack_parameters
from kalm.runs.acting import BEST, Acting, ActionChoice, require_discrete
from kalm.runs.checkpoint_io import POLICY, require_same_policy
from kalm.runs.devices import require_unused_search
from kalm.runs.evaluated import EvaluatedPolicy

if TYPE_CHECKING:
    from kalm.data.policy_data import PolicyData
    from kalm.envs.base import Domain


class OfflineRLModule(EvaluatedPolicy):
    """Base of the algorithms in ``kalm/rl``: copy ``bc.py`` to add one."""

    goal_embeddings: Tensor
    noise_size: int = 0  # random numbers that ``losses`` asks for a transition, or for a window
    minibatch_scaled: frozenset[str] = frozenset()  # losses that the paper scales by a mean over the minibatch
    sequence_length: int = 1  # transitions that ``losses`` reads as one row: more for windows of a rollout, T
    needs_continuous_actions: bool = False

    def __init__(
        self,
        spec: Spec,
        hidden_sizes: Sequence[int] = (256, 256),
        learning_rate: float = 3e-4,
        discount: float = 0.99,
        target_update_rate: float = 0.005,
        target_update_interval: int = 1,
        normalize_observation: bool = True,
        observation_limit: float | None = 10.0,
        normalize_goal_embedding: bool = True,
        gradient_clip_norm: float | None = None,
        learning_rate_schedule: ScheduleKind = "constant",
        warmup_updates: int = 0,
        schedule_updates: int | None = None,
        ema_rate: float | None = None,
        source_weights: dict[str, float] | None = None,
        compile: bool = False,
        num_seeds: int = 1,
        acting: Acting = BEST,
        num_evaluation_envs: int = 64,
    ) -> None:
        """Check and keep the options that all algorithms share.

        Args:
            spec: Sizes of observation, action and goal embedding; the command line takes them from the data.
            hidden_sizes: Width of each hidden layer of every network (paper: 256, 256). Where ``data.num_goal_tokens``
                are read one by one, of each layer of attention, all of one width.
            learning_rate: Adam's step size for every network.
            discount: Worth of a reward one step later, in [0, 1] (paper: 0.99).
            target_update_rate: Part of a target network that is replaced at each of its updates, in (0, 1].
            target_update_interval: Updates between two updates of the target networks.
            normalize_observation: Whether observations that are vectors are shifted and scaled by the real data's
                statistics.
            observation_limit: Standard deviations at which each number of an observation ends, where observations are
                normalised; null for no limit. Common libraries take 10.
            normalize_goal_embedding: Whether goal embeddings are shifted, and scaled as a whole, by the statistics of
                the data's instructions; else a sentence encoder's are too close for a small network to tell apart.
                Vectors of tokens are not.
            gradient_clip_norm: Largest norm of the whole gradient; null does not clip.
            learning_rate_schedule: The learning rate after the warm-up: constant, or falling to 0 (linear, cosine).
            warmup_updates: Updates over which the learning rate rises from 0.
            schedule_updates: Updates after which it has fallen to 0, the warm-up included; null if it is constant.
            ema_rate: Part of the averaged weights that each update replaces, in (0, 1]; evaluation then acts with the
                average. Null keeps no average.
            source_weights: How much the losses of ``real`` and of ``imaginary`` transitions count; 1 where not given.
                What is logged stays unweighted.
            compile: Whether the losses run through ``torch.compile``; pays off in long runs only.
            num_seeds: Policies to train side by side, S; their seeds are the run's and the next ones. Each becomes what
                it would become alone, up to rounding.
            acting: How discrete actions are chosen in evaluation, by logits or Q-values.
            num_evaluation_envs: Episodes that run side by side in evaluation; the results do not depend on it.

        Raises:
            KalmError: If an option is out of range, or actions are discrete where ``needs_continuous_actions``.
        """
        super().__init__(num_evaluation_envs)
        require(len(hidden_sizes) > 0 and min(hidden_sizes) > 0, "hidden_sizes", hidden_sizes, "widths of 1 or more")
        require(learning_rate > 0, "learning_rate", learning_rate, "above 0")
        require(0 <= discount <= 1, "discount", discount, "in [0, 1]")
        require(0 < target_update_rate <= 1, "target_update_rate", target_update_rate, "in (0, 1]")
        require(target_update_interval >= 1, "target_update_interval", target_update_interval, "1 or more")
        is_clip_norm = gradient_clip_norm is None or gradient_clip_norm > 0
        require(is_clip_norm, "gradient_clip_norm", gradient_clip_norm, "above 0")
        require(ema_rate is None or 0 < ema_rate <= 1, "ema_rate", ema_rate, "in (0, 1], or null")
        is_limit = observation_limit is None or observation_limit > 0
        require(is_limit, "observation_limit", observation_limit, "above 0, or null")
        require(num_seeds >= 1, "num_seeds", num_seeds, "1 or more")
        require_discrete(acting, spec)
        if self.needs_continuous_actions and spec.is_discrete:
            raise KalmError(
                f"{type(self).__name__} needs a domain with continuous actions, but this one's are discrete; use "
                "kalm.rl.cql.CQL, kalm.rl.iql.IQL or kalm.rl.awac.AWAC"
            )
        self.automatic_optimization = False
        self.spec = spec
        self.hidden_sizes = tuple(hidden_sizes)
        self.learning_rate, self.discount = learning_rate, discount
        self.learning_rate_of: dict[str, float] = {}  # of networks that take steps of their own size
        self.target_update_rate, self.target_update_interval = target_update_rate, target_update_interval
        self.normalize_observation, self.normalize_goal_embedding = normalize_observation, normalize_goal_embedding
        self.gradient_clip_norm, self.compile_losses, self.num_seeds = gradient_clip_norm, compile, num_seeds
        self.schedule = LearningRateSchedule(learning_rate_schedule, warmup_updates, schedule_updates)
        self.average = WeightAverage(ema_rate) if ema_rate is not None else None
        self.targets: list[tuple[nn.Module, nn.Module]] = []
        self._measured: dict[str, Tensor] = {}
        self._has_weights = False  # of its own choice: drawn by the data's seed, or loaded
        self._is_stacked = False
        self.acting = acting
        self._asked: tuple[ActionChoice, Tensor, Tensor] | None = None  # who chooses for which rows, in evaluation
        is_vector = isinstance(spec.observation, VectorObservation)  # codes on a grid are no quantities
        limit = math.inf if observation_limit is None or not normalize_observation else observation_limit
        self.observation_normalizer = Normalizer(spec.observation_size, limit) if is_vector else nn.Identity()
        # Networks that read tokens normalise each on its own: what is no token stays zero.
        self.goal_normalizer = nn.Identity() if spec.num_goal_tokens else Normalizer(spec.goal_embedding_size)
        # The table of goal embeddings belongs to the data, not to the checkpoint.
        self.register_buffer("goal_embeddings", torch.zeros(0, spec.goal_embedding_size), persistent=False)
        self.transition_weights = TransitionWeights(source_weights)

    # --- what an algorithm defines, and what it may use --------------------------------------------------------------

    @abstractmethod
    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """The losses whose sum is minimised, an entry an equation of the paper, with its weight: (B,), not reduced."""

    @abstractmethod
    def act(self, observation: Tensor, goal_embedding: Tensor) -> Tensor:
        """The action to take at observations (B, O) for goal embeddings (B, E), both normalised.

        Returns:
            Shape (B,) int64 if actions are discrete, else (B, A) in [-1, 1].
        """

    def target_of(self, network: nn.Module) -> Any:
        """A frozen copy of ``network`` that follows it by ``target_update_rate`` and ``target_update_interval``."""
        target = copy.deepcopy(network).requires_grad_(False)
        self.targets.append((target, network))
        return target

    def begin_update(self, number: int) -> None:
        """Called before update ``number``, counted from 0; an algorithm whose updates are not all alike overrides it.

        It sets an attribute that ``losses`` branches on, so that what an update does not need is not computed. Networks
        without gradient keep weights and Adam's moments; a loss left out is logged as its mean over the other updates.
        """

    def choose(self, scores: Tensor) -> Tensor:
        """The discrete action of the greatest score, shape (B,), of (B, A); in evaluation as ``acting`` says."""
        if self._asked is None:
            return scores.argmax(dim=-1)
        choice, observation, episode = self._asked
        return choice.choose(scores, observation, episode)

    def measure(self, name: str, value: Tensor) -> None:
        """Log a quantity that is no loss, such as a Q-value, as ``train/<name>``; shape (B,)."""
        self._measured[name] = value.detach()

    # --- training ----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take what the data say, and the first weights by their seed, before a checkpoint puts others in place."""
        policies: list[dict[str, Any]] = [dict(self.named_parameters())] * self.num_seeds
        if stage == "fit":
            check_fit(type(self).__name__, self.spec, self.sequence_length, self._data, self.trainer.max_steps)
            self._take_statistics()
            self._data.num_seeds = self.num_seeds
            if not self._has_weights:
                policies = [initialize(self, seed, self.targets) for seed in self._seeds]
                self._has_weights = True
        if self.num_seeds > 1 and not self._is_stacked:
            stack_parameters(self, policies)
            self._is_stacked = True

    def _take_statistics(self) -> None:
        """Take what the policy has to know of the data; one that has to know more overrides it."""
        data = self._data
        if self.normalize_observation and isinstance(self.observation_normalizer, Normalizer):
            self.observation_normalizer.set_statistics(data.observation_mean, data.observation_std)
        if self.normalize_goal_embedding and isinstance(self.goal_normalizer, Normalizer):
            mean = data.goal_embeddings.mean(0)
            self.goal_normalizer.set_statistics(mean, (data.goal_embeddings - mean).square().mean().sqrt())
        self.goal_embeddings = self.goal_normalizer(data.goal_embeddings.to(self.device))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with a parameter group for every network that is trained."""
        groups = []
        for name, network in self.named_children():
            if any(parameter.requires_grad for parameter in network.parameters()):
                rate = self.learning_rate_of.get(name, self.learning_rate)
                groups.append({"params": list(network.parameters()), "name": name, "lr": rate})
        return torch.optim.Adam(groups, fused=True)

    def on_train_start(self) -> None:
        """Look once at how updates are to be made; optimizer and parameters are final now."""
        if type(self).begin_update is not OfflineRLModule.begin_update:
            require_unused_search(self, "some updates leave networks out")
        self.gradient_step = GradientStep(self, self.gradient_clip_norm, self.num_seeds)
        self._rate = LearningRate(self.schedule, self)
        losses: Callable[[Any], Sequence[dict[str, Tensor]]] = self._losses_and_measurements
        if self.num_seeds > 1:
            losses = side_by_side(self, losses, self.num_seeds)
        self._losses = torch.compile(losses) if self.compile_losses else losses
        if self.average is not None:
            self.average.start({name: p for name, p in self.named_parameters() if p.requires_grad})

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        """Perform K updates, one on each of the K minibatches of ``batch``, batch size (K, B), or (K, S, B)."""
        if self.num_seeds > 1:
            batch = batch.flatten(1, 2)  # the rows of policies side by side one after the other
        first_update, num_updates = self.trainer.global_step, batch.shape[0]
        updates = range(first_update, first_update + num_updates)
        # Each of n devices has noise of its own: that of update u is what one device would draw for n * u and behind.
        draws = [update * self.trainer.world_size + self.trainer.global_rank for update in updates]
        noise = update_noise(self._seeds, draws, batch.shape[1] // self.num_seeds, self.noise_size).to(self.device)
        minibatches = self.minibatches(batch, noise, self.transition_weights(batch))
        recorded = [self.update(minibatch, number) for minibatch, number in zip(minibatches, updates, strict=True)]
        per_transition, is_recorded = stack_recorded(recorded)
        if not is_finite(per_transition, self.parameters()):
            raise_non_finite(per_transition, dict(self.named_parameters()), batch, first_update, self._seeds)
        if self.trainer.global_step // num_updates % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            means = source_means(per_transition, batch.get(SOURCE), batch.get(PADDING_MASK, None), is_recorded)
            self.log_dict(means | self._rate.metrics() | {"step": float(self.trainer.global_step)})

    def update(self, batch: Any, number: int) -> dict[str, Tensor]:
        """Make update ``number``, counted from 0: minimise the losses by one step, let targets and averages follow.

        ``batch`` is what ``losses`` reads; rows of policies side by side stand one after the other, (S * B, ...).
        Returned is every loss, unweighted, and every measurement, one number a row; detached.
        """
        self.begin_update(number)
        losses, measured = self._losses(batch)
        total = torch.stack(list(losses.values())).sum(0, dtype=torch.float32)
        if batch.weight is not None:
            total = total * batch.weight
        self._rate.set(number)
        # Each policy minimises the mean over its own rows; their sum has the gradients of all.
        self.gradient_step(total.mean() if self.num_seeds == 1 else total.mean() * self.num_seeds)
        self._follow(number + 1)
        return {name: values.detach() for name, values in losses.items()} | measured

    def _losses_and_measurements(self, batch: Any) -> Sequence[dict[str, Tensor]]:
        # Into a new dictionary: one that is older than a compiled function would have to be kept in step with it.
        self._measured = {}
        losses, measured = self.losses(batch), self._measured
        self._measured = {}
        return losses, measured

    @torch.no_grad()
    def _follow(self, num_updates: int) -> None:
        """Let targets and averages follow their networks."""
        if num_updates % self.target_update_interval == 0:
            for target, network in self.targets:
                torch._foreach_lerp_(list(target.parameters()), list(network.parameters()), self.target_update_rate)
        if self.average is not None:
            self.average.update(num_updates)

    def minibatches(self, stacked: TensorDictBase, noise: Tensor, weight: Tensor | None) -> Iterator[Any]:
        """What ``losses`` reads of each of K stacked minibatches, see ``unstack``; a policy of windows overrides it."""
        return unstack(stacked, self.goal_embeddings, self.observation_normalizer, noise, weight)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights as every module does; training then goes on from them."""
        self._has_weights = True
        return super().load_state_dict(*args, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which policy the weights belong to; add the averaged ones."""
        checkpoint[POLICY] = self._identity
        if self.average is not None:
            self.average.add_to(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the weights of another policy."""
        super().on_load_checkpoint(checkpoint)
        require_same_policy(checkpoint, self._identity)
        if self.average is not None:
            self.average.take_from(checkpoint)

    @property
    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with; a policy with sizes of its own adds them."""
        sizes = {"hidden_sizes": list(self.hidden_sizes), **self.spec.facts()}
        return {"algorithm": type(self).__name__, **sizes} | (
            {"num_seeds": self.num_seeds} if self.num_seeds > 1 else {}
        )

    # --- evaluation --------------------------------------------------------------------------------------------------

    def forward(self, observation: Tensor, goal_embedding: Tensor) -> Tensor:
        """The action to take, from what the environment and the sentence encoder give; see ``act``."""
        return self.act(self.observation_normalizer(observation), self.goal_normalizer(goal_embedding))

    def run_episodes(self, domain: Domain, episodes: Sequence[Episode], number: int = 0) -> list[EpisodeResult]:
        """Act in every episode, with the weights that policy ``number`` of those side by side is evaluated with."""

        def run() -> list[EpisodeResult]:
            policy, embed = self.start_episodes(episodes), self._data.embed
            if self.acting.rule != "argmax":
                policy = self._choosing(policy, ActionChoice(self.acting, self._seeds[number], episodes, self.spec))
            return evaluate_policy(policy, self.device, embed, domain, episodes, self.num_evaluation_envs)

        return cast("list[EpisodeResult]", MethodCall(self, run).using(self.acting_weights(number)))

    def acting_weights(self, number: int = 0) -> dict[str, Tensor]:
        """The parameters with which policy ``number`` of those side by side is evaluated: the averages, if kept."""
        weights: dict[str, Tensor] = dict(self.named_parameters())
        if self.average is not None:
            weights |= {name: value.to(self.device) for name, value in self.average.tensors.items()}
        return policy_of(weights, number) if self.num_seeds > 1 else weights

    def start_episodes(self, episodes: Sequence[Episode]) -> EpisodePolicy:
        """The policy as ``episodes`` will ask it; one that remembers overrides it and keeps a history for each."""
        return lambda observation, goal_embedding, episode: self(observation, goal_embedding)

    def _choosing(self, policy: EpisodePolicy, choice: ActionChoice) -> EpisodePolicy:
        """The same policy, for whom somebody chooses by its scores."""

        def act(observation: Tensor, goal_embedding: Tensor, episode: Tensor) -> Tensor:
            self._asked = choice, observation, episode
            try:
                return policy(observation, goal_embedding, episode)
            finally:
                self._asked = None

        return act

    @property
    def _seeds(self) -> range:
        return range(self._data.seed, self._data.seed + self.num_seeds)

    @property
    def _data(self) -> PolicyData:
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise KalmError(
                f"{type(self).__name__} got no data module, which has observation statistics and goal embeddings; pass "
                "kalm.data.policy_data.PolicyData to the trainer as datamodule"
            )
        return cast("PolicyData", data)
