"""A language model as the student: asked for an action in words, it learns from solved plans (TEDUO, section 3.3).

The state is told as text, and the answer is an action. The model is trained on answers alone, by adapters (QLoRA, LoRA)
or as a whole, and asked through its own chat template.

Differences from the paper: (1) one action is asked for at a time, for the state that is there now; (2) where several
actions are equally good the loss is that of all of them together, as for the other students; (3) an action is drawn
from the probabilities of the valid answers, so that none is misread.

Shape letters: B states, A actions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from numpy.typing import NDArray
from tensordict import TensorDictBase
from torch import Tensor

from kalm.core.errors import require
from kalm.core.names import OBSERVATION, OPTIMAL_ACTIONS
from kalm.data.plan_data import GOAL, SENTENCE, PlanData, StudentSpec
from kalm.envs.base import Domain
from kalm.envs.simulation import Episode, EpisodeResult, evaluate
from kalm.llm.backbones.backbone import require_same_backbone
from kalm.llm.backbones.hugging_face_backbone import HuggingFaceBackbone
from kalm.llm.grounding.losses import Optimization, require_finite
from kalm.llm.local_language_model import LocalLanguageModel
from kalm.runs.acting import draw_actions, uniform_numbers
from kalm.runs.evaluated import EvaluatedPolicy


class LLMStudent(EvaluatedPolicy):
    """Supervised fine-tuning of a language model on the answers of ``PlanData``, and how it acts."""

    def __init__(
        self,
        spec: StudentSpec,
        backbone: HuggingFaceBackbone,
        temperature: float = 0.7,
        learning_rate: float = 2e-5,
        weight_decay: float = 0.0,
        warmup_updates: int = 20,
        schedule_updates: int = 2000,
        num_evaluation_envs: int = 16,
    ) -> None:
        """Build it; the weights come later.

        Args:
            spec: Sizes of the domain, linked to the data module's.
            backbone: The language model; one that was trained on instructions, with a chat template. The paper has
                Llama-3-8B-Instruct with adapters of rank and alpha 512 and a dropout of 0.1.
            temperature: Actions are drawn from the probabilities of the answers to the power of 1 over it (paper: 0.7);
                0 takes the likeliest one.
            learning_rate: Peak of the schedule (paper: 2e-5).
            weight_decay: AdamW's, on matrices only.
            warmup_updates: Updates in which the learning rate rises from zero (paper: 1 % of all).
            schedule_updates: Updates after which it has fallen to zero along a straight line; set it to
                ``trainer.max_steps``.
            num_evaluation_envs: Episodes that run side by side; the results do not depend on it, up to rounding.
        """
        super().__init__(num_evaluation_envs)
        require(temperature >= 0, "temperature", temperature, "0 or more")
        require(learning_rate > 0, "learning_rate", learning_rate, "above 0")
        self.spec, self.backbone, self.temperature = spec, backbone, temperature
        self._language_model = LocalLanguageModel(backbone)
        self._optimization = Optimization(learning_rate, weight_decay, warmup_updates, schedule_updates, 1.0)

    def configure_model(self) -> None:
        """Load the pretrained weights where they will run: Lightning calls this before it restores a checkpoint."""
        self.backbone.load(self.device if self._trainer is None else self.trainer.strategy.root_device)

    def losses(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """How unlikely it is to answer with any of the best actions, in nats, shape (B,), not reduced."""
        data = self._data
        sentences = [data.all_sentences[number] for number in batch[SENTENCE][batch[GOAL]].tolist()]
        scores = self._scores(data.domain, batch[OBSERVATION].cpu().numpy(), sentences)
        return {"plan_loss": -scores.masked_fill(~batch[OPTIMAL_ACTIONS], -torch.inf).logsumexp(-1)}

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> Tensor:
        """One update."""
        loss = self.losses(batch)["plan_loss"].mean()
        require_finite({"plan_loss": loss.detach()}, self.global_step)
        self.log("train/plan_loss", loss.detach(), batch_size=1)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, no decay on vectors; a straight rise, then a straight fall to zero."""
        return self._optimization.of(self.backbone)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which language model the weights belong to: those that are frozen are not in the checkpoint."""
        checkpoint["backbone"] = self.backbone.description

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that were trained on top of others."""
        require_same_backbone(checkpoint, self.backbone)
        super().on_load_checkpoint(checkpoint)

    def run_episodes(self, domain: Domain, episodes: Sequence[Episode], number: int = 0) -> list[EpisodeResult]:
        """Act in every episode."""
        return evaluate(self.start_episodes(domain, episodes), domain, episodes, self.num_evaluation_envs)

    def start_episodes(self, domain: Domain, episodes: Sequence[Episode]) -> Callable[..., NDArray[Any]]:
        """Who acts in ``episodes``: what is drawn at a step is decided by the seeds of run and episode and the step."""
        episode_seeds = np.array([episode.seed for episode in episodes], dtype=np.uint64)
        num_taken = np.zeros(len(episodes), dtype=np.uint64)

        @torch.inference_mode()
        def act(observations: NDArray[Any], rows: list[int], info: dict[str, Any]) -> NDArray[Any]:
            sentences = [episodes[row].instructed.instruction for row in rows]
            scores = self._scores(domain, observations, sentences).cpu()
            luck = uniform_numbers(self._data.seed, episode_seeds[rows], num_taken[rows], self.spec.action_size)
            num_taken[rows] += 1
            return draw_actions(scores, luck, self.temperature).numpy()

        return act

    def _scores(self, domain: Domain, observations: NDArray[Any], sentences: Sequence[str]) -> Tensor:
        """Log-probability of each action's answer, shape (B, A)."""
        pairs = zip(observations, sentences, strict=True)
        conversations = [domain.conversation(observation, sentence) for observation, sentence in pairs]
        return self._language_model.log_probabilities(conversations, domain.action_answers)

    @property
    def _data(self) -> PlanData:
        data: PlanData = self.trainer.datamodule  # type: ignore[attr-defined]
        return data
