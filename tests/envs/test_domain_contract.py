"""Every domain under kalm/envs keeps the contract that learning relies on, and breaches of it are seen.

Domains are found by looking, not listed.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import kalm.envs
from kalm.core.errors import DataError
from kalm.core.goal import InstructedGoal
from kalm.envs.base import Domain
from kalm.envs.contract import check_domain
from kalm.envs.simulation import MAX_COLLECTION_SEED
from tests.chain_domain import CellGoal, ChainDomain, ChainVectorEnv, one_hot, step
from tests.line_domain import LineDomain


def domains() -> list[type[Domain]]:
    """Every concrete domain in a package under kalm/envs."""
    found = set()
    for module in pkgutil.iter_modules(kalm.envs.__path__):
        if module.ispkg:
            package = importlib.import_module(f"kalm.envs.{module.name}")
            members = (member for _, member in inspect.getmembers(package, inspect.isclass))
            found |= {m for m in members if issubclass(m, Domain) and not inspect.isabstract(m)}
    return sorted(found, key=lambda domain: domain.name)


@pytest.fixture(params=domains(), ids=lambda domain: domain.name, scope="module")
def domain(request: pytest.FixtureRequest) -> Domain:
    """Each domain with its defaults."""
    return request.param()


def test_every_package_under_envs_has_a_domain() -> None:
    """The search finds one domain for each package, KALM's two and TEDUO's first among them."""
    packages = [module.name for module in pkgutil.iter_modules(kalm.envs.__path__) if module.ispkg]
    assert [domain.name for domain in domains()] == sorted(packages)
    assert {"babyai", "clevr_robot", "metaworld"} <= set(packages)


def test_domain_keeps_the_contract(domain: Domain) -> None:
    """Nothing is wrong with it."""
    assert check_domain(domain) == []


@pytest.mark.parametrize("domain", [ChainDomain(), LineDomain()], ids=["chain", "line"])
def test_the_worlds_of_the_tests_keep_it_too(domain: Domain) -> None:
    """Discrete and continuous actions, with symmetries and without."""
    assert check_domain(domain) == []


def chain_with(**changed: Any) -> Domain:
    """The chain with another simulator: methods of it, by name."""

    class Env(ChainVectorEnv):
        pass

    for name, method in changed.items():
        setattr(Env, name, method)

    class World(ChainDomain):
        def make_vector_env(self, num_envs: int, num_threads: int | None = None) -> ChainVectorEnv:
            return Env(self, num_envs)

    return World()


def spoiled(change: Callable[[list[Any]], Any]) -> Callable[..., Any]:
    """A ``step`` whose observation, reward, terminated, truncated and info are changed before they are returned."""

    def step(self: ChainVectorEnv, actions: Any) -> Any:
        parts = list(ChainVectorEnv.step(self, actions))
        change(parts)
        return tuple(parts)

    return step


def _late(self: ChainVectorEnv, row: int, *begin: Any) -> None:
    ChainVectorEnv._begin(self, row, *begin)
    self._max_steps[row] += 1


def _by_row(self: ChainVectorEnv, row: int, rng: np.random.Generator, goal: CellGoal, goal_split: str) -> Any:
    return one_hot(np.array([cell for cell in range(5) if cell != goal.cell][row % 4]))


def _start_of(goal: CellGoal) -> Any:
    return one_hot(np.array(1 + (goal.cell == 1)))


def _shared(self: ChainVectorEnv, rows: Any, actions: Any) -> Any:
    self.luck = getattr(self, "luck", np.random.default_rng(0))
    return one_hot(step(self._observation[rows].argmax(-1), np.where(self.luck.random(len(rows)) < 0.5, 0, actions)))


class RewoundEnv(ChainVectorEnv):
    """Copies of it begin at the left end."""

    def __getstate__(self) -> dict[str, Any]:
        """All but where the episodes are."""
        return {**super().__getstate__(), "_observation": one_hot(np.zeros(self.num_envs, dtype=int))}


class Rewound(ChainDomain):
    """The chain of such environments."""

    def make_vector_env(self, num_envs: int, num_threads: int | None = None) -> ChainVectorEnv:
        """Whose copies forget."""
        return RewoundEnv(self, num_envs)


class Twice(ChainDomain):
    """A sentence of the training split is tested on."""

    def instructed_goals(self, goal_split: str) -> list[InstructedGoal]:
        """With the first training sentence in the hard split."""
        first = super().instructed_goals("train")[0]
        return super().instructed_goals(goal_split) + [
            InstructedGoal(first.goal, first.instruction.upper(), "hard")
        ] * (goal_split == "hard")


class OtherGoals(ChainDomain):
    """The hard split is said to be the easy one in words that are kept for the test."""

    unseen_splits = {"hard": "easy"}


class Telling(ChainDomain):
    """Paraphrases in the words that are kept for the test."""

    unseen_splits = {"rephrase": "train"}

    def paraphrases(self, instructed: InstructedGoal) -> list[str]:
        """Those of the split."""
        return [row.instruction.upper() for row in self.instructed_goals("rephrase") if row.goal == instructed.goal]


class Unsettled(ChainDomain):
    """Paraphrases that change."""

    def paraphrases(self, instructed: InstructedGoal) -> list[str]:
        """Others each time."""
        self.asked = getattr(self, "asked", 0) + 1
        return [f"{instructed.instruction}, {self.asked}"]


class Forgetful(ChainDomain):
    """JSON gives back another goal."""

    def goal_from_json(self, data: Any) -> CellGoal:
        """Always the same one."""
        return CellGoal(0)


class Unmarked(ChainDomain):
    """It marks less than it names."""

    def plausibility(self, observation: Any, action: Any, next_observation: Any) -> dict[str, Any]:
        """Jumps only."""
        return {"jumped": super().plausibility(observation, action, next_observation)["jumped"]}


class Restless(ChainDomain):
    """Rollouts depend on where a collection begins."""

    def collect(self, num_rollouts: int, seed: int, first: int = 0, mistake_rate: float = 0.3) -> Any:
        """Numbers count from the first."""
        return super().collect(num_rollouts - first, seed + first, 0, mistake_rate)


@dataclass(frozen=True)
class SumGoal(CellGoal):
    """Its reward mixes the rows of a batch."""

    def reward(self, observation: Any, action: Any, next_observation: Any) -> Any:
        """Of all steps together."""
        return np.full(len(action), float(np.sum(action)))


class Mixed(ChainDomain):
    """The chain of such goals."""

    goal_class = SumGoal


@pytest.mark.parametrize(
    ("domain", "sentence"),
    [
        (chain_with(_begin=_late), "step 12 of 12 is truncated False"),
        (chain_with(step=spoiled(lambda parts: parts[3].__ior__(parts[2]))), "terminated True"),
        (chain_with(step=spoiled(lambda parts: parts[1].__imul__(2))), "earns 2.0, and the goal says 1.0"),
        (chain_with(_lay_out=_by_row), "rows: the episode in row 1 of 3 is not what it is alone"),
        (chain_with(_simulate=_shared), "seeds: two episodes under one seed and the same actions differ"),
        (
            chain_with(_lay_out=lambda self, row, rng, goal, split: _start_of(goal)),
            "all begin alike",
        ),
        (chain_with(_restore=lambda self, row, goal, seen: one_hot(np.array(2))), "shows another one"),
        (Rewound(), "a deep copy of RewoundEnv goes on otherwise"),
        (Twice(), "is in the split 'train' too"),
        (OtherGoals(), "the split 'hard' has not the goals of 'easy'"),
        (Telling(), "is in the split 'rephrase', whose words the test keeps"),
        (Unsettled(), "are not the same when they are asked for again"),
        (Forgetful(), "is another goal after to_json"),
        (Unmarked(), "plausibility marks ['jumped'"),
        (Restless(), "depends on more than the seed and its number"),
        (Mixed(), "reward of a batch is not that of its rows"),
    ],
)
def test_a_breach_is_told_in_a_sentence(domain: Domain, sentence: str) -> None:
    """Truncation a step late, both ends at once, a reward of its own, chance shared by rows, and so on."""
    problems = check_domain(domain)
    assert any(sentence in problem for problem in problems), problems


def test_reset_seeds_of_a_collection_stay_clear_of_evaluation(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    """No rollout begins from a seed at or above the offset that evaluation begins at; some worlds reset nothing."""
    used: list[int] = []
    real_make = type(domain).make_vector_env
    vector_class = type(real_make(domain, 1, 1))
    real_reset = vector_class.reset

    def reset(self: gym.vector.VectorEnv, *, seed: list[int], options: dict) -> tuple:
        used.extend(seed)
        return real_reset(self, seed=seed, options=options)

    monkeypatch.setattr(vector_class, "reset", reset)
    assert len(list(islice(domain.collect(20, seed=123), 20))) == 20
    assert len(used) == (20 if type(domain).collect is Domain.collect else 0)
    assert max(used, default=0) < MAX_COLLECTION_SEED


def test_reads_a_users_goals(domain: Domain, tmp_path: Path) -> None:
    """A JSON-lines file of a user gives the goals it names, in order."""
    path = tmp_path / "goals.jsonl"
    known = domain.instructed_goals(domain.goal_splits[-1])[::7]
    wanted = [InstructedGoal(row.goal, "in my words", row.goal_split) for row in known]
    path.write_text("\n\n".join(json.dumps(row.to_json()) for row in wanted), encoding="utf-8")
    assert domain.load_instructed_goals(path) == wanted


def test_names_every_bad_line_of_a_users_goals(domain: Domain, tmp_path: Path) -> None:
    """One error lists each malformed line with its number."""
    path = tmp_path / "goals.jsonl"
    good = json.dumps(domain.instructed_goals(domain.training_split)[0].to_json())
    no_goal = json.dumps({"instruction": "x", "goal_split": "train"})
    bad_split = json.dumps({**json.loads(good), "goal_split": "tough"})
    bad_goal = json.dumps({**json.loads(good), "goal": {"goal": "nonsense"}})
    path.write_text("\n".join([good, "{", no_goal, bad_split, bad_goal]), encoding="utf-8")
    with pytest.raises(DataError) as error:
        domain.load_instructed_goals(path)
    message = str(error.value)
    assert "line 1:" not in message
    assert all(f"line {number}:" in message for number in (2, 3, 4, 5))
    assert domain.goal_splits[1] in message, "an unknown split is answered with the known ones"
