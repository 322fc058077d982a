"""What a language model says is read rightly: by its scores or its last word, with doubt where there is some."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kalm.core.errors import DataError, KalmError
from kalm.envs.babyai import BabyAI
from kalm.envs.babyai.goals import goal_from_json
from kalm.judging.language_model_judge import ANSWERS, LanguageModelJudge
from kalm.language.language_model import Question, Reply
from tests.chain_domain import CellGoal, ChainDomain
from tests.data.rollouts import DOMAIN, real_rollouts
from tests.judging.told_chain import ToldChain, says_true_where_named
from tests.language.scripted_model import ScriptedModel

CELLS = np.eye(5, dtype=np.float32)
LEFT_END = CellGoal(0)


def judge(*said: tuple[float, ...] | str | Reply, **options: Any) -> LanguageModelJudge:
    """By a model that says one thing after the other: scores of True, False and NA, or a text."""
    replies = [
        one if isinstance(one, Reply) else Reply(text=one) if isinstance(one, str) else Reply(scores=one)
        for one in said
    ]
    waiting = iter(replies)
    return LanguageModelJudge(ScriptedModel(lambda _: next(waiting)), ToldChain(), **options)


def test_scores_are_read_with_a_margin() -> None:
    """Log-probabilities of True, False and NA; a margin of 1.

    2.0 apart: met, and 1 / (1 + exp(-2)) = 0.8808 sure; the reverse: not met, 0.1192. 0.5 apart: in doubt. Where NA is
    likeliest: in doubt, however far the others are apart.
    """
    said = judge((-0.2, -2.2, -9.0), (-2.2, -0.2, -9.0), (-1.0, -1.5, -9.0), (-2.5, -5.0, -0.1)).judge_states(
        LEFT_END, CELLS[:4]
    )
    assert said.met.tolist() == [True, False, False, False]
    assert said.abstained.tolist() == [False, False, True, True]
    assert said.score.tolist() == pytest.approx([0.8808, 0.1192, 0.0, 0.0], abs=1e-4)


def test_without_a_margin_it_decides_unless_na_is_likeliest() -> None:
    """0.01 apart: True; NA likeliest: in doubt still."""
    said = judge((-1.0, -1.01, -1.5), (-2.0, -2.0, -0.2), margin=0.0).judge_states(LEFT_END, CELLS[:2])
    assert said.met.tolist() == [True, False]
    assert said.abstained.tolist() == [False, True]


def test_the_last_word_of_its_reasoning_counts() -> None:
    """Not the first; no word, and a text that broke off, are no answer."""
    texts = [
        "It would be False if the agent stood elsewhere, but it stands there.\nTrue",
        "True would need the ball. **False**",
        "The state does not tell: NA.",
        "I cannot say. It is untrue, Falsehoods aside.",
        Reply("So far it looks True", is_cut=True),
    ]
    said = judge(*texts, is_reasoning=True).judge_states(LEFT_END, CELLS)
    assert said.met.tolist() == [True, False, False, False, False]
    assert said.abstained.tolist() == [False, False, True, True, True]
    assert said.score.tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_it_is_shown_state_goal_and_rules_and_asked_for_one_of_three() -> None:
    """Scores of three answers by default; a text of so many tokens where it reasons."""
    for is_reasoning in (False, True):
        model = ScriptedModel(lambda _: Reply("True", (-1.0, -3.0, -9.0)))
        asked = LanguageModelJudge(model, ToldChain(), is_reasoning=is_reasoning, max_tokens=99)
        asked.judge_states(LEFT_END, CELLS[2:3])
        (question,) = model.asked
        (_, system), (_, user) = question.messages
        assert ToldChain.rules_in_words in system
        assert all(answer in system for answer in ANSWERS)
        assert user == f"State:\nYou are at the centre.\nGoal: {DOMAIN.instruction_for(LEFT_END)}"
        assert (question.is_scored, question.answers) == (not is_reasoning, () if is_reasoning else ANSWERS)
        assert question.max_tokens == (99 if is_reasoning else Question((("user", "x"),)).max_tokens)
        assert question.temperature == 0


def test_a_goal_without_a_sentence_is_not_asked_about() -> None:
    """There is nothing to ask; nor is there without a state."""
    asked = judge()
    nowhere = CellGoal(17)
    assert asked.judge_states(nowhere, CELLS).abstained.all()
    assert len(asked.judge_states(LEFT_END, CELLS[:0])) == 0


def test_a_rollout_meets_its_goal_where_one_of_its_states_does() -> None:
    """As the rule says, by a model that reads rightly."""
    rollouts = real_rollouts(10)
    goals = [DOMAIN.goal_from_json(rollout.goal) for rollout in rollouts]
    said = LanguageModelJudge(ScriptedModel(says_true_where_named), ToldChain()).judge(goals, rollouts)
    assert said.met.tolist() == [rollout.is_success for rollout in rollouts]


def test_its_provenance_says_who_was_asked_and_how() -> None:
    """Model, words and margin decide; it is no oracle."""
    facts = [
        judge().provenance,
        judge(margin=2.0).provenance,
        judge(is_reasoning=True).provenance,
        judge(is_reasoning=True, max_tokens=9).provenance,
    ]
    assert all(one != other for place, one in enumerate(facts) for other in facts[:place])
    assert facts[0]["model"] == {"kind": "scripted", "model": "scripted"}
    assert facts[0]["prompt_sha256"] != facts[2]["prompt_sha256"]
    assert "is_oracle" not in facts[0]


def test_what_cannot_be_judged_is_refused_at_once() -> None:
    """A world without words, a margin below zero."""
    with pytest.raises(DataError, match="chain does not tell its states in words"):
        LanguageModelJudge(ScriptedModel(), ChainDomain())
    with pytest.raises(KalmError, match="margin is -1"):
        judge(margin=-1)
    with pytest.raises(KalmError, match="max_tokens is 0"):
        judge(max_tokens=0)


def test_babyai_tells_the_rules_that_its_goals_have() -> None:
    """Every kind of goal is in the rules; sizes are the grid's."""
    world = BabyAI(room_size=5, num_rows=1, num_cols=2, num_training_grids=1, num_test_grids=1)
    assert "9 by 5 tiles" in world.rules_in_words
    for words in ("pick up", "go to a thing", "open a door", "put a thing next to", "go to a tile"):
        assert words in world.rules_in_words
    state = world.places("train").grids[0].random_state(np.random.default_rng(0))
    goal = next(row.goal for row in world.instructed_goals("train"))
    model = ScriptedModel(lambda _: Reply(scores=(-1.0, -3.0, -9.0)))
    said = LanguageModelJudge(model, world).judge_states(goal_from_json(goal.to_json()), state[None])
    assert said.met.all()
    assert "The agent is facing" in model.asked[0].messages[1][1]
