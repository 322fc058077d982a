"""Proxy rewards: the noisy or by hand, what batches hold, that both learn, and the way from labels to a judge."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import yaml
from lightning import Trainer
from torch import Tensor

from kalm.core.errors import CheckpointError, DataError
from kalm.data.label_data import LabelData, StateForm
from kalm.data.labelled_goals import Part
from kalm.data.rollout_sources import RealRollouts
from kalm.envs.babyai.layout import EMPTY, agent_of
from kalm.judging.judge import DomainRule, Judge, Verdict
from kalm.judging.noisy_judge import NoisyJudge
from kalm.rl import rewards
from kalm.rl.rewards.base import ProxyReward
from kalm.rl.rewards.fact_reward import FactReward
from kalm.rl.rewards.goal_networks import GoalNetworks
from kalm.rl.rewards.trained_proxy import MODELS, TrainedProxy
from kalm.runs.folder import PROXY_FILE
from kalm.store.labelling import Keep, label_store
from kalm.store.reader import RolloutStore
from tests.chain_run import kalm
from tests.rl.rewards.rooms import Room, write_looks
from tests.store.test_store import digests
from tests.word_encoder import WordEncoder

ROOM = Room()


class TokenEncoder(WordEncoder):
    """Fixed random vectors of the words of a sentence."""

    def token_vectors(self, texts: Any) -> tuple[Tensor, Tensor]:
        """One vector a word, (n, L, E), and where there are words."""
        rows = [np.stack([self._word(word) for word in text.replace(",", " , ").split()]) for text in texts]
        longest = max(map(len, rows))
        vectors = np.stack([np.pad(row, ((0, longest - len(row)), (0, 0))) for row in rows])
        mask = np.arange(longest) < np.array([[len(row)] for row in rows])
        return torch.from_numpy(vectors).float(), torch.from_numpy(mask)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 1,530 states with three labels: what is met, every question, and some questions by a noisy judge."""
    path = tmp_path_factory.mktemp("rooms")
    store = write_looks(path / "store", 30, 50)
    rule = DomainRule(ROOM)
    label_store(ROOM, store, rule, "met", None, Keep.met, show_progress=False)
    label_store(ROOM, store, NoisyJudge(rule, 0.01, 0.05, 0.1), "some", 300, show_progress=False)
    return path


def data_of(folder: Path, label: str = "met", **options: Any) -> LabelData:
    """Labels of the store."""
    return LabelData(ROOM, TokenEncoder(64), RealRollouts(str(folder / "store")), label, **options)


def fit(folder: Path, model: ProxyReward, data: LabelData, num_updates: int) -> Trainer:
    """Train it, and write the table."""
    trainer = Trainer(
        max_steps=num_updates,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
    )
    trainer.fit(model, data)
    model.on_save_checkpoint({})
    trainer.test(model, data, verbose=False)
    return trainer


def table(folder: Path, goals: str = "learned", against: str = "truth") -> dict[str, dict[str, Any]]:
    """Rows of the table that a test wrote, by task."""
    rows = json.loads((folder / PROXY_FILE).read_text())["rows"]
    return {row["task"]: row for row in rows if (row["goals"], row["against"]) == (goals, against)}


def test_one_true_fact_is_enough_and_three_conditions_make_it_count() -> None:
    """Logits of ln 3 and -ln 3 are 3/4 and 1/4.

    Fact (0, 0, 1) counts with 3/4 * 3/4 * 1/4 = 9/64, fact (1, 0, none) with 1/4 * 3/4 = 3/16. A state of both meets
    the goal with 1 - 55/64 * 13/16, one of the first alone with 9/64, one of none hardly ever.
    """
    reward = FactReward(ROOM.spec.with_goals(64), hidden_size=8, num_heads=2, num_relations=2, num_symbols=2)
    reward.use_facts(np.array([[0, 0, 1], [1, 0, -1]]))
    logits = [math.log(3), -math.log(3)]
    reward.read = lambda *_: [torch.tensor([logits])] * 3  # type: ignore[method-assign]
    states = torch.tensor([[[0, 1], [0, 2], [2, 2]]])
    met, unmet = reward.log_likelihood({"tokens": torch.zeros(0), "attention_mask": torch.zeros(0), "state": states})
    expected = [1 - 55 / 64 * 13 / 16, 9 / 64, 0]
    assert met.exp().tolist()[0] == pytest.approx(expected, abs=1e-6)
    assert unmet.exp().tolist()[0] == pytest.approx([1 - value for value in expected], abs=1e-6)
    with pytest.raises(DataError, match=r"are \(2, 2\); the domain's facts need \(6, "):
        reward.use_facts(ROOM.possible_facts)


def test_batches_are_half_met_and_as_the_judge_said(folder: Path) -> None:
    """Each row's label is the rule's; half of a met goal's states meet it; nothing held out occurs; pure by index."""
    data = data_of(folder, states_per_goal=8)
    store = data.store
    states = store.observations(torch.arange(store.num_states))
    part = data.part_of
    drawn = [data.draws.draw_goal(np.random.default_rng([0, 3]), slot) for slot in range(20)]
    for goal in drawn:
        rows, met = data.draws.draw_states(np.random.default_rng(5), goal, 8)
        assert met.tolist() == goal.goal.success(states[rows]).tolist()
        assert (part[rows] == Part.training.value).all()
        if goal in data.learned_goals:
            assert met.sum() >= 4
        assert goal.number not in data._new_goals
    one, again = data.batch(7), data.batch(7)
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert one["met"].shape == (32, 8)
    assert (part == Part.test.value).mean() == pytest.approx(0.1, abs=0.03)


def test_no_state_of_a_rollout_that_is_learned_from_is_tested_on(folder: Path) -> None:
    """Of nine rollouts one chooses thresholds, one is tested on, seven are learned from; others are unused."""
    data = LabelData(ROOM, TokenEncoder(64), RealRollouts(str(folder / "store"), max_rollouts=9), "met")
    store, part = data.store, data.part_of
    of_rollout = [
        {int(state) for key in ("state", ("next", "state")) for state in store.transitions[key][rows]}
        for rows in (store.transitions["rollout_id"] == number for number in range(store.num_rollouts))
    ]
    used = set().union(*of_rollout[:9])
    assert {int(state) for state in np.flatnonzero(part >= 0)} == used
    learned = set(np.flatnonzero(part == Part.training.value).tolist())
    assert sum(states <= learned for states in of_rollout[:9]) == 7
    for rest in (Part.calibration, Part.test):
        own = set(np.flatnonzero(part == rest.value).tolist())
        assert [bool(own & states) for states in of_rollout[:9]].count(True) == 1
    with pytest.raises(DataError, match="2 rollouts of .* are in use; held_out_states 0.2 needs more"):
        LabelData(ROOM, TokenEncoder(64), RealRollouts(str(folder / "store"), max_rollouts=2), "met").setup("fit")


def test_every_part_of_labels_of_like_states_meets_each_kind_of_goal(folder: Path) -> None:
    """One question a tile has many states; states that do not meet a goal hold things, too, as the others do."""
    store = RolloutStore(folder / "store")
    label_store(ROOM, store, DomainRule(ROOM), "alike", 1200, Keep.alike, show_progress=False)
    data = data_of(folder, "alike")
    for part in Part:
        met = {goal.goal.task for goal in data.learned_goals if (data.part_of[goal.met] == part.value).any()}
        assert met == {"pick_up", "go_to", "open", "put_next", "go_to_tile"}
    holds = agent_of(store.observations(torch.arange(store.num_states)))[3] != EMPTY
    for goal in data.goals:
        if goal.goal.task == "pick_up":
            assert goal.unmet is not None
            assert holds[goal.unmet].mean() > 0.2


def test_labels_of_which_the_unmet_are_lost_are_refused(folder: Path) -> None:
    """Only what was met of some states; or a label of rollouts."""
    store = RolloutStore(folder / "store")
    label_store(ROOM, store, DomainRule(ROOM), "lost", 300, Keep.met, show_progress=False)
    with pytest.raises(DataError, match="kept only what was met of some states"):
        data_of(folder, "lost").setup("fit")
    with pytest.raises(DataError, match="is about rollouts"):
        data_of(folder, "domain_rule").setup("fit")


def test_the_reward_of_facts_learns_all_kinds_and_new_pairs(folder: Path, tmp_path: Path) -> None:
    """In 400 updates nearly everything about learned goals, and pairs of things that it never learned together."""
    lightning.seed_everything(1, verbose=False)
    data = data_of(folder, states_per_goal=16)
    fit(tmp_path, FactReward(data.spec, schedule_updates=400), data, 400)
    found = table(tmp_path)
    for task in ("pick_up", "go_to", "open", "put_next", "go_to_tile"):
        assert found[task]["precision"] >= 95, found[task]
        assert found[task]["recall"] >= 90, found[task]
    assert table(tmp_path, goals="held_out")["put_next"]["recall"] >= 80
    assert table(tmp_path, against="judge")["open"]["auc"] > 0.99


def test_the_networks_a_goal_learn_and_keep_their_best(folder: Path, tmp_path: Path) -> None:
    """Four goals, a greater rate than the paper's: the loss falls, and in evaluation the weights of the best answer."""
    lightning.seed_everything(0, verbose=False)
    data = data_of(folder, "some", form=StateForm.grid, max_goals=4, goals_per_batch=4)
    model = GoalNetworks(data.spec, num_goals=4, learning_rate=1e-3, examine_every_n_updates=20)
    assert model.best_hidden.shape == (4, 8 * 8 * 32, 32)
    batch = data.batch(0)

    def loss() -> float:
        met, unmet = model.train().log_likelihood(batch)
        return -float(torch.where(batch["met"], met, unmet).mean())

    before = loss()
    fit(tmp_path, model, data, 60)
    assert loss() < before
    assert set(table(tmp_path)) == {goal.goal.task for goal in data.learned_goals}
    for one in data.examined(Part.calibration, only_known=True):
        probability = torch.from_numpy(model.probabilities(one.batch)).clamp(1e-6, 1 - 1e-6)
        found = torch.nn.functional.binary_cross_entropy(probability, torch.from_numpy(one.met).float())
        assert float(found) == pytest.approx(float(model.best_loss[int(one.batch["goal"])]), rel=1e-3)
    with pytest.raises(DataError, match="num_goals is 4, max_goals is None"):
        fit(tmp_path, model, data_of(folder, "some", form=StateForm.grid), 1)


def config(folder: Path, name: str, model: str, model_args: dict[str, Any], data_args: dict[str, Any]) -> Path:
    """A stage file."""
    here = "tests.rl.rewards"
    content = {
        "root": str(folder),
        "experiment": f"room/proxy/{name}",
        "trainer": {"max_steps": 4, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False},
        "checkpoint": {"every_n_updates": 4},
        "model": {"class_path": model, "init_args": model_args},
        "data": {
            "class_path": "kalm.data.label_data.LabelData",
            "init_args": {
                "domain": {"class_path": f"{here}.rooms.Room"},
                "encoder": {"class_path": f"{here}.test_rewards.TokenEncoder", "init_args": {"size": 64}},
                "real": {"path": "${root}/store"},
                "label": "some",
                **data_args,
            },
        },
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


class Dies(Judge):
    """Another judge, which counts the goals that it is asked about and kills its process at the 25th."""

    def __init__(self, judge: Judge, lives: bool = False) -> None:
        """Choose."""
        self.name, self._judge, self._lives = judge.name, judge, lives
        self.asked: list[Any] = []

    @property
    def provenance(self) -> dict[str, Any]:
        """The other's."""
        return self._judge.provenance

    def judge(self, goals: Any, rollouts: Any) -> Verdict:
        """The other's."""
        return self._judge.judge(goals, rollouts)

    def judge_states(self, goal: Any, states: Any) -> Verdict:
        """The other's, as long as it lives."""
        self.asked.append(goal)
        if len(self.asked) == 25 and not self._lives:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._judge.judge_states(goal, states)


_KILLED = """
import sys
from kalm.rl.rewards.trained_proxy import TrainedProxy
from kalm.store.labelling import Keep, label_store
from kalm.store.reader import RolloutStore
from tests.rl.rewards.test_rewards import ROOM, Dies, TokenEncoder
judge = Dies(TrainedProxy(sys.argv[2], ROOM, TokenEncoder(64)))
label_store(ROOM, RolloutStore(sys.argv[1]), judge, "killed", 20, Keep.alike, show_progress=False)
"""


def check_that_nothing_is_repeated_or_lost(store: Path, run: Path) -> None:
    """A labelling by a proxy that was killed goes on behind its finished shards, and ends with equal files."""
    killed = subprocess.run([sys.executable, "-c", _KILLED, store, run], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    proxy = TrainedProxy(str(run), ROOM, TokenEncoder(64))
    judges = [Dies(proxy, lives=True) for _ in range(2)]
    for name, judge in zip(("killed", "whole"), judges, strict=True):
        label_store(ROOM, RolloutStore(store), judge, name, 20, Keep.alike, show_progress=False)
        assert RolloutStore(store).labels(name).provenance.items() >= proxy.provenance.items()
    assert len(judges[0].asked) == len(judges[1].asked) - 20
    assert digests(store / "labels" / "killed") == digests(store / "labels" / "whole")
    for name in ("killed", "whole"):
        shutil.rmtree(store / "labels" / name)


def test_every_proxy_reward_is_labelled_with() -> None:
    """All that there are can be judges, and each is under the tests below."""
    files = (
        importlib.import_module(f"kalm.rl.rewards.{entry.name}") for entry in pkgutil.iter_modules(rewards.__path__)
    )
    members = {member for file in files for _, member in inspect.getmembers(file, inspect.isclass)}
    found = {member for member in members if issubclass(member, ProxyReward) and member is not ProxyReward}
    assert found == set(MODELS.values()) == {FactReward, GoalNetworks}


@pytest.mark.parametrize("name", ["facts", "networks"])
def test_from_labels_to_a_judge_on_the_command_line(folder: Path, name: str) -> None:
    """Fit, test, and label with the checkpoint: provenance says which weights, thresholds, and whose labels."""
    if name == "facts":
        made = "kalm.rl.rewards.fact_reward.FactReward", {"hidden_size": 16, "num_heads": 2}, {}
    else:
        small = {"num_goals": 3, "examine_every_n_updates": 2}
        data_args = {"form": "grid", "max_goals": 3, "goals_per_batch": 3}
        made = "kalm.rl.rewards.goal_networks.GoalNetworks", small, data_args
    path = config(folder, name, *made)
    assert kalm("fit", "--config", path) == 0
    assert kalm("test", "--config", path) == 0
    run = folder / "room" / "proxy" / name / "seed=0"
    assert json.loads((run / PROXY_FILE).read_text())["labels_by"]["judge"] == "noisy"
    judge = TrainedProxy(str(run), ROOM, TokenEncoder(64), f"proxy_{name}")
    labels = label_store(ROOM, RolloutStore(folder / "store"), judge, "", 5, show_progress=False)
    assert labels.provenance["judge"] == "proxy"
    assert labels.provenance["labels_by"]["judge"] == "noisy"
    assert labels.provenance["is_oracle"]
    assert len(labels.provenance["checkpoint_sha256"]) == 64
    if name == "networks":  # it answers about its three goals alone
        assert int((~labels.abstained).sum()) == 15
    else:
        assert not labels.abstained.any()
    check_that_nothing_is_repeated_or_lost(folder / "store", run)
    other = TokenEncoder(64)
    other.__dict__["fingerprint"] = "ab"
    with pytest.raises(CheckpointError, match="learned with the encoder .*, not ab"):
        TrainedProxy(str(run), ROOM, other)
