"""The grounded model as a judge of rollouts: what was told is told apart from what was not, without any rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lightning
import numpy as np
import pytest

from kalm.core.errors import CheckpointError, KalmError
from kalm.core.goal import Goal
from kalm.core.rollout import Rollout
from kalm.llm.grounding.grounded_llm import GroundedLLM
from kalm.llm.grounding.rollout_judges import ContrastJudge, ExplanationJudge
from kalm.runs.checkpoint_io import VerifiedCheckpointIO
from tests.data.rollouts import DOMAIN
from tests.llm.models import chain_grounding_data, tiny_backbone
from tests.rl.helpers import trainer

SIZES = {"backbone": tiny_backbone(), "inner_size": 32, "domain": DOMAIN}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model grounded in the chain for a few seconds."""
    folder = tmp_path_factory.mktemp("judge")
    data = chain_grounding_data(folder)
    lightning.seed_everything(0, verbose=False)
    model = GroundedLLM(
        data.spec, tiny_backbone(), inner_size=32, learning_rate=5e-3, warmup_updates=20, schedule_updates=250
    )
    run = trainer(folder, max_steps=250, plugins=[VerifiedCheckpointIO()])
    run.fit(model, datamodule=data)
    run.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


@pytest.fixture(scope="module")
def told() -> tuple[list[Rollout], list[Rollout]]:
    """Walks of the expert, and the same walks under the instruction of another goal."""
    right = list(DOMAIN.collect(60, seed=9))
    rows = DOMAIN.instructed_goals("train")
    wrong = []
    for made in right:
        other = next(row for row in rows if row.goal.to_json() != made.goal)
        wrong.append(replace(made, goal=other.goal.to_json(), instruction=other.instruction))
    return right, wrong


def goals_of(rollouts: list[Rollout]) -> list[Goal | None]:
    """The goal that each was told."""
    return [DOMAIN.goal_from_json(made.goal) for made in rollouts]


def test_a_rollout_is_likelier_under_its_own_instruction(
    checkpoint: Path, told: tuple[list[Rollout], list[Rollout]]
) -> None:
    """Most that do as they are told, by an expert who errs three times in ten, and few of the others; so do scores."""
    judge = ContrastJudge(checkpoint=str(checkpoint), margin=0.0, **SIZES)
    right, wrong = (judge.judge(goals_of(rollouts), rollouts) for rollouts in told)
    assert right.met.mean() > 0.8
    assert wrong.met.mean() < 0.2
    assert np.array_equal(right.met, right.score >= 0.5)
    assert judge.provenance["margin"] == 0.0
    assert "is_oracle" not in judge.provenance


def test_a_larger_margin_calls_fewer_met(checkpoint: Path, told: tuple[list[Rollout], list[Rollout]]) -> None:
    """Always a part of those of a smaller one."""
    met = [
        ContrastJudge(checkpoint=str(checkpoint), margin=margin, **SIZES).judge(goals_of(told[0]), told[0]).met
        for margin in (0.0, 0.3)
    ]
    assert (met[1] <= met[0]).all()
    assert met[1].sum() < met[0].sum()


def test_a_verdict_does_not_depend_on_what_else_is_judged(
    checkpoint: Path, told: tuple[list[Rollout], list[Rollout]]
) -> None:
    """Together or alone, up to rounding; a rollout that was told nothing is not judged."""
    judge = ContrastJudge(checkpoint=str(checkpoint), **SIZES)
    together = judge.judge(goals_of(told[0]), told[0])
    for row in (0, 7):
        alone = judge.judge(goals_of(told[0])[row : row + 1], told[0][row : row + 1])
        assert alone.score[0] == pytest.approx(together.score[row], abs=1e-4)
    silent = replace(told[0][0], goal={}, instruction="", goal_split="")
    assert judge.judge([None], [silent]).abstained.tolist() == [True]


def test_an_explanation_names_the_goal_or_not(checkpoint: Path, told: tuple[list[Rollout], list[Rollout]]) -> None:
    """Of walks that were told so, and of the same walks told otherwise."""
    judge = ExplanationJudge(checkpoint=str(checkpoint), num_answers=2, **SIZES)
    right, wrong = (judge.judge(goals_of(rollouts), rollouts).met.mean() for rollouts in told)
    assert right > 0.9
    assert wrong < 0.1
    assert judge.judge([None], told[0][:1]).abstained.tolist() == [True]


def test_what_cannot_judge_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """No checkpoint, one of another model, nobody to contrast with."""
    with pytest.raises(CheckpointError, match="judge.init_args.checkpoint"):
        ContrastJudge(checkpoint=str(tmp_path / "none"), **SIZES)
    other = {**SIZES, "backbone": tiny_backbone(num_layers=1)}
    with pytest.raises(CheckpointError, match="another (backbone|model)"):
        ContrastJudge(checkpoint=str(checkpoint), **other)
    with pytest.raises(KalmError, match="num_others is 0"):
        ContrastJudge(checkpoint=str(checkpoint), num_others=0, **SIZES)
