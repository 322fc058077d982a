"""Every YAML file under conf/ says what it is, parses, and runs: recursively, and counted."""

from __future__ import annotations

import csv
import inspect
import json
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning import LightningDataModule
from lightning.pytorch.utilities.model_helpers import is_overridden

from kalm.cli.validation_interval import interval_in_batches
from kalm.envs.babyai import BabyAI
from kalm.store.reader import RolloutStore
from kalm.study.definition import load_study
from tests.chain_run import kalm

REPOSITORY = Path(__file__).parents[1]
CONF = REPOSITORY / "conf"
FILES = sorted(CONF.rglob("*.yaml"))
STUDIES = [path for path in FILES if path.parent.name == "study"]
OVERLAYS = [path for path in FILES if path.parent.name == "overlay"]
STAGES = [path for path in FILES if path not in STUDIES + OVERLAYS]
# These need a pretrained model, or a server of one; tests/llm runs them with a small local one (test_ground_configs.py,
# for BabyAI test_llm_student.py), and tests/judging/test_label_by_server.py those that label.
PRETRAINED = [
    path for path in STAGES if re.search("HuggingFaceBackbone|ServerLanguageModel", path.read_text(encoding="utf-8"))
]
SMOKE = CONF / "overlay" / "smoke.yaml"
LIGHTNING_VERBS = ("fit", "predict")
COMMAND = re.compile(r"# python -m kalm (\w+) (.*)")


def name(path: Path) -> str:
    """Path as it is typed in the checkout's root."""
    return path.relative_to(REPOSITORY).as_posix()


def is_of(domain: str, path: Path) -> bool:
    """Whether a stage is one of a world's."""
    return path.parent.name == domain


def every_stage_file(domain: str) -> set[str]:
    """Of a world, those that need no pretrained model."""
    return {name(path) for path in STAGES if is_of(domain, path) and path not in PRETRAINED}


def used_by(study: Path) -> set[str]:
    """Configuration files of a study's stages."""
    return {part for stage in load_study(study).stages for part in stage.command if part.startswith("conf/")}


def announced_command(path: Path) -> list[str]:
    """The words after ``python -m kalm`` in the first line of a file."""
    match = COMMAND.fullmatch(path.read_text(encoding="utf-8").splitlines()[0])
    assert match is not None, "the first line must be the command"
    return [match[1], *match[2].split()]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def test_every_file_is_found() -> None:
    """The parametrised tests below cannot pass on an empty list."""
    assert {"collect", "ground", "imagine", "bc", "cql"} <= {path.stem for path in STAGES}
    studies = {
        "babyai_smoke",
        "clevr_robot_demo",
        "clevr_robot_smoke",
        "metaworld_paper",
        "metaworld_small",
        "metaworld_smoke",
    }
    assert studies <= {path.stem for path in STUDIES}
    assert SMOKE in OVERLAYS
    assert len(PRETRAINED) == 11
    assert {"collect", "label", "solve", "planner_student"} <= {path.stem for path in STAGES if is_of("babyai", path)}
    assert len(STAGES) + len(STUDIES) + len(OVERLAYS) == len(FILES) == len(list(CONF.rglob("*.y*ml")))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_file_announces_itself(path: Path) -> None:
    """The first comment: command, purpose, what it is for, hardware, minutes; the command names the file itself."""
    assert name(path) in announced_command(path)
    comment = "".join(line for line in path.read_text(encoding="utf-8").splitlines(True) if line.startswith("#"))
    for word in ("Purpose:", "Hardware:", "Minutes:"):
        assert word in comment


@pytest.mark.parametrize("path", STAGES, ids=name)
def test_stage_parses_and_keeps_the_order_of_its_keys(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Alone, under the verb that it announces; ``${root}`` follows the command line."""
    verb, *_ = announced_command(path)
    assert kalm(verb, "--config", name(path), "--root", "elsewhere", "--print_config") == 0
    printed = capsys.readouterr().out
    assert "${" not in printed
    assert yaml.safe_load(printed)["root"] == "elsewhere"
    assert "checkpoints/" not in printed.replace("checkpoints/.cache", "")
    keys = list(yaml.safe_load(path.read_text(encoding="utf-8")))
    order = ["seed_everything", "experiment", "ckpt_path", "trainer", "checkpoint", "model", "data"]
    assert [key for key in order if key in keys] == [key for key in keys if key in order]


@pytest.mark.parametrize("path", [path for path in STAGES if announced_command(path)[0] in LIGHTNING_VERBS], ids=name)
def test_smoke_overlay_fits_every_stage(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It parses on top of each of Lightning's stages and shortens it."""
    verb, *_ = announced_command(path)
    assert kalm(verb, "--config", name(path), "--config", name(SMOKE), "--print_config") == 0
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_steps"] <= 40


@pytest.mark.parametrize("path", STUDIES, ids=name)
def test_every_command_of_a_study_parses(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each distinct command with its options, and each input is an output of a stage before it."""
    study = load_study(path)
    seeds = study.seeds[:1]
    written: set[str] = set()
    for stage in study.stages:
        if stage.seed is None or stage.seed in seeds:
            assert kalm(*stage.command, "--print_config") == 0, stage.label
            yaml.safe_load(capsys.readouterr().out)
        assert set(stage.inputs) <= written, stage.label
        written |= set(stage.outputs)
    shown = {row["experiment"] for row in study.definition["report"]["rows"]}
    assert all(any(f"/{experiment}/" in path for path in written) for experiment in shown)


@pytest.mark.timeout(900)  # a whole study, which takes minutes on a machine that has other work
@pytest.mark.parametrize("domain", ["clevr_robot", "metaworld"])
def test_smoke_study_runs_every_stage_file(domain: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From nothing to a report; started again it has nothing left to do."""
    study = CONF / "study" / f"{domain}_smoke.yaml"
    assert used_by(study) >= every_stage_file(domain)
    assert kalm("run", name(study), "--root", tmp_path) == 0
    imagined = RolloutStore(tmp_path / f"{domain}/imagine/tiny/seed=0/store", verify=True)
    assert imagined.num_rollouts > 0
    (metrics,) = (tmp_path / f"{domain}/bc/kalm").glob("*/metrics.csv")
    with metrics.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert any(row["train/imaginary/imitation_loss"] for row in rows)
    report = (tmp_path / f"study/{domain}_smoke/report/report.md").read_text(encoding="utf-8")
    assert "BC with imagination" in report
    capsys.readouterr()
    assert kalm("run", name(study), "--root", tmp_path) == 0
    assert f"study {domain}_smoke is finished" in capsys.readouterr().out


@pytest.mark.timeout(900)
def test_the_smoke_study_of_babyai_runs_every_stage_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Collect, label, solve, a fit of each proxy and student, and tests; started again it has nothing left to do."""
    study = CONF / "study" / "babyai_smoke.yaml"
    assert used_by(study) >= every_stage_file("babyai")
    assert kalm("run", name(study), "--root", tmp_path) == 0
    plans = RolloutStore(tmp_path / "babyai/solve/completed/seed=0/store", verify=True)
    assert plans.has_optimal_actions
    assert plans.num_rollouts > 20
    assert {row.goal["goal"] for row in plans.instructions} >= {"go_to", "open", "pick_up", "put_next"}
    store = RolloutStore(tmp_path / "babyai/collect/bot/seed=0", verify=True)
    assert store.labels("some").provenance["is_oracle"]
    assert store.labels("proxy").provenance["judge"] == "proxy"
    assert (tmp_path / "babyai/proxy/facts/seed=0/proxy_reward.json").is_file()
    solved = json.loads((tmp_path / "babyai/solve/proxy/seed=0/solved.json").read_text(encoding="utf-8"))
    assert solved["judge_of_predicted_states"]["labels_by"] == store.labels("some").provenance
    report = (tmp_path / "study/babyai_smoke/report/report.md").read_text(encoding="utf-8")
    assert all(split in report for split in BabyAI.goal_splits)
    capsys.readouterr()
    assert kalm("run", name(study), "--root", tmp_path) == 0
    assert "study babyai_smoke is finished" in capsys.readouterr().out


def test_every_fit_of_every_study_can_validate_when_it_says_so() -> None:
    """The interval, in updates, is hit by training steps and comes before the end; files first, then what differs."""
    num_looked_at = 0
    for stage in (stage for path in STUDIES for stage in load_study(path).stages if stage.verb == "fit"):
        given: dict[str, Any] = {}
        for path in stage.configs:
            config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            given |= {f"trainer.{key}": value for key, value in (config.get("trainer") or {}).items()}
            data = config.get("data") or {}
            given |= {"data": data["class_path"]} if "class_path" in data else {}
            given |= {f"data.{key}": value for key, value in (data.get("init_args") or {}).items()}
        options = (argument[2:].split("=", 1) for argument in stage.command if "=" in argument)
        given |= {key: yaml.safe_load(value) for key, value in options if key != "config"}
        data_class = pkgutil.resolve_name(given["data"])
        if is_overridden("val_dataloader", data_class, LightningDataModule):
            own = inspect.signature(data_class).parameters.get("updates_per_step")
            per_batch = given.get("data.updates_per_step", 1 if own is None else own.default)
            trainer = {key.removeprefix("trainer."): value for key, value in given.items()}
            assert interval_in_batches(trainer, per_batch), stage.label
            num_looked_at += 1
    assert num_looked_at > 100
