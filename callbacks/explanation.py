"""Whether the language model can say what a rollout is for (KALM, figure 7)."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from kalm.callbacks.markdown_table import markdown_table, show_table
from kalm.core.errors import KalmError
from kalm.core.rollout import Rollout
from kalm.language.prompts import EXPLANATION, UNSEEN_EXPLANATION
from kalm.llm.grounding.grounded_llm import GroundedLLM

_PROMPTS = {"seen": EXPLANATION, "unseen": UNSEEN_EXPLANATION}


class Explanation(Callback):
    """Has held-out real rollouts explained in words, and compares the words with the goal by the domain's own rule.

    Logged: ``explain/seen_prompt_accuracy`` for a prompt of training and ``explain/unseen_prompt_accuracy`` for
    another wording, which shows whether the model understands the task or has learned its prompts by heart.
    TensorBoard also gets a table of what was said of the first rollouts.
    """

    def __init__(self, num_examples: int = 5) -> None:
        """Choose how much to show.

        Args:
            num_examples: Rollouts in the example table; 0 writes none.
        """
        if num_examples < 0:
            raise KalmError(f"explanation: num_examples is {num_examples}; it must be 0 or more")
        self.num_examples = num_examples
        self._num_right: Counter[str] = Counter()
        self._num_rollouts = 0
        self._examples: list[tuple[str, ...]] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last validation."""
        self._num_right.clear()
        self._num_rollouts = 0
        self._examples = []

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
        rollouts: list[Rollout] = outputs.get("real", [])
        if not rollouts:
            return
        domain = trainer.datamodule.domain  # type: ignore[attr-defined]
        goals = [domain.goal_from_json(rollout.goal) for rollout in rollouts]
        texts_of = {name: cast(GroundedLLM, pl_module).explain(rollouts, prompt) for name, prompt in _PROMPTS.items()}
        for name, texts in texts_of.items():
            self._num_right[name] += sum(goal.explained_by(text) for goal, text in zip(goals, texts, strict=True))
        self._num_rollouts += len(rollouts)
        told = [rollout.instruction for rollout in rollouts]
        self._examples += list(zip(told, *texts_of.values(), strict=True))[: self.num_examples - len(self._examples)]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        if trainer.sanity_checking or not self._num_rollouts:
            return
        pl_module.log_dict(
            {f"explain/{name}_prompt_accuracy": self._num_right[name] / self._num_rollouts for name in _PROMPTS},
            batch_size=1,
        )
        if self.num_examples:
            columns = ("told", *(f"explained, {name} prompt" for name in _PROMPTS))
            show_table(trainer, "explain/examples", markdown_table(columns, self._examples))
