"""A resumed run goes on with the data it began with: every argument of every data module decides, or is said not to."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import shutil
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningDataModule
from tensordict import TensorDict

import kalm.data
from kalm.core.errors import CheckpointError
from kalm.data import rollout_sources
from kalm.data.choice import RolloutFilter
from kalm.data.evaluation_episodes import EvaluationEpisodes
from kalm.data.general_text import GeneralTextSource
from kalm.data.goal_data import GoalData
from kalm.data.grounding_data import GroundingData, GroundingTasks
from kalm.data.label_data import LabelData
from kalm.data.plan_data import PlanData, Plans
from kalm.data.policy_data import PolicyData
from kalm.data.return_conditioned_data import ReturnConditionedData
from kalm.data.rollout_data import RolloutData
from kalm.data.rollout_sources import ImaginedRollouts, RealRollouts
from kalm.data.training_data import TrainingData
from kalm.data.transition_data import TransitionData
from kalm.judging.judge import DomainRule, verdict
from kalm.store.labelling import Keep, label_store
from kalm.store.labels import LabelWriter
from kalm.store.reader import RolloutStore
from tests.chain_domain import ChainDomain
from tests.data.rollouts import imagined_rollouts, real_rollouts, write_store
from tests.llm.token_encoder import TokenEncoder
from tests.rl.distillation.room_domain import RoomDomain, write_plans
from tests.rl.rewards.rooms import Room, write_looks
from tests.store.test_labels import Coin

CLASSES = [GoalData, GroundingData, LabelData, PlanData, PolicyData, ReturnConditionedData, TransitionData]
# What decides data, but not of the small sources below: one split, no top returns, plausible real rollouts, goals of
# enough rollouts each, no descriptions. The encoder decides goal embeddings, which are no part of a batch.
WITHOUT_EFFECT_HERE = {
    *("domain", "encoder", "balance_goal_splits", "goal_split_weights", "real.filter", "real.return_discount"),
    *("imagined.return_discount", "imagined.num_least", "imagined.label", "tasks.steps_per_description"),
}


class RenamedChain(ChainDomain):
    """The chain as another world."""

    name = "other"


class RenamedRoom(RoomDomain):
    """The room as another world."""

    name = "other"


class RenamedLooks(Room):
    """The room that is only looked at as another world."""

    name = "other"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stores of each source, a labelled one and one of plans among them, and two files of text and of goals."""
    root = tmp_path_factory.mktemp("sources")
    for number in (1, 2):
        write_store(root / f"real{number}", real_rollouts(60, seed=number))
        write_store(root / f"imagined{number}", imagined_rollouts(60, "easy", seed=number))
        write_plans(root / f"plans{number}", seed=number)
        looks = write_looks(root / f"looks{number}", 30, 20, seed=number)
        for name, keep in (("some", Keep.alike), ("met", Keep.met)):
            label_store(Room(), looks, DomainRule(Room()), name, None, keep, show_progress=False)
        (root / f"text{number}").write_text("\n\n".join(f"word {number} {index}" for index in range(20)))
        goal = f'{{"goal": {{"type": "cell", "cell": {number}}}, "instruction": "be there", "goal_split": "easy"}}'
        (root / f"goals{number}").write_text(goal)
    return root


def described(folder: Path, module: type[LightningDataModule]) -> dict[str, Any]:
    """One value for every argument of a data module."""
    own: dict[Any, dict[str, Any]] = {
        PlanData: {"domain": RoomDomain(), "task_weights": {"go_to": 1.0, "go_to_tile": 1.0}},
        LabelData: {"domain": Room(), "real": RealRollouts(str(folder / "looks1"), max_rollouts=25)},
        PolicyData: {"balance_goal_splits": True},  # without which no weights are allowed
    }
    return {
        "domain": ChainDomain(),
        "encoder": TokenEncoder(),
        "real": RealRollouts(str(folder / "real1"), max_rollouts=50),
        "imagined": ImaginedRollouts([str(folder / "imagined1")], RolloutFilter.none),
        "general_text": GeneralTextSource(str(folder / "text1"), num_pieces=2),
        "tasks": GroundingTasks(8, 4, 4, num_explanation_prompts=3),
        "evaluation": EvaluationEpisodes(4, 6, goals_file=None),
        "batch_size": 8,
        "num_held_out": 10,
        "tokens_per_prompt": 1,  # many batches an epoch
        "num_rollouts": {"easy": 3},
        "goals_file": str(folder / "goals1"),
        "plans": Plans([str(folder / "plans1")]),
        "label": "some",
        **own.get(module, {}),
    }


def another(module: type[LightningDataModule], name: str, value: Any, folder: Path) -> Any:
    """Another value for an argument or a field; by its type, so that new options are covered as they come."""
    special = {
        "domain": RenamedChain(),
        "encoder": TokenEncoder(size=8),
        "path": str(folder / "real2"),
        "stores": [str(folder / "imagined2")],
        "files": str(folder / "text2"),
        "goals_file": str(folder / "goals2"),
        "goal_splits": ["easy"],
        "validation_splits": ["train"],
        "verdict_weights": {"missed": 0.5},
        "goal_split_weights": {"easy": 2.0},
        "num_rollouts": {"easy": 4},
        "tokens_per_prompt": 24,
        "label": "met",
        "max_goals": 4,
        "task_weights": {"go_to": 1.0, "go_to_tile": 9.0},
    }
    own: dict[Any, dict[str, Any]] = {
        PlanData: {"domain": RenamedRoom(), "goal_splits": ["train"]} | {"stores": [str(folder / "plans2")]},
        LabelData: {"domain": RenamedLooks(), "path": str(folder / "looks2")},
    }
    special |= own.get(module, {})
    if name in special:
        return special[name]
    if isinstance(value, Enum):
        return next(member for member in type(value) if member is not value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1 if value < 3 else value // 2
    assert isinstance(value, float), f"give {name} another value here"
    return value / 2 if value else 0.5


def arguments_of(module: type[LightningDataModule], folder: Path) -> dict[str, Any]:
    """Every argument of its constructor, by name."""
    given = described(folder, module)
    return {
        name: given.get(name, parameter.default) for name, parameter in inspect.signature(module).parameters.items()
    }


def options_of(module: type[LightningDataModule]) -> Iterator[tuple[str, bool]]:
    """Every argument, and every field of the objects among them; and whether it is said to decide nothing."""
    for name, value in arguments_of(module, Path("nowhere")).items():
        is_free = name in module.undecided
        if is_dataclass(value):
            yield from ((f"{name}.{part.name}", is_free or "undecided" in part.metadata) for part in fields(value))
        else:
            yield name, is_free


OPTIONS = [(module, name, is_free) for module in CLASSES for name, is_free in options_of(module)]


def changed(module: type[LightningDataModule], option: str, folder: Path) -> RolloutData:
    """The data module with one option changed, about to go on with training."""
    arguments = arguments_of(module, folder)
    name, _, part = option.partition(".")
    value = arguments[name]
    if part:
        arguments[name] = replace(value, **{part: another(module, part, getattr(value, part), folder)})
    else:
        arguments[name] = another(module, name, value, folder)
    return resumed(module(**arguments))


def resumed(data: Any) -> RolloutData:
    """With a trainer that goes on with a run."""
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), world_size=1, global_rank=0)
    return data


def test_every_data_module_is_looked_at() -> None:
    """All that there are in the package, found by looking."""
    modules = [importlib.import_module(f"kalm.data.{entry.name}") for entry in pkgutil.iter_modules(kalm.data.__path__)]
    members = {member for module in modules for _, member in inspect.getmembers(module, inspect.isclass)}
    bases = (LightningDataModule, TrainingData, RolloutData)
    found = {member for member in members if issubclass(member, LightningDataModule) and member not in bases}
    assert found == set(CLASSES)
    assert len(OPTIONS) > 80


@pytest.mark.parametrize(("module", "option", "is_free"), OPTIONS, ids=lambda value: getattr(value, "__name__", None))
def test_every_option_is_refused_on_resume_or_said_to_decide_nothing(
    folder: Path, module: type[LightningDataModule], option: str, is_free: bool
) -> None:
    """A refusal names the option; what is said to decide nothing leaves the training data as they are."""
    before, after = resumed(module(**arguments_of(module, folder))), changed(module, option, folder)
    if isinstance(before, GoalData) and isinstance(after, GoalData):  # it is not resumed; its work is described
        says_the_same = before.description == after.description
        assert says_the_same == (is_free and option != "goals_file")
    elif is_free:
        after.load_state_dict(before.state_dict())
        if option != "updates_per_step":  # which decides how many updates come at once
            assert_same(before.batch(0), after.batch(0))  # type: ignore[attr-defined]
    else:
        with pytest.raises(CheckpointError, match=f"(with: |; ){option}: .* -> "):
            after.load_state_dict(before.state_dict())
        if option not in WITHOUT_EFFECT_HERE:
            with pytest.raises((AssertionError, KeyError, ValueError)):  # other values, columns or numbers
                assert_same(*(tuple(data.batch(index) for index in range(3)) for data in (before, after)))


def assert_same(left: Any, right: Any) -> None:
    """Two batches of one kind, whatever it is."""
    if isinstance(left, TensorDict):
        assert_same(dict(left), dict(right))
    elif isinstance(left, torch.Tensor) or hasattr(left, "batch_size"):
        assert left.shape == right.shape
        assert (left == right).all()
    elif isinstance(left, tuple):
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, dict):
        assert_same(tuple(left.values()), tuple(right.values()))
    else:
        assert left == right


@pytest.mark.parametrize("module", [PolicyData, GroundingData])
def test_leaving_a_source_out_is_refused(folder: Path, module: type[LightningDataModule]) -> None:
    """Every field of it is named."""
    before = module(**arguments_of(module, folder))
    after = resumed(module(**{**arguments_of(module, folder), "imagined": None}))
    with pytest.raises(CheckpointError, match="imagined.filter: 'none' -> None; imagined.fraction: 0.5 -> None"):
        after.load_state_dict(before.state_dict())


@pytest.mark.parametrize("module", CLASSES)
def test_what_was_moved_is_still_the_same(folder: Path, tmp_path: Path, module: type[LightningDataModule]) -> None:
    """Stores and texts count by what is in them, not by where they lie."""
    shutil.copytree(folder, tmp_path / "moved")
    before, after = (module(**arguments_of(module, root)) for root in (folder, tmp_path / "moved"))
    assert before.state_dict() == after.state_dict()
    resumed(after).load_state_dict(before.state_dict())


def _with_coin(folder: Path, shift: int) -> PolicyData:
    """Imagined rollouts that a coin called met: all but each third, from a place on."""
    store = RolloutStore(folder / "imagined")
    shutil.rmtree(folder / "imagined" / "labels" / "coin", ignore_errors=True)
    writer = LabelWriter(store, Coin(), "rollout", command="toss")
    writer.append("0", verdict((np.arange(store.num_rollouts) + shift) % 3 > 0))
    writer.finish()
    imagined = ImaginedRollouts([str(folder / "imagined")], RolloutFilter.success, label="coin")
    return PolicyData(ChainDomain(), TokenEncoder(), RealRollouts(str(folder / "real")), imagined)


def test_a_label_that_says_other_things_is_noticed(tmp_path: Path) -> None:
    """Its name is the same, and the store's content too; written anew with the same content nothing has changed."""
    write_store(tmp_path / "real", real_rollouts(20))
    write_store(tmp_path / "imagined", imagined_rollouts(30, "easy"))
    state = resumed(_with_coin(tmp_path, 0)).state_dict()
    resumed(_with_coin(tmp_path, 0)).load_state_dict(state)
    with pytest.raises(CheckpointError, match="chosen_rollouts_sha256: .* -> "):
        resumed(_with_coin(tmp_path, 1)).load_state_dict(state)


def test_another_choice_by_the_same_words_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the highest returns in one version, of the lowest in the next: the fraction is the same."""
    write_store(tmp_path / "real", real_rollouts(40))
    real = RealRollouts(str(tmp_path / "real"), top_return_fraction=0.5)
    state = resumed(PolicyData(ChainDomain(), TokenEncoder(), real)).state_dict()
    assert len(PolicyData(ChainDomain(), TokenEncoder(), real).training) == 20
    monkeypatch.setattr(
        rollout_sources, "top_returns", lambda domain, chosen, fraction, discount: chosen.keep(torch.arange(40) < 20)
    )
    with pytest.raises(CheckpointError, match="chosen_rollouts_sha256: .* -> "):
        resumed(PolicyData(ChainDomain(), TokenEncoder(), real)).load_state_dict(state)
