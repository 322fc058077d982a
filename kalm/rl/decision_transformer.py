"""Decision Transformer: predict the action that led to a return, then ask for a good return.

A window of a rollout becomes a sequence of tokens: the goal, then for each step the return that is still to come, the
observation and the action. A causal transformer predicts each action from what stands before it. To act, it is given
the episode so far and the return that is wanted of it, which shrinks as rewards come in.

Paper: Chen et al. 2021 (arXiv:2106.01345), hyper-parameters of its locomotion tasks.

Part of the paper -> function: architecture, section 3 -> ``_outputs``; training, section 3 -> ``imitation_loss`` or
``squared_action_error``; evaluation, algorithm 1 -> ``kalm/envs/running_episodes.py``.

Differences from the paper: 1. the goal's embedding is the first token, which all others see; 2. windows are drawn with
every rollout equally likely, not in proportion to its length, and as full as the rollout allows; 3. returns are
normalised by the data's statistics instead of a constant chosen by hand, and the return that is wanted is a quantile of
the data's; 4. an episode that outlasts the longest rollout is read as if it were no later than that, for later steps
have embeddings that were never trained; 5. no weight decay (the paper's 1e-4 times its step size moves a weight by 1e-8
of itself), and no dropout of attention weights (see ``kalm/rl/networks/transformer.py``).

``torchrl.objectives.DTLoss`` is a mean squared error around a model; the model wraps the transformers library, which
the policies do not import, and keeps no goal.

Shape letters: B batch, T steps of a window, O observation, E goal embedding, A action, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.nn import functional

from kalm.core.errors import DataError, require
from kalm.core.names import ACTION, INSTRUCTION_ID, OBSERVATION, PADDING_MASK, RETURN_TO_GO, STEP
from kalm.core.specs import Spec
from kalm.envs.running_episodes import RunningEpisodes
from kalm.envs.simulation import Episode
from kalm.rl.base import OfflineRLModule
from kalm.rl.losses import imitation_loss, squared_action_error
from kalm.rl.networks.grid_encoder import observation_token
from kalm.rl.networks.token_network import goal_token
from kalm.rl.networks.transformer import CausalTransformer
from kalm.rl.training.batches import Normalizer, WindowBatch, split
from kalm.rl.training.policy_evaluation import EpisodePolicy


class DecisionTransformer(OfflineRLModule):
    """Decision Transformer, discrete or continuous as the domain's actions are; needs ``data.sequence_length``."""

    target_return: Tensor
    last_step: Tensor

    def __init__(
        self,
        spec: Spec,
        context_length: int = 20,
        embedding_size: int = 128,
        hidden_sizes: Sequence[int] = (512, 512, 512),
        num_heads: int = 1,
        dropout: float = 0.1,
        max_timesteps: int = 1000,
        target_return_quantile: float = 0.9,
        learning_rate: float = 1e-4,
        warmup_updates: int = 10_000,
        gradient_clip_norm: float | None = 0.25,
        **options: Any,
    ) -> None:
        """Build the transformer and the embeddings of its tokens.

        Args:
            spec: Sizes of observation, action and goal embedding; the command line takes them from the data.
            context_length: Steps that it sees, T, 2 or more; ``data.sequence_length`` must be the same (paper: 20).
            embedding_size: Numbers in a token, D, a multiple of ``num_heads`` (paper: 128).
            hidden_sizes: Width of the feed-forward part of each layer; their number is that of the layers (paper:
                three of 4 x 128).
            num_heads: Attention heads (paper: 1).
            dropout: Probability that a number falls out, in [0, 1) (paper: 0.1).
            max_timesteps: Steps of a rollout that are told apart (authors' code: 1000).
            target_return_quantile: Return that is asked for in evaluation, as a quantile of the real rollouts', in
                [0, 1] (paper: a return chosen by hand for each task, about the best of the data).
            learning_rate: Adam's step size (paper: 1e-4, at batch 64).
            warmup_updates: Updates over which the learning rate rises from 0 (authors' code: 10,000).
            gradient_clip_norm: Largest norm of the whole gradient (paper: 0.25).
            options: Options that all algorithms share.
        """
        super().__init__(
            spec,
            hidden_sizes=hidden_sizes,
            learning_rate=learning_rate,
            warmup_updates=warmup_updates,
            gradient_clip_norm=gradient_clip_norm,
            **options,
        )
        require(context_length >= 2, "context_length", context_length, "2 or more")
        require(num_heads >= 1, "num_heads", num_heads, "1 or more")
        is_multiple = embedding_size >= 1 and embedding_size % num_heads == 0
        require(is_multiple, "embedding_size", embedding_size, f"a multiple of num_heads, {num_heads}")
        require(0 <= dropout < 1, "dropout", dropout, "in [0, 1)")
        require(max_timesteps >= context_length, "max_timesteps", max_timesteps, "context_length or more")
        require(0 <= target_return_quantile <= 1, "target_return_quantile", target_return_quantile, "in [0, 1]")
        self.sequence_length = context_length
        self.max_timesteps = max_timesteps
        self.target_return_quantile = target_return_quantile
        self.goal_token = goal_token(spec, embedding_size)
        self.return_token = nn.Linear(1, embedding_size)
        self.observation_token = observation_token(spec, embedding_size)
        self.action_token = (nn.Embedding if spec.is_discrete else nn.Linear)(spec.action_size, embedding_size)
        self.step_embedding = nn.Embedding(max_timesteps, embedding_size)
        self.token_norm = nn.LayerNorm(embedding_size)
        self.transformer = CausalTransformer(embedding_size, hidden_sizes, num_heads, dropout, self.num_seeds > 1)
        self.action_head = nn.Linear(embedding_size, spec.action_size)
        self.noise_size = self.transformer.noise_size(3 * context_length)
        # What evaluation has to know of the data; it travels with the weights.
        self.return_normalizer = Normalizer(1)
        self.register_buffer("target_return", torch.zeros(()))
        self.register_buffer("last_step", torch.tensor(context_length - 1))

    def losses(self, batch: WindowBatch) -> dict[str, Tensor]:  # type: ignore[override]  # it reads windows
        """Imitation of every recorded action of a window: one number a step, shape (B, T), 0 for padding."""
        inputs = batch.observation, batch.goal_embedding, batch.action, batch.return_to_go, batch.step
        output = self._outputs(*inputs, batch.noise)
        if self.spec.is_discrete:
            log_probability = functional.log_softmax(output, dim=-1)
            loss = imitation_loss(log_probability.flatten(0, 1), batch.action.flatten()).view_as(batch.return_to_go)
        else:
            loss = squared_action_error(torch.tanh(output), batch.action)
        return {"imitation_loss": torch.where(batch.padding_mask, loss, 0.0)}

    def act(self, observation: Tensor, goal_embedding: Tensor) -> Tensor:
        """The action at the first step of an episode, before there is a history."""
        wanted = self.return_normalizer(self.target_return).expand(len(observation), 1)
        step = torch.zeros_like(wanted, dtype=torch.int64)
        nothing = step if self.spec.is_discrete else wanted.new_zeros(len(observation), 1, self.spec.action_size)
        output = self._outputs(observation.unsqueeze(1), goal_embedding, nothing, wanted, step)
        return self._action(output[:, 0])

    def _outputs(
        self,
        observation: Tensor,
        goal_embedding: Tensor,
        action: Tensor,
        return_to_go: Tensor,
        step: Tensor,
        noise: Tensor | None = None,
    ) -> Tensor:
        """What each step's action is read from, shape (B, T, A); it sees no later step, nor its own action.

        It takes what a ``WindowBatch`` has; without noise nothing is dropped.
        """
        of_step = self.step_embedding(step)
        seen = self.observation_token(observation, goal_embedding.unsqueeze(1))
        parts = [self.return_token(return_to_go.unsqueeze(-1)), seen]
        tokens = torch.stack([part + of_step for part in (*parts, self.action_token(action))], dim=2).flatten(1, 2)
        # The last action is what nobody reads.
        sequence = torch.cat([self.goal_token(goal_embedding).unsqueeze(1), tokens[:, :-1]], dim=1)
        hidden = self.transformer(self.token_norm(sequence), noise)
        return self.action_head(hidden[:, 2::3])  # the observations: goal, return, observation, action, return, ...

    def _action(self, output: Tensor) -> Tensor:
        return self.choose(output) if self.spec.is_discrete else torch.tanh(output)

    # --- training on windows, evaluation with a history --------------------------------------------------------------

    def _take_statistics(self) -> None:
        """Take returns and lengths of rollouts as well."""
        super()._take_statistics()
        statistics = self._data.rollout_statistics
        if statistics.max_length > self.max_timesteps:
            raise DataError(
                f"max_timesteps is {self.max_timesteps}, but a rollout has {statistics.max_length} steps; set "
                f"max_timesteps to {statistics.max_length} or more"
            )
        mean, std = statistics.return_to_go_mean, statistics.return_to_go_std
        self.return_normalizer.set_statistics(torch.tensor([mean]), torch.tensor([std]))
        self.target_return.fill_(statistics.returns.quantile(self.target_return_quantile))
        self.last_step.fill_(statistics.max_length - 1)

    def minibatches(self, stacked: TensorDictBase, noise: Tensor, weight: Tensor | None) -> Iterator[WindowBatch]:
        """Windows, batch size (K, S * B, T), instead of transitions; each policy's mean is over its own real steps."""
        padding_mask = stacked.get(PADDING_MASK)
        columns = {
            "observation": self.observation_normalizer(stacked.get(OBSERVATION)),
            "action": stacked.get(ACTION),
            "return_to_go": self.return_normalizer(stacked.get(RETURN_TO_GO)),
            "step": stacked.get(STEP).long(),
            "padding_mask": padding_mask,
            "noise": noise,
        }
        is_real = padding_mask.unflatten(1, (self.num_seeds, -1)).float()
        step_weight = (is_real / is_real.mean((2, 3), keepdim=True)).flatten(1, 2)
        if weight is not None:
            step_weight = step_weight * weight
        return split(WindowBatch, columns, stacked.get(INSTRUCTION_ID)[..., 0], self.goal_embeddings, step_weight)

    def start_episodes(self, episodes: Sequence[Episode]) -> EpisodePolicy:
        """The policy with a history for each of ``episodes``."""
        goals, last_step = [episode.instructed.goal for episode in episodes], int(self.last_step)
        length = min(self.sequence_length, last_step + 1)
        running = RunningEpisodes(goals, self.spec, length, float(self.target_return))

        def act(observation: Tensor, goal_embedding: Tensor, episode: Tensor) -> Tensor:
            history = running.observe(observation, episode)
            output = self._outputs(
                self.observation_normalizer(history.observation),
                self.goal_normalizer(goal_embedding),
                history.action,
                self.return_normalizer(history.return_to_go),
                history.step_up_to(last_step),
            )
            action = self._action(output.take_along_dim(history.now.view(-1, 1, 1), dim=1).squeeze(1))
            running.act(action, episode)
            return action

        return act

    @property
    def _identity(self) -> dict[str, Any]:
        sizes = {"embedding_size": self.transformer.width, "max_timesteps": self.max_timesteps}
        return {**super()._identity, **sizes, "context_length": self.sequence_length}
