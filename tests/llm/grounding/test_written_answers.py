"""Explanations that are written together are those that each rollout would get alone."""

from __future__ import annotations

import pytest

from kalm.data.language_batches import GroundingTask, batch_rollouts
from kalm.llm.grounding.reading import read_rollouts, write_answers
from tests.data.rollouts import real_rollouts
from tests.llm.models import grounded_llm

PROMPTS = ["explain", "explain this", "please explain this one to me now"] * 4


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_answers_do_not_depend_on_what_else_is_explained(seed: int) -> None:
    """Rollouts and prompts of many lengths, beside each other and one by one."""
    model, rollouts = grounded_llm(seed=seed), real_rollouts(12)
    assert len({len(rollout) for rollout in rollouts}) > 3
    together = write_answers(model.backbone, model.codec, batch_rollouts(rollouts, PROMPTS, GroundingTask.EXPLANATION))
    for rollout, prompt, answer in zip(rollouts, PROMPTS, together, strict=True):
        alone = batch_rollouts([rollout], [prompt], GroundingTask.EXPLANATION)
        assert write_answers(model.backbone, model.codec, alone) == [answer]


def test_what_is_written_is_what_training_would_have_called_likeliest() -> None:
    """Every token of the answers, against one pass over prompt, rollout and answer."""
    model, rollouts = grounded_llm(), real_rollouts(12)
    batch = batch_rollouts(rollouts, PROMPTS, GroundingTask.EXPLANATION)
    answers = write_answers(model.backbone, model.codec, batch)
    hidden = read_rollouts(model.backbone, model.codec, batch._replace(answers=answers))
    likeliest = model.backbone.text_logits(hidden.text).argmax(dim=-1)
    num_tokens = sum(len(model.backbone.tokenize(answer)) for answer in answers)
    assert num_tokens >= len(answers)
    assert likeliest[:num_tokens].tolist() == hidden.text_target[:num_tokens].tolist()
