"""A study skips what is done, continues what was interrupted, and remakes what its inputs have outdated."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from kalm.core.errors import KalmError
from kalm.report.results import load_results
from kalm.study.definition import Study, load_study
from kalm.study.run import run_study
from tests.chain_run import kalm, run_folder_of, write_config

STUDY = {
    "name": "letters",
    "root": "out",
    "seeds": [0, 1],
    "word": "hello",
    "stages": [
        {"name": "write", "command": ["write", "${root}/a", "${word}"], "outputs": ["${root}/a"]},
        {
            "name": "copy",
            "seeds": True,
            "command": ["copy", "${root}/a", "${root}/b${seed}"],
            "inputs": ["${root}/a"],
            "outputs": ["${root}/b${seed}"],
        },
    ],
    "report": {"rows": [{"experiment": "chain/bc/mixed", "label": "BC"}]},
}


class Commands:
    """Two verbs small enough to see through, in place of kalm's; remembers what it was asked."""

    def __init__(self) -> None:
        """Begin with nothing asked."""
        self.asked: list[list[str]] = []
        self.fails_on: str | None = None

    def __call__(self, command: list[str]) -> int:
        """Run one command."""
        self.asked.append(command)
        if self.fails_on is not None and self.fails_on in command:
            return 3
        verb, first, second = command
        content = Path(first).read_text(encoding="utf-8") if verb == "copy" else second
        target = Path(second if verb == "copy" else first)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")
        return 0


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Verbs, in an empty working directory, with a report that has its own tests replaced by a file."""

    def write_report(folders: list[str], output: Path, **_: Any) -> None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "report.md").write_text("table", encoding="utf-8")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kalm.report.write_report", write_report)
    return Commands()


def study_file(**changes: Any) -> Path:
    """The study of letters as a file, with some keys replaced."""
    path = Path("study.yaml")
    path.write_text(yaml.safe_dump({**STUDY, **changes}), encoding="utf-8")
    return path


def run(commands: Callable[[list[str]], int], study: Study | None = None, redo: list[str] | None = None) -> str:
    """Run a study; what it said."""
    console = Console(file=io.StringIO(), width=200)
    run_study(study or load_study(study_file()), console, commands, redo)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def test_stages_run_in_order_and_once_a_seed(commands: Commands) -> None:
    """Interpolation reaches root, seed and the file's own keys."""
    run(commands)
    assert commands.asked == [["write", "out/a", "hello"], ["copy", "out/a", "out/b0"], ["copy", "out/a", "out/b1"]]


def test_finished_study_says_so_at_once(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is run, nothing reported anew, and where the report is."""
    run(commands)
    commands.asked.clear()
    monkeypatch.setattr("kalm.report.write_report", lambda *_, **__: pytest.fail("reported again"))
    assert "study letters is finished: all 3 stages are done" in run(commands)
    assert commands.asked == []


def test_failed_stage_stops_the_study_and_is_all_that_is_run_again(commands: Commands) -> None:
    """Its exit code is the study's; what came before stays done."""
    commands.fails_on = "out/b1"
    code = run_study(load_study(study_file()), Console(file=io.StringIO()), commands)
    assert code == 3
    commands.asked.clear()
    commands.fails_on = None
    run(commands)
    assert commands.asked == [["copy", "out/a", "out/b1"]]


def test_changed_input_outdates_what_was_made_of_it(commands: Commands) -> None:
    """An input that somebody edits, an output that somebody deletes, an edited study file: each redoes its stages."""
    run(commands)
    commands.asked.clear()
    Path("out/a").write_text("edited", encoding="utf-8")
    run(commands)
    assert [command[0] for command in commands.asked] == ["copy", "copy"]
    commands.asked.clear()
    Path("out/b0").unlink()
    run(commands)
    assert commands.asked == [["copy", "out/a", "out/b0"]]
    commands.asked.clear()
    run(commands, load_study(study_file(word="bye")))
    assert len(commands.asked) == 3


def test_redo_runs_a_finished_stage(commands: Commands) -> None:
    """And only what is named, as long as its output comes out the same."""
    run(commands)
    commands.asked.clear()
    run(commands, redo=["write"])
    assert commands.asked == [["write", "out/a", "hello"]]


def test_options_of_the_command_line(commands: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    """Seeds and stages are given as plain words; an unknown stage is named with those that exist."""
    assert kalm("run", study_file(), "--seeds", "4", "5", "--redo", "copi") == 2
    assert "--redo copi: no such stage; the stages are write, copy" in capsys.readouterr().err
    assert [stage.seed for stage in load_study(study_file(), seeds=[4, 5]).stages] == [None, 4, 5]


def test_stage_that_does_not_write_its_outputs_is_an_error(commands: Commands) -> None:
    """A wrong path in the study file must not pass for a finished stage."""
    stage = {**STUDY["stages"][0], "outputs": ["${root}/elsewhere"]}  # type: ignore[dict-item]
    with pytest.raises(KalmError, match="did not write out/elsewhere"):
        run(commands, load_study(study_file(stages=[stage])))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": [{"nam": "x", "command": ["write"]}]}, "unknown key 'nam'.*did you mean 'name'"),
        ({"stages": [{"name": "x", "command": ["write", "${sed}"]}]}, "stage 'x'.*sed"),
        ({"stages": [{"name": "x", "command": ["write", "${seed}"]}]}, "stage 'x'.*seeds: true"),
        ({"stages": [{"name": "x", "command": []}]}, "it needs a name .* and a command"),
        ({"stages": [STUDY["stages"][0]] * 2}, "several stages called write"),  # type: ignore[index]
        ({"name": "../x"}, "cannot name a folder"),
        ({"seeds": [-1]}, "whole numbers"),
        ({"seeds": []}, "there are no seeds"),
        ({"stages": [{"name": "x", "command": ["write"], "seeds": "each"}]}, "it is true .*, false or together"),
    ],
)
def test_mistake_in_a_study_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    """Before anything is run."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KalmError, match=message):
        load_study(study_file(**changes))


def test_seeds_together_are_one_stage_a_row_of_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds 0, 1, 2 and 7: one command for the first three and one for the last; an output for each seed."""
    monkeypatch.chdir(tmp_path)
    stage = {
        "name": "fit",
        "seeds": "together",
        "command": ["fit", "--seed_everything", "${seed}", "--model.num_seeds", "${num_seeds}"],
        "outputs": ["${root}/${run}", "${root}/seed=${seed}"],
    }
    file = study_file(stages=[stage], seeds=[0, 1, 2, 7])
    three, one = load_study(file).stages
    assert (three.label, one.label) == ("fit seeds=0-2", "fit seed=7")
    assert three.command == ("fit", "--seed_everything", "0", "--model.num_seeds", "3")
    assert one.command == ("fit", "--seed_everything", "7", "--model.num_seeds", "1")
    assert three.outputs == ("out/seeds=0-2", "out/seed=0", "out/seed=1", "out/seed=2")
    assert one.outputs == ("out/seed=7",)
    assert load_study(file).definition["stages"][0]["command"] == stage["command"]


def test_report_sees_commands_as_they_are_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The root is filled in; the seed, which differs from run to run, stays a name."""
    monkeypatch.chdir(tmp_path)
    definition = load_study(study_file(), root="there").definition
    assert definition["stages"][1]["command"] == ["copy", "there/a", "there/b${seed}"]


class TestChainStudy:
    """A study of real verbs: behaviour cloning on the chain, with its evaluation and the report."""

    @pytest.fixture(autouse=True)
    def _in_tmp_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_config(tmp_path)
        run_folder = "${root}/chain/bc/mixed/seed=${seed}"
        common = ["--config", str(tmp_path / "bc.yaml"), "--root", "${root}", "--seed_everything", "${seed}"]
        fit = {"name": "bc", "seeds": True, "command": ["fit", *common], "outputs": [f"{run_folder}/last.ckpt"]}
        test = {
            "name": "test-bc",
            "seeds": True,
            "command": ["test", *common],
            "inputs": [f"{run_folder}/last.ckpt"],
            "outputs": [f"{run_folder}/results.jsonl"],
        }
        study = {**STUDY, "name": "chain", "root": str(tmp_path), "seeds": [3], "stages": [fit, test]}
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
        monkeypatch.chdir(tmp_path)

    def test_interrupted_fit_continues_and_equals_an_uninterrupted_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Killed after the checkpoint at update 60, the study resumes there, goes on, reports, and is then finished."""
        from kalm.callbacks.checkpoint import UpdateCheckpoint

        save = UpdateCheckpoint._save

        def killed(callback: UpdateCheckpoint, trainer: Any) -> None:
            save(callback, trainer)
            if trainer.global_step == 60:
                raise KeyboardInterrupt

        monkeypatch.setattr(UpdateCheckpoint, "_save", killed)
        assert kalm("run", "study.yaml") == 130
        monkeypatch.setattr(UpdateCheckpoint, "_save", save)
        assert kalm("run", "study.yaml") == 0
        assert "--ckpt_path last" in capsys.readouterr().out
        resumed = torch.load(run_folder_of(tmp_path) / "last.ckpt", weights_only=True)
        assert kalm("fit", "--config", "bc.yaml", "--experiment", "chain/bc/whole") == 0
        whole = torch.load(tmp_path / "chain/bc/whole/seed=3/last.ckpt", weights_only=True)
        for name, tensor in whole["state_dict"].items():
            assert torch.equal(tensor, resumed["state_dict"][name]), name
        assert "BC" in (tmp_path / "study/chain/report/report.md").read_text(encoding="utf-8")
        assert kalm("run", "study.yaml") == 0
        assert "is finished" in capsys.readouterr().out

    def test_interrupted_fit_of_several_seeds_continues(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Killed at update 60, it resumes for all seeds; each is tested by itself and has its training curve."""
        from kalm.callbacks.checkpoint import UpdateCheckpoint

        study = yaml.safe_load((tmp_path / "study.yaml").read_text(encoding="utf-8"))
        study["seeds"] = [3, 4]
        study["stages"][0]["seeds"] = "together"
        study["stages"][0]["command"] += ["--model.num_seeds", "${num_seeds}"]
        study["stages"][0]["outputs"].insert(0, "${root}/chain/bc/mixed/${run}/last.ckpt")
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
        save = UpdateCheckpoint._save

        def killed(callback: UpdateCheckpoint, trainer: Any) -> None:
            save(callback, trainer)
            if trainer.global_step == 60:
                raise KeyboardInterrupt

        monkeypatch.setattr(UpdateCheckpoint, "_save", killed)
        assert kalm("run", "study.yaml") == 130
        assert not (run_folder_of(tmp_path, 4) / "last.ckpt").exists()
        monkeypatch.setattr(UpdateCheckpoint, "_save", save)
        assert kalm("run", "study.yaml") == 0
        assert "--model.num_seeds 2 --ckpt_path last" in capsys.readouterr().out
        rows = load_results([tmp_path])
        validated = {(row.seed, row.update) for row in rows if row.stage == "validate"}
        assert validated == {(seed, update) for seed in (3, 4) for update in (25, 50, 75, 100)}
        assert {(row.seed, row.update) for row in rows if row.stage == "test"} == {(3, 100), (4, 100)}
        assert (tmp_path / "study/chain/report/training.png").is_file()
        assert kalm("run", "study.yaml") == 0
        assert "is finished" in capsys.readouterr().out

    def test_changed_configuration_trains_afresh_and_a_stranger_is_left_alone(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The study overwrites its own outdated run; a run that it did not make is refused."""
        assert kalm("fit", "--config", "bc.yaml", "--trainer.max_steps", "5") == 0
        assert kalm("run", "study.yaml") == 4
        assert "already holds a run" in capsys.readouterr().err
        for path in (tmp_path / "study/chain/stages").iterdir():
            path.unlink()
        assert kalm("fit", "--config", "bc.yaml", "--trainer.max_steps", "5", "--overwrite", "true") == 0
        marker = {"fingerprint": "of another configuration", "is_finished": True, "seconds": 1.0}
        (tmp_path / "study/chain/stages/bc-seed=3.json").write_text(json.dumps(marker), encoding="utf-8")
        assert kalm("run", "study.yaml") == 0
        assert (run_folder_of(tmp_path) / "update=100.ckpt").exists()


def test_finished_study_imports_nothing_heavy() -> None:
    """It says "finished" at once, which means without torch: the module of the verb does not bring it."""
    program = "import sys, kalm.study.run; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
