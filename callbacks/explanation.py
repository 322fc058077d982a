"""Whether the language model can say what a rollout is for (KALM, figure 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from lightning.pytorch import LightningModule, Trainer

from kalm.callbacks.imagination import ValidatedRollouts
from kalm.core.errors import require
from kalm.core.goal import Goal
from kalm.language.prompts import EXPLANATION, UNSEEN_EXPLANATION
from kalm.llm.grounding.grounded_llm import GroundedLLM
from kalm.runs.loggers import markdown_table, show_table

_ROLLOUTS_AT_ONCE = 50  # of which as many answers are read at once as are tried
_PROMPTS = {"seen": EXPLANATION, "unseen": UNSEEN_EXPLANATION}


class Explanation(ValidatedRollouts):
    """Has held-out real rollouts explained in words, and compares the words with the goal by the goal's own key words.

    Logged: ``explain/seen_prompt_accuracy`` for a prompt of training and ``explain/unseen_prompt_accuracy`` for
    another wording, which shows whether the model understands the task or has learned its prompts by heart; with more
    answers than one ``explain/seen_prompt_best_of_16_accuracy`` and so on, of the answer that best foretells the
    rollout (``kalm/llm/grounding/explaining.py``; ours). TensorBoard also gets a table of the first rollouts.
    """

    def __init__(self, num_examples: int = 5, num_answers: int = 1) -> None:
        """Choose what is shown, and how many answers are tried.

        Args:
            num_examples: Rollouts in the table; 0 writes none.
            num_answers: Answers to each rollout, of which the best is judged beside the likeliest.

        Raises:
            KalmError: If a number is out of range.
        """
        require(num_examples >= 0, "num_examples", num_examples, "0 or more")
        require(num_answers >= 1, "num_answers", num_answers, "1 or more")
        super().__init__()
        self.num_examples, self.num_answers = num_examples, num_answers

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
            accuracies[f"explain/{name}_prompt_accuracy"] = _share_right(goals, texts)
            if self.num_answers > 1:
                best = [text for some in parts for text in model.explain(some, prompt, self.num_answers)]
                accuracies[f"explain/{name}_prompt_best_of_{self.num_answers}_accuracy"] = _share_right(goals, best)
        pl_module.log_dict(accuracies, batch_size=1)
        if self.num_examples:
            columns = ("told", *(f"explained, {name} prompt" for name in _PROMPTS))
            told = [rollout.instruction for rollout in self.real[: self.num_examples]]
            rows = zip(told, *texts_of.values(), strict=False)  # texts of all, told of the first
            show_table(trainer, "explain/examples", markdown_table(columns, rows))


def _share_right(goals: Sequence[Goal], texts: Sequence[str]) -> float:
    return sum(goal.explained_by(text) for goal, text in zip(goals, texts, strict=True)) / len(goals)
