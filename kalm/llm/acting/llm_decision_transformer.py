"""Decision Transformer on a language model (KALM, figure 5): the same backbone, without grounding and imagination.

The model reads the prompt of rollout generation, then states and actions of a real rollout, and with every state the
return that is still to come; it learns to say each action. To act, it is given the episode so far and the return that
is wanted of it, which shrinks as rewards come in. Real rollouts are all it learns from.

Paper: Chen et al. 2021 (arXiv:2106.01345); Pang et al. 2024 put a language model in the transformer's place.

Part of the paper -> where: training, section 3 -> ``losses``; evaluation, algorithm 1 -> ``run_episodes``, with the
return that is still wanted from ``kalm/envs/running_episodes.py``.

Differences from the paper: (1) a return is no token of its own, it is one more number of the state token: a third token
a step would cost half as much again; (2) the whole episode is read, not its last K steps, and positions are those of
the language model, not of time steps; (3) returns are normalised by the data's statistics instead of a constant chosen
by hand, and the return that is wanted is a quantile of the data's.

Shape letters: n steps of all rollouts, R rollouts, O numbers in an observation, B episodes that run now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from numpy.typing import NDArray
from torch import Tensor

from kalm.core.errors import KalmError, require
from kalm.core.specs import Spec, VectorObservation
from kalm.data.language_batches import GroundingBatch, GroundingTask, ValidationBatch, batch_rollouts
from kalm.data.return_conditioned_data import ReturnConditionedData
from kalm.envs.base import Domain
from kalm.envs.running_episodes import RunningEpisodes
from kalm.envs.simulation import Episode, EpisodeResult, evaluate
from kalm.language.prompts import generation_prompt
from kalm.llm.acting.llm_policy import Actor
from kalm.llm.backbones.backbone import Backbone, require_same_backbone
from kalm.llm.grounding.losses import Optimization, action_loss, require_finite
from kalm.llm.grounding.reading import read_rollouts
from kalm.llm.grounding.rollout_codec import RolloutCodec
from kalm.runs.checkpoint_io import POLICY, require_same_policy
from kalm.runs.devices import require_unused_search
from kalm.runs.evaluated import EvaluatedPolicy


class LLMDecisionTransformer(EvaluatedPolicy):
    """A language model that does what led to a return; for ``fit`` and ``test`` with a ``ReturnConditionedData``.

    Its output layer for text has nothing to learn.
    """

    target_return: Tensor

    def __init__(
        self,
        spec: Spec,
        backbone: Backbone,
        inner_size: int = 256,
        target_return_quantile: float = 0.9,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        warmup_updates: int = 50,
        schedule_updates: int = 2000,
        backbone_learning_rate_scale: float = 1.0,
        num_evaluation_envs: int = 64,
    ) -> None:
        """Build it; data and the weights of a frozen encoder are not touched yet.

        Args:
            spec: Sizes of the domain, linked to the data module's.
            backbone: The language model underneath.
            inner_size: Width of the state encoder.
            target_return_quantile: Return that is asked for in evaluation, as a quantile of the real rollouts', in
                [0, 1] (Chen et al.: a return chosen by hand for each task, about the best of the data).
            learning_rate: Peak of the schedule.
            weight_decay: AdamW's, on matrices only.
            warmup_updates: Updates in which the learning rate rises from zero.
            schedule_updates: Updates after which it has fallen to zero along a straight line; set it to
                ``trainer.max_steps``.
            backbone_learning_rate_scale: The backbone's learning rate as a multiple of ``learning_rate``.
            num_evaluation_envs: Episodes that run side by side; the results do not depend on it, up to rounding.
        """
        super().__init__(num_evaluation_envs)
        require(0 <= target_return_quantile <= 1, "target_return_quantile", target_return_quantile, "in [0, 1]")
        is_one = len(backbone.parts) == 1
        require(is_one, "backbone", type(backbone).__name__, "one language model: a second would predict nothing here")
        self.spec = spec
        self.backbone, self._inner_size = backbone, inner_size
        seen = replace(spec, observation=VectorObservation(spec.observation_size + 1))
        self.codec = RolloutCodec(seen, [backbone.hidden_size], inner_size)
        for head in (self.codec.change_head, self.codec.end_head):
            head.requires_grad_(False)  # nothing but actions is predicted
        self.target_return_quantile = target_return_quantile
        # What evaluation has to know of the data; it travels with the weights, and so do the codec's statistics.
        self.register_buffer("target_return", torch.zeros(()))
        self._optimization = Optimization(
            learning_rate, weight_decay, warmup_updates, schedule_updates, backbone_learning_rate_scale
        )

    # --- training ----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take the statistics of the rollouts, and of their returns."""
        if stage != "fit":
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, ReturnConditionedData):
            raise KalmError(
                f"LLMDecisionTransformer got {type(data).__name__}; it learns from returns, so the data module must be "
                "kalm.data.return_conditioned_data.ReturnConditionedData"
            )
        statistics = data.rollout_statistics
        std = statistics.return_to_go_std or 1.0
        self.codec.set_statistics(
            torch.cat([data.observation_mean, torch.tensor([statistics.return_to_go_mean])]),
            torch.cat([data.observation_std, torch.tensor([std])]),
            change_std=torch.zeros(self.spec.observation_size + 1),
        )
        self.target_return.fill_(statistics.returns.quantile(self.target_return_quantile))

    def configure_model(self) -> None:
        """Load a pretrained backbone where it will run: Lightning calls this before it restores a checkpoint."""
        self.backbone.load(self.device if self._trainer is None else self.trainer.strategy.root_device)
        self.codec.token_scales = [self.backbone.token_scale]

    def on_train_start(self) -> None:
        """Several devices have to know that something does not learn."""
        require_unused_search(self, "the output layer for text has nothing to learn")

    def losses(self, batch: GroundingBatch) -> dict[str, Tensor]:
        """Imitation of every recorded action, given the return that came of it.

        Cross-entropy where actions are discrete, mean squared error where they are not (Chen et al., section 3).

        Returns:
            ``action_loss``, one number a step, shape (n,), neither reduced nor weighted.
        """
        return {"action_loss": action_loss(self.predict(batch), batch.action)}

    def predict(self, batch: GroundingBatch) -> Tensor:
        """What is said at each state: scores of the actions, or the action itself, shape (n, A).

        It depends on the steps before, on the state and its return to go, and on nothing after them.
        """
        nothing_to_come = torch.zeros_like(batch.final_observation[:, 0])
        conditioned = batch._replace(
            observation=_with_return(batch.observation, batch.return_to_go),
            final_observation=_with_return(batch.final_observation, nothing_to_come),
        )
        return self.codec.predict_action(read_rollouts(self.backbone, self.codec, conditioned).observation)

    def training_step(self, batch: GroundingBatch, batch_index: int) -> Tensor:
        """One update."""
        loss = self.losses(batch)["action_loss"].mean()
        metrics = {"train/action_loss": loss.detach()}
        require_finite(metrics, self.global_step)
        self.log_dict(metrics, batch_size=1)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, no decay on vectors; a straight rise, then a straight fall to zero."""
        return self._optimization.of(self.backbone, self.codec)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what the weights are, and what they belong to: those that are frozen are not in the checkpoint."""
        checkpoint[POLICY] = self._identity
        checkpoint["backbone"] = self.backbone.description

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of something else, or that were trained on top of others."""
        require_same_policy(checkpoint, self._identity)
        require_same_backbone(checkpoint, self.backbone)
        super().on_load_checkpoint(checkpoint)

    @property
    def _identity(self) -> dict[str, Any]:
        sizes = {"inner_size": self._inner_size, "hidden_size": self.backbone.hidden_size}
        return {"algorithm": type(self).__name__, **sizes, **self.spec.facts()}

    # --- evaluation --------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def validation_step(
        self, batch: ValidationBatch | list[Episode], batch_index: int, dataloader_idx: int = 0
    ) -> None:
        """Actions of held-out real rollouts are predicted; episodes are run."""
        if not isinstance(batch, ValidationBatch):
            self.evaluate(batch)
            return
        prompts = [generation_prompt(rollout.instruction) for rollout in batch.rollouts]
        held_out: GroundingBatch = self.transfer_batch_to_device(
            batch_rollouts(batch.rollouts, prompts, GroundingTask.GENERATION), self.device, 0
        )
        prediction = self.predict(held_out)
        metrics = {"eval/held_out_action_loss": action_loss(prediction, held_out.action).mean()}
        if self.spec.is_discrete:
            metrics["eval/held_out_action_match"] = (prediction.argmax(dim=-1) == held_out.action).float().mean()
        self.log_dict(metrics, on_epoch=True, batch_size=len(held_out.action), add_dataloader_idx=False)

    def run_episodes(self, domain: Domain, episodes: Sequence[Episode], number: int = 0) -> list[EpisodeResult]:
        """Act in every episode, asking for ``target_return`` of each; there is one model, whatever ``number``."""
        return evaluate(_ReturnActor(self, episodes), domain, episodes, self.num_evaluation_envs)


class _ReturnActor:
    """Gives the model, with what is seen of an episode, the return that is still wanted of it."""

    def __init__(self, model: LLMDecisionTransformer, episodes: Sequence[Episode]) -> None:
        num_rows = min(model.num_evaluation_envs, len(episodes))
        self._actor = Actor(model.backbone, model.codec, episodes, num_rows)
        goals = [episode.instructed.goal for episode in episodes]
        # The latest step is all that is needed for the next reward; earlier ones are in the model's cache.
        self._running = RunningEpisodes(goals, model.spec, 1, float(model.target_return))

    def __call__(self, observations: NDArray[Any], episodes: list[int], info: dict[str, Any]) -> NDArray[Any]:
        """Actions of shape (B,) or (B, A) for observations of shape (B, O), given the number of each episode."""
        seen, numbers = torch.from_numpy(observations.astype(np.float32)), torch.tensor(episodes)
        wanted = self._running.observe(seen, numbers).return_to_go[:, 0]
        actions = self._actor(_with_return(seen, wanted).numpy(), episodes, info)
        self._running.act(torch.from_numpy(actions), numbers)
        return actions


def _with_return(observation: Tensor, return_to_go: Tensor) -> Tensor:
    """What a state token is made of: from (..., O) and (...) to (..., O + 1)."""
    return torch.cat([observation, return_to_go.unsqueeze(-1)], dim=-1)
