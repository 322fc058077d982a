"""The contract of judges, for every judge that there is: shapes, ranges, equal answers, what they abstain on."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import kalm.judging
from kalm.core.errors import DataError, KalmError
from kalm.core.rollout import Rollout
from kalm.envs.base import Domain
from kalm.judging.dynamics_veto import OffLearnedDynamics, Unconfirmed
from kalm.judging.judge import DomainRule, Judge, Verdict, verdict
from kalm.judging.language_model_judge import LanguageModelJudge
from kalm.judging.noisy_judge import NoisyJudge
from kalm.judging.proxy_judge import ProxyJudge
from tests.chain_domain import CELL_NAMES
from tests.data.rollouts import DOMAIN, broken, imagined_rollouts, real_rollouts
from tests.judging.told_chain import ToldChain, says_true_where_named
from tests.language.scripted_model import ScriptedModel


class TwoWorlds:
    """A model that believes steps to the next cell, and one of whose two worlds confirms every success."""

    error_limit = 0.5
    num_members = 2

    def errors(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        """Cells jumped over."""
        return (next_observation.argmax(-1) - observation.argmax(-1)).abs().float() - 1

    def num_confirming(self, domain: Domain, rollouts: Sequence[Rollout]) -> NDArray[np.int64]:
        """One, or none."""
        return np.array([int(rollout.is_success) for rollout in rollouts])


class NamedCell:
    """A network that reads which cell a sentence names."""

    def probability(self, instruction: str, states: NDArray[Any]) -> NDArray[np.float32]:
        """How much a state is that cell."""
        (cell,) = (number for number, name in enumerate(CELL_NAMES) if name in instruction)
        found: NDArray[np.float32] = states[:, cell].astype(np.float32)
        return found

    def threshold(self, task: str) -> float | None:
        """It never learned the centre."""
        return None if task == "centre" else 0.5


FACTORIES: dict[type[Judge], Callable[[], Judge]] = {
    DomainRule: lambda: DomainRule(DOMAIN),
    LanguageModelJudge: lambda: LanguageModelJudge(ScriptedModel(says_true_where_named), ToldChain()),
    NoisyJudge: lambda: NoisyJudge(DomainRule(DOMAIN), 0.3, 0.3, 0.1, seed=1),
    OffLearnedDynamics: lambda: OffLearnedDynamics(TwoWorlds(), {"sha256": "ab"}),
    ProxyJudge: lambda: ProxyJudge(NamedCell(), DOMAIN, {"checkpoint_sha256": "ab"}),
    Unconfirmed: lambda: Unconfirmed(TwoWorlds(), DOMAIN, 1, {"sha256": "ab"}),
}
AIMLESS = broken(real_rollouts(1)[0], goal={}, instruction="", goal_split="", is_success=False)
ROLLOUTS = [*real_rollouts(10), *imagined_rollouts(20, "easy"), AIMLESS]
GOALS = [DOMAIN.goal_from_json(rollout.goal) if rollout.goal else None for rollout in ROLLOUTS]


def judges() -> list[type[Judge]]:
    """Every judge of the package that can be made."""
    modules = [
        importlib.import_module(f"kalm.judging.{found.name}") for found in pkgutil.iter_modules(kalm.judging.__path__)
    ]
    classes = {kind for module in modules for _, kind in inspect.getmembers(module, inspect.isclass)}
    found = [kind for kind in classes if issubclass(kind, Judge) and not inspect.isabstract(kind)]
    return sorted(found, key=lambda kind: kind.__name__)


def test_every_judge_is_under_the_contract() -> None:
    """A new one needs a line in ``FACTORIES``."""
    assert judges() == sorted(FACTORIES, key=lambda kind: kind.__name__)
    assert len(judges()) >= 3


@pytest.mark.parametrize("kind", judges(), ids=lambda kind: kind.__name__)
def test_a_judge_keeps_the_contract(kind: type[Judge]) -> None:
    """Equal answers to equal questions, however many are asked at once; plain facts; states of shape (S,)."""
    judge = FACTORIES[kind]()
    said = judge.judge(GOALS, ROLLOUTS)
    assert len(said) == len(ROLLOUTS)
    assert (said.num_marked is not None) == judge.is_veto
    assert json.loads(json.dumps(judge.provenance)) == judge.provenance
    assert "judge" in judge.provenance
    again = [judge.judge([goal], [rollout]) for goal, rollout in zip(GOALS, ROLLOUTS, strict=True)]
    for field in ("met", "score", "abstained", *(["num_marked"] if judge.is_veto else [])):
        assert getattr(said, field).tolist() == [getattr(one, field).item() for one in again]
    assert said.met.any()
    assert not said.met.all()
    assert len(judge.judge([], [])) == 0
    states = ROLLOUTS[0].observations
    of_states = judge.judge_states(DOMAIN.instructed_goals("train")[0].goal, states)
    assert len(of_states) == len(states)
    backwards = judge.judge_states(DOMAIN.instructed_goals("train")[0].goal, states[::-1])
    assert backwards.met.tolist() == of_states.met.tolist()[::-1]
    if not judge.is_veto:
        assert said.abstained[-1]  # without a goal there is nothing to say


def test_the_rule_says_what_the_simulator_says() -> None:
    """Of rollouts whether the goal came true, of states where it holds; and that it is the oracle."""
    judge = DomainRule(DOMAIN)
    assert judge.judge(GOALS, ROLLOUTS).met.tolist() == [rollout.is_success for rollout in ROLLOUTS]
    states = np.eye(5, dtype=np.float32)
    assert judge.judge_states(DOMAIN.goal_from_json({"type": "cell", "cell": 3}), states).met.tolist() == [
        0,
        0,
        0,
        1,
        0,
    ]
    assert judge.provenance["is_oracle"]


def test_a_noisy_judge_errs_as_often_as_it_says() -> None:
    """Of 8,000 different states half meet the goal; each rate within three standard errors of a share of 4,000.

    The largest error is 3 * sqrt(0.2 * 0.8 / 4000) = 0.019. What is withheld is withheld from both halves.
    """
    cells = np.tile([0, 1], 4000)
    states = np.eye(5, dtype=np.float32)[cells]
    states[:, 4] = np.arange(8000) / 10000  # so that no two questions are equal
    goal = DOMAIN.goal_from_json({"type": "cell", "cell": 0})
    said = NoisyJudge(DomainRule(DOMAIN), 0.05, 0.2, seed=3).judge_states(goal, states)
    assert (~said.met[cells == 0]).mean() == pytest.approx(0.2, abs=0.019)
    assert said.met[cells == 1].mean() == pytest.approx(0.05, abs=0.019)
    assert said.score.tolist() == said.met.tolist()
    shy = NoisyJudge(DomainRule(DOMAIN), abstention_rate=0.2, seed=3).judge_states(goal, states)
    assert shy.abstained.mean() == pytest.approx(0.2, abs=0.014)
    assert (shy.met | shy.abstained)[cells == 0].all()
    other = NoisyJudge(DomainRule(DOMAIN), 0.05, 0.2, seed=4).judge_states(goal, states)
    assert (other.met != said.met).any()
    judge = NoisyJudge(DomainRule(DOMAIN), 0.05, seed=4)
    assert judge.name == "noisy_domain_rule"
    assert judge.provenance["of"] == DomainRule(DOMAIN).provenance
    assert (judge.provenance["false_positive_rate"], judge.provenance["is_oracle"]) == (0.05, True)
    with pytest.raises(KalmError, match=r"false_negative_rate is 1.5; it must be in \[0, 1\]"):
        NoisyJudge(DomainRule(DOMAIN), false_negative_rate=1.5)


def test_a_proxy_abstains_on_what_it_never_learned() -> None:
    """It answers about an end, and not about the centre."""
    judge, states = ProxyJudge(NamedCell(), DOMAIN, {}), np.eye(5, dtype=np.float32)
    end, centre = (DOMAIN.goal_from_json({"type": "cell", "cell": cell}) for cell in (4, 2))
    assert judge.judge_states(end, states).met.tolist() == [False] * 4 + [True]
    assert judge.judge_states(centre, states).abstained.all()


def test_vetoes_mark_jumps_and_what_too_few_worlds_confirm() -> None:
    """Each third walk jumps once over a cell or two; one of two worlds confirms, two are asked for."""
    steps = OffLearnedDynamics(TwoWorlds(), {}).judge(GOALS, ROLLOUTS)
    expected = [int((np.abs(np.diff(r.observations.argmax(-1))) > 1).sum()) for r in ROLLOUTS]
    assert steps.num_marked is not None
    assert steps.num_marked.tolist() == expected
    assert any(expected)
    successes = Unconfirmed(TwoWorlds(), DOMAIN, 2, {}).judge(GOALS, ROLLOUTS)
    assert successes.num_marked is not None
    assert successes.num_marked.tolist() == [rollout.is_success for rollout in ROLLOUTS]
    assert set(successes.score[~successes.abstained].tolist()) == {0.5}
    assert Unconfirmed(TwoWorlds(), DOMAIN, 1, {}).judge(GOALS, ROLLOUTS).met.tolist() == [
        r.is_success for r in ROLLOUTS
    ]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"met": np.zeros(2)}, "met: float64"),
        ({"score": np.zeros(3, np.float32)}, r"score: float32 of shape \(3,\), expected float32 of shape \(2,\)"),
        ({"score": np.array([0.5, 1.5], np.float32)}, r"score: not in \[0, 1\]"),
        ({"score": np.array([0.5, np.nan], np.float32)}, r"score: not in \[0, 1\]"),
        ({"met": np.ones(2, bool), "abstained": np.ones(2, bool)}, "abstained: True where"),
        ({"num_marked": np.zeros(2)}, "num_marked: float64"),
    ],
)
def test_what_is_no_verdict_is_refused(fields: dict[str, Any], problem: str) -> None:
    """Types, shapes and ranges; and whoever abstains says nothing."""
    sound = {"met": np.zeros(2, bool), "score": np.zeros(2, np.float32), "abstained": np.zeros(2, bool)}
    with pytest.raises(DataError, match=problem):
        Verdict(**{**sound, **fields})


def test_a_verdict_scores_as_it_says() -> None:
    """1 or 0 without a score; where the judge abstains, 0 and not met whatever was computed."""
    said = verdict([True, False, True], abstained=[False, False, True])
    assert said.met.tolist() == [True, False, False]
    assert said.score.tolist() == [1.0, 0.0, 0.0]
    assert torch.from_numpy(said.score).dtype == torch.float32
