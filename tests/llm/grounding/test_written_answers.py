"""Explanations that are written together are those that each rollout would get alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kalm.data.language_batches import GroundingBatch, GroundingTask, batch_rollouts
from kalm.language.prompts import generation_prompt
from kalm.llm.grounding.explaining import best_answers, foretelling, write_answers
from kalm.llm.grounding.reading import read_rollouts
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
    hidden = read_rollouts(model.backbone, model.codec, batch._replace(answers=[answer for (answer,) in answers]))
    likeliest = model.backbone.text_logits(hidden.text).argmax(dim=-1)
    num_tokens = sum(len(model.backbone.tokenize(answer)) for (answer,) in answers)
    assert num_tokens >= len(answers)
    assert likeliest[:num_tokens].tolist() == hidden.text_target[:num_tokens].tolist()


def test_the_first_of_several_answers_is_the_likeliest_and_others_are_drawn() -> None:
    """By the seed; the likeliest is what is written alone."""
    model = grounded_llm()
    batch = batch_rollouts(real_rollouts(12), PROMPTS, GroundingTask.EXPLANATION)
    alone = write_answers(model.backbone, model.codec, batch)
    several, again, others = (
        write_answers(model.backbone, model.codec, batch, num_answers=4, seed=seed) for seed in (0, 0, 1)
    )
    assert [answers[:1] for answers in several] == alone
    assert several == again != others
    assert len({answer for answers in several for answer in answers}) > len({answer for (answer,) in alone})


def test_foretelling_adds_up_actions_and_the_end() -> None:
    """Against the logits of one rollout: each action's log-probability, that it goes on, and that it ends at last."""
    model, rollout = grounded_llm(), real_rollouts(3)[2]
    batch = batch_rollouts([rollout], ["walk"], GroundingTask.GENERATION)
    with torch.inference_mode():
        hidden = read_rollouts(model.backbone, model.codec, batch)
        actions = model.codec.predict_action(hidden.observation).log_softmax(-1)
        ends = [model.codec.predict_end(part).sigmoid() for part in (hidden.observation, hidden.final)]
    expected = sum(float(row[action]) for row, action in zip(actions, rollout.actions.tolist(), strict=True))
    expected += float((1 - ends[0]).log().sum() + ends[1].log().sum())
    assert foretelling(model.backbone, model.codec, batch).tolist() == pytest.approx([expected], rel=1e-5)


def test_the_answer_that_foretells_best_is_chosen() -> None:
    """Whatever its place among the answers, and an empty one does no harm."""
    model, rollouts = grounded_llm(), real_rollouts(4)
    said = ["go to the left end", "", "walk on", "go to the right end"]

    def ask(some: Any, prompts: Any, task: GroundingTask) -> GroundingBatch:
        return batch_rollouts(list(some), list(prompts), task)

    found = best_answers(model.backbone, model.codec, ask, rollouts, [said] * 4)

    for rollout, best in zip(rollouts, found, strict=True):
        prompts = [generation_prompt(answer or "nothing") for answer in said]
        scores = foretelling(model.backbone, model.codec, ask([rollout] * 4, prompts, GroundingTask.GENERATION))
        assert best == said[int(scores.argmax())]
