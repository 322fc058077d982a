"""Whether the language model can say what a rollout is for (KALM, figure 7)."""

from __future__ import annotations

from typing import cast

from lightning.pytorch import LightningModule, Trainer

from kalm.callbacks.imagination import ValidatedRollouts
from kalm.core.errors import require
from kalm.language.prompts import EXPLANATION, UNSEEN_EXPLANATION
from kalm.llm.grounding.grounded_llm import GroundedLLM
from kalm.runs.loggers import markdown_table, show_table

_ROLLOUTS_AT_ONCE = 128
_PROMPTS = {"seen": EXPLANATION, "unseen": UNSEEN_EXPLANATION}


class Explanation(ValidatedRollouts):
    """Has held-out real rollouts explained in words, and compares the words with the goal by the goal's own key words.

    Logged: ``explain/seen_prompt_accuracy`` for a prompt of training and ``explain/unseen_prompt_accuracy`` for
    another wording, which shows whether the model understands the task or has learned its prompts by heart.
    TensorBoard also gets a table of what was said of the first rollouts.
    """

    def __init__(self, num_examples: int = 5) -> None:
        """Show so many rollouts in the table; 0 writes none."""
        require(num_examples >= 0, "num_examples", num_examples, "0 or more")
        super().__init__()
        self.num_examples = num_examples

    def report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Explain the real rollouts."""
        if not self.real:
            return
        domain = trainer.datamodule.domain  # type: ignore[attr-defined]
        model = cast(GroundedLLM, pl_module)
        goals = [domain.goal_from_json(rollout.goal) for rollout in self.real]
        starts = range(0, len(self.real), _ROLLOUTS_AT_ONCE)
        parts = [self.real[start : start + _ROLLOUTS_AT_ONCE] for start in starts]
        texts_of, accuracies = {}, {}
        for name, prompt in _PROMPTS.items():
            texts = texts_of[name] = [text for some in parts for text in model.explain(some, prompt)]
            num_right = sum(goal.explained_by(text) for goal, text in zip(goals, texts, strict=True))
            accuracies[f"explain/{name}_prompt_accuracy"] = num_right / len(goals)
        pl_module.log_dict(accuracies, batch_size=1)
        if self.num_examples:
            columns = ("told", *(f"explained, {name} prompt" for name in _PROMPTS))
            told = [rollout.instruction for rollout in self.real[: self.num_examples]]
            rows = zip(told, *texts_of.values(), strict=False)  # texts of all, told of the first
            show_table(trainer, "explain/examples", markdown_table(columns, rows))
