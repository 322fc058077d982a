"""The grounded language model (KALM, section 3.1): a backbone that also reads and writes states and actions.

Three tasks teach it what states and actions mean: generation (goal in, rollout out; actions, next states and the end
are learned at every step at once), dynamics (next states without a goal) and explanation (rollout in, goal out).

Where the symbols are: E_S, E_A, O_S, O_A in ``rollout_codec.py``; the losses in ``losses.py``; imagination (section
3.2) in ``imagination/rollout_engine.py``.

Differences from the paper: (1) a next state is predicted as its change, and kept to the range of the data; (2) an
end head says when the goal is met, so that continuous actions need no end token; (3) a rollout contributes all its
steps to one sequence, where the paper has one dynamics sequence a transition; (4) tasks are mixed in the proportion of
the data module, not equally.

Shape letters: R rollouts, n steps of all rollouts, O numbers in an observation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from kalm.core.rollout import Rollout
from kalm.core.specs import Spec
from kalm.data.language_batches import (
    GroundingBatch,
    GroundingTask,
    ValidationBatch,
    WorkItem,
    WorkShard,
    batch_rollouts,
)
from kalm.language.prompts import EXPLANATION, generation_prompt, prompts_hash
from kalm.llm.backbones.backbone import Backbone, require_same_backbone
from kalm.llm.grounding.explaining import best_answers, write_answers
from kalm.llm.grounding.losses import Optimization, action_loss, change_loss, end_loss, require_finite, text_loss
from kalm.llm.grounding.reading import RolloutHidden, read_rollouts, read_texts
from kalm.llm.grounding.rollout_codec import RolloutCodec
from kalm.llm.imagination.rollout_engine import ImaginationSettings, RolloutEngine
from kalm.runs.checkpoint_io import VerifiedCheckpointIO
from kalm.runs.devices import require_unused_search
from kalm.runs.folder import find_checkpoint

_AS_IN_THE_PAPER = ImaginationSettings()
# What decides, with the weights, what is imagined; the other settings say how fast.
_DECIDES = ("temperature", "goal_test", "end_threshold", "chain_sub_goals")
# A next state matches when every number is within this many standard deviations of the data.
_STATE_TOLERANCE = 0.2


class GroundedLLM(LightningModule):
    """Backbone, encoders and heads, and how they are trained."""

    def __init__(
        self,
        spec: Spec,
        backbone: Backbone,
        inner_size: int = 256,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.05,
        warmup_updates: int = 50,
        schedule_updates: int = 2000,
        backbone_learning_rate_scale: float = 1.0,
        next_observation_weight: float = 1.0,
        end_weight: float = 0.3,
        text_weight: float = 1.0,
        general_text_weight: float = 1.0,
        observation_noise: float = 0.0,
        imagination: ImaginationSettings = _AS_IN_THE_PAPER,
        weights_from: str | None = None,
    ) -> None:
        """Build it; data and the weights of a frozen encoder are not touched yet.

        Args:
            spec: Sizes of the domain, linked to the data module's.
            backbone: The language model underneath.
            inner_size: Width of the observation encoder and of the next-observation head.
            learning_rate: Peak of the schedule.
            weight_decay: AdamW's, on matrices only.
            warmup_updates: Updates in which the learning rate rises from zero.
            schedule_updates: Updates after which it has fallen to zero along a straight line; set it to
                ``trainer.max_steps``. A number of its own, so that a run stopped early and resumed learns the same.
            backbone_learning_rate_scale: The backbone's learning rate as a multiple of ``learning_rate``; a pretrained
                one wants less than encoders and heads that begin at random.
            next_observation_weight: Weight of the next-observation losses; that of actions is 1.
            end_weight: Weight of the end loss.
            text_weight: Weight of the loss of explanations.
            general_text_weight: Weight of the loss of general text, where the data module mixes some in.
            observation_noise: Standard deviation of the noise on the observations that training reads, in units of the
                spread of a step's change. It keeps the model from knowing rollouts by their digits, and next states are
                learned as changes that lead back to the real ones, so that imagination does not drift.
            imagination: How rollouts are imagined.
            weights_from: Checkpoint, or run folder, of an earlier grounding of the same backbone, whose weights and
                statistics ``fit`` begins with; the optimizer and its schedule begin anew. A run that is resumed goes
                on from its own checkpoint instead.
        """
        super().__init__()
        self.spec = spec
        self.backbone = backbone
        self.codec = RolloutCodec(spec, [part.hidden_size for part in backbone.parts], inner_size)
        self._observation_noise = observation_noise
        self._imagination = imagination
        self._engine: RolloutEngine | None = None
        self._weights_from = weights_from
        self._optimization = Optimization(
            learning_rate, weight_decay, warmup_updates, schedule_updates, backbone_learning_rate_scale
        )
        self._loss_weights = {
            "action_loss": 1.0,
            "next_observation_loss": next_observation_weight,
            "end_loss": end_weight,
            "dynamics_loss": next_observation_weight,
            "text_loss": text_weight,
            "general_text_loss": general_text_weight,
        }

    def setup(self, stage: str) -> None:
        """Take what depends on the data: the normaliser and the words that answers are made of."""
        if stage == "fit":
            data = self._data
            self.codec.set_statistics(data.observation_mean, data.observation_std, data.change_std)
            self.codec.set_range(*data.outcome_range)
            self.backbone.learn_vocabulary(data.written_texts)

    def configure_model(self) -> None:
        """Load a pretrained backbone where it will run: Lightning calls this before it restores a checkpoint."""
        self.backbone.load(self.device if self._trainer is None else self.trainer.strategy.root_device)
        self.codec.token_scales = [part.token_scale for part in self.backbone.parts]
        is_new = self._trainer is not None and self.trainer.state.fn == "fit" and self.trainer.ckpt_path is None
        if self._weights_from is not None and is_new:
            # With what they count in: the earlier run's statistics, its vocabulary.
            file = find_checkpoint(self._weights_from, Path(self._weights_from), "model.weights_from")
            checkpoint = VerifiedCheckpointIO().load_checkpoint(file)
            self.on_load_checkpoint(checkpoint)
            self.load_state_dict(checkpoint["state_dict"])

    def on_train_start(self) -> None:
        """Several devices have to know if something does not learn."""
        if len(self.backbone.parts) > 1:
            require_unused_search(self, "the output layer for text of the model of states has nothing to learn")

    def losses(self, batch: GroundingBatch) -> dict[str, Tensor]:
        """What the tasks ask of the model, in the order of the paper's section 3.1.

        Returns:
            Losses, one number a step, observation or text token; neither reduced nor weighted. A task that the batch
            does not have contributes none.
        """
        return self._losses_of(read_rollouts(self.backbone, self.codec, batch), batch)

    def _losses_of(self, hidden: RolloutHidden, batch: GroundingBatch) -> dict[str, Tensor]:
        task = batch.task.repeat_interleave(batch.lengths)
        generates, predicts = task == GroundingTask.GENERATION, task == GroundingTask.DYNAMICS
        change = self.codec.change(batch.observation, batch.next_observation)
        ends = batch.task == GroundingTask.GENERATION
        generated, written = hidden.observation[generates], self.backbone.text_logits(hidden.text)
        end = self.codec.predict_end(torch.cat([generated, hidden.final[ends]]))
        is_end = torch.cat([torch.zeros_like(task[generates], dtype=torch.bool), batch.is_terminated[ends]])
        losses = {
            "dynamics_loss": change_loss(self.codec.predict_change(hidden.action[predicts]), change[predicts]),
            "text_loss": text_loss(written, hidden.text_target),
            "action_loss": action_loss(self.codec.predict_action(generated), batch.action[generates]),
            "next_observation_loss": change_loss(
                self.codec.predict_change(hidden.action[generates]), change[generates]
            ),
            "end_loss": end_loss(end, is_end),
            "general_text_loss": text_loss(self.backbone.text_logits(hidden.general_text), hidden.general_text_target),
        }
        return {name: values for name, values in losses.items() if len(values)}

    def training_step(self, batch: GroundingBatch, batch_index: int) -> Tensor:
        """One update over rollouts of every task."""
        if self._observation_noise:
            observation, final = self._noisy(batch.observation), self._noisy(batch.final_observation)
            batch = batch._replace(observation=observation, final_observation=final)
        hidden = read_rollouts(self.backbone, self.codec, batch)
        means = {name: values.mean() for name, values in self._losses_of(hidden, batch).items()}
        metrics = {f"ground/{name}": value.detach() for name, value in means.items()}
        require_finite(metrics, self.global_step)
        self.log_dict(metrics, batch_size=1)
        self.log("ground/padding_share", hidden.padding_share, batch_size=1)
        return torch.stack([self._loss_weights[name] * value for name, value in means.items()]).sum()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, no decay on vectors; a straight rise, then a straight fall to zero."""
        return self._optimization.of(self.backbone, self.codec)

    @torch.inference_mode()
    def validation_step(
        self, batch: ValidationBatch, batch_index: int, dataloader_idx: int = 0
    ) -> dict[str, list[Rollout]]:
        """Held-out real rollouts are predicted step by step, held-out text token by token; work items are imagined.

        Returns:
            The rollouts, ``real`` and ``imaginary``, for callbacks to judge.
        """
        if batch.rollouts:
            prompts = [generation_prompt(rollout.instruction) for rollout in batch.rollouts]
            asked = self._asked(batch.rollouts, prompts, GroundingTask.GENERATION)
            self._log_means(self._prediction_metrics(asked))
        if batch.text.texts:
            hidden, target = read_texts(self.backbone, batch.text, self.device)
            # The exponential of its mean is the perplexity.
            loss = text_loss(self.backbone.text_logits(hidden), target)
            self._log_means({"ground/held_out_general_text_loss": loss})
        return {"real": list(batch.rollouts), "imaginary": self.imagine(batch.items) if batch.items else []}

    def predict_step(self, batch: WorkShard, batch_index: int) -> list[Rollout]:
        """Imagine one rollout for each work item of a shard."""
        return self.imagine(batch.items)

    @torch.inference_mode()
    def imagine(self, items: Sequence[WorkItem]) -> list[Rollout]:
        """Imagine one rollout for each work item, labelled by the domain's own rules."""
        return (self._engine or self._make_engine()).imagine(items)

    def on_predict_start(self) -> None:
        """Set up imagination once: the weights stay what they are until the end."""
        self._engine = self._make_engine()

    def on_predict_end(self) -> None:
        """Free its memory."""
        self._engine = None

    @torch.inference_mode()
    def explain(self, rollouts: Sequence[Rollout], prompt: str = EXPLANATION, num_answers: int = 1) -> list[str]:
        """Say in words which instruction each rollout follows: the likeliest answer, or the best of several.

        Of several the best is the instruction under which the model itself would be likeliest to act so, and to end
        there; see ``explaining``.
        """
        asked = self._asked(rollouts, [prompt] * len(rollouts), GroundingTask.EXPLANATION)
        answers = write_answers(self.backbone, self.codec, asked, num_answers)
        if num_answers == 1:
            return [answer for (answer,) in answers]
        return best_answers(self.backbone, self.codec, self._asked, rollouts, answers)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which language model the weights belong to: those that are frozen are not in the checkpoint."""
        checkpoint["backbone"] = self.backbone.description

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that were trained on top of others."""
        require_same_backbone(checkpoint, self.backbone)

    def provenance(self) -> dict[str, Any]:
        """Plain JSON types that say what imagines: hashes of weights and prompts, and how actions are drawn."""
        digest = hashlib.sha256(self.backbone.frozen_fingerprint.encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().flatten().view(torch.uint8).numpy().tobytes())
        return {
            "model_sha256": digest.hexdigest(),
            "prompts_sha256": prompts_hash(),
            **{name: getattr(self._imagination, name) for name in _DECIDES},
        }

    def _make_engine(self) -> RolloutEngine:
        return RolloutEngine(self.backbone, self.codec, self._data.domain, self._imagination)

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def _noisy(self, observation: Tensor) -> Tensor:
        # None on a number that cannot change: it cannot drift, and imagination never meets it changed.
        size = self._observation_noise * self.codec.change_std * self.codec.can_change(observation)
        return observation + size * torch.randn_like(observation)

    def _asked(self, rollouts: Sequence[Rollout], prompts: Sequence[str], task: GroundingTask) -> GroundingBatch:
        """Rollouts, each behind a prompt of its own, where the model is."""
        batch: GroundingBatch = self.transfer_batch_to_device(batch_rollouts(rollouts, prompts, task), self.device, 0)
        return batch

    def _prediction_metrics(self, batch: GroundingBatch) -> dict[str, Tensor]:
        """One-step predictions along real rollouts of training goals: losses, and how often they are right, (n,)."""
        hidden = read_rollouts(self.backbone, self.codec, batch)
        action, change = self.codec.predict_action(hidden.observation), self.codec.predict_change(hidden.action)
        error = self.codec.apply_change(batch.observation, change) - batch.next_observation
        tolerance = _STATE_TOLERANCE * self.codec.observation_std
        real_change = self.codec.change(batch.observation, batch.next_observation)
        metrics = {
            "ground/held_out_action_loss": action_loss(action, batch.action),
            "ground/held_out_next_observation_loss": change_loss(change, real_change),
            "imagine/train/state_match": (error.abs() <= tolerance).all(dim=-1).float(),
        }
        if self.codec.is_discrete:
            metrics["imagine/train/action_match"] = (action.argmax(dim=-1) == batch.action).float()
        return metrics

    def _log_means(self, metrics: dict[str, Tensor]) -> None:
        """Log each metric's mean over all batches of a validation; all have as many numbers."""
        means, (size, *_) = {name: values.mean() for name, values in metrics.items()}, map(len, metrics.values())
        self.log_dict(means, on_epoch=True, batch_size=size, add_dataloader_idx=False)
