"""Whether the language model can say what a rollout is for (KALM, figure 7)."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from kalm.language.prompts import EXPLANATION, UNSEEN_EXPLANATION
from kalm.llm.grounded_llm import GroundedLLM

_PROMPTS = {"seen": EXPLANATION, "unseen": UNSEEN_EXPLANATION}


class Explanation(Callback):
    """Has held-out real rollouts explained in words, and compares the words with the goal by the domain's own rule.

    Logged: ``explain/seen_prompt_accuracy`` for the prompt of training and ``explain/unseen_prompt_accuracy`` for
    another wording, which shows whether the model understands the task or has learned its prompt by heart.
    """

    def __init__(self) -> None:
        """Take no options."""
        self._num_right: Counter[str] = Counter()
        self._num_rollouts = 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last validation."""
        self._num_right.clear()
        self._num_rollouts = 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Explain the real rollouts of a batch."""
        rollouts = outputs.get("real", [])
        domain = trainer.datamodule.domain  # type: ignore[attr-defined]
        goals = [domain.goal_from_json(rollout.goal) for rollout in rollouts]
        for name, prompt in _PROMPTS.items():
            texts = cast(GroundedLLM, pl_module).explain(rollouts, prompt) if rollouts else []
            self._num_right[name] += sum(domain.explains(goal, text) for goal, text in zip(goals, texts, strict=True))
        self._num_rollouts += len(rollouts)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        if trainer.sanity_checking or not self._num_rollouts:
            return
        pl_module.log_dict(
            {f"explain/{name}_prompt_accuracy": self._num_right[name] / self._num_rollouts for name in _PROMPTS},
            batch_size=1,
        )
