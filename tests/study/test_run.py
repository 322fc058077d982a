"""A study skips what is done, continues what was interrupted, and remakes what its inputs have outdated."""

from __future__ import annotations

import gc
import io
import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from kalm.core.errors import KalmError
from kalm.report.results import load_results
from kalm.store.labels import LABEL_MANIFEST, label_folder
from kalm.study.definition import Stage, Study, load_study
from kalm.study.run import run_study
from tests.chain_run import briefly, kalm, run_folder_of, write_config

STUDY: dict[str, Any] = {
    "name": "letters",
    "root": "out",
    "seeds": [0, 1],
    "word": "hello",
    "stages": [
        {"name": "write", "verb": "write", "with": {"to": "${root}/a", "word": "${word}"}, "writes": ["${root}/a"]},
        {
            "name": "copy",
            "verb": "copy",
            "seeds": True,
            "with": {"to": "${root}/b${seed}", "from": "${write}"},
            "writes": ["${root}/b${seed}"],
        },
    ],
    "report": {"rows": [{"experiment": "chain/bc/mixed", "label": "BC"}]},
}
WRITE, COPY_0, COPY_1 = (
    ["write", "--to=out/a", "--word=hello"],
    ["copy", "--to=out/b0", "--from=out/a"],
    ["copy", "--to=out/b1", "--from=out/a"],
)


class Commands:
    """Two verbs small enough to see through, in place of kalm's; remembers what it was asked."""

    def __init__(self) -> None:
        """Begin with nothing asked."""
        self.asked: list[list[str]] = []
        self.fails_on: list[str] | None = None

    def __call__(self, command: list[str]) -> int:
        """Run one command."""
        self.asked.append(command)
        if command == self.fails_on:
            return 3
        target, source = (option.partition("=")[2] for option in command[1:])
        content = Path(source).read_text(encoding="utf-8") if command[0] == "copy" else source
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(target).write_text(content, encoding="utf-8")
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
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False), encoding="utf-8")
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
    assert commands.asked == [WRITE, COPY_0, COPY_1]


def test_finished_study_says_so_at_once(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is run, nothing reported anew, and where the report is."""
    run(commands)
    commands.asked.clear()
    monkeypatch.setattr("kalm.report.write_report", lambda *_, **__: pytest.fail("reported again"))
    assert "study letters is finished: all 3 stages are done" in run(commands)
    assert commands.asked == []


def test_what_a_stage_leaves_in_reference_cycles_is_gone_before_the_next(commands: Commands) -> None:
    """Each stage leaves an object that refers to itself, as models do; what was there before the study stays there."""

    class Model:
        def __init__(self) -> None:
            self.itself = self

    left: list[weakref.ref[Model]] = []

    def call(command: list[str]) -> int:
        assert [reference() for reference in left] == [None] * len(left)
        left.append(weakref.ref(Model()))
        return commands(command)

    run(call)
    gc.unfreeze()
    assert len(left) == 3


def test_failed_stage_stops_the_study_and_is_all_that_is_run_again(commands: Commands) -> None:
    """Its exit code is the study's; what came before stays done."""
    commands.fails_on = COPY_1
    code = run_study(load_study(study_file()), Console(file=io.StringIO()), commands)
    assert code == 3
    commands.asked.clear()
    commands.fails_on = None
    run(commands)
    assert commands.asked == [COPY_1]


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
    assert commands.asked == [COPY_0]
    commands.asked.clear()
    run(commands, load_study(study_file(word="bye")))
    assert len(commands.asked) == 3


def test_redo_runs_a_finished_stage(commands: Commands) -> None:
    """And only what is named, as long as its output comes out the same."""
    run(commands)
    commands.asked.clear()
    run(commands, redo=["write"])
    assert commands.asked == [WRITE]


def test_options_of_the_command_line(commands: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    """Seeds and stages are given as plain words; an unknown stage is named with those that exist."""
    assert kalm("run", study_file(), "--seeds", "4", "5", "--redo", "copi") == 2
    assert "--redo copi: no such stage; the stages are write, copy" in capsys.readouterr().err
    assert [stage.seed for stage in load_study(study_file(), seeds=[4, 5]).stages] == [None, 4, 5]


def test_stage_that_does_not_write_its_outputs_is_an_error(commands: Commands) -> None:
    """A wrong path in the study file must not pass for a finished stage."""
    stage = {**STUDY["stages"][0], "writes": ["${root}/elsewhere"]}
    with pytest.raises(KalmError, match="did not write out/elsewhere"):
        run(commands, load_study(study_file(stages=[stage])))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": [{"nam": "x"}]}, "unknown key 'nam'.*did you mean 'name'"),
        ({"stages": [{"name": "x", "command": ["fit"]}]}, "unknown key 'command' in stage 'x'.*did you mean"),
        ({"stages": ["x"]}, "a stage is 'x'; it must be a mapping of name"),
        ({"stages": [{"name": "x", "with": ["a"]}]}, "with of stage 'x' is .*must be a mapping"),
        ({"stages": [{**STUDY["stages"][0], "with": {"to": "${rot}"}}]}, "'write'.*rot.*did you mean 'root'"),
        ({"stages": [{**STUDY["stages"][0], "with": {"to": "${seed}"}}]}, "stage 'write'.*seeds: true"),
        (
            {"stages": [*STUDY["stages"], {**STUDY["stages"][0], "name": "x", "with": {"to": "${copi}"}}]},
            "copi.*did you mean 'copy'",
        ),
        ({"stages": [{"name": "x", "verb": "fits"}]}, "stage 'x': nothing says what verb 'fits' writes.*collect, fit"),
        ({"stages": [{"name": "x"}]}, "stage 'x': experiment is missing"),
        ({"stages": [{"name": "x", "config": "none.yaml"}]}, "stage 'x': configuration none.yaml does not exist"),
        ({"stages": [{"verb": "write"}]}, "a stage has name ''"),
        ({"stages": [STUDY["stages"][0]] * 2}, "several stages or keys are called write"),
        ({"stages": [{**STUDY["stages"][0], "name": "word"}]}, "several stages or keys are called word"),
        ({"stages": [STUDY["stages"][0], {**STUDY["stages"][0], "name": "x"}]}, "write and x both write out/a"),
        ({"stages": [{**STUDY["stages"][0], "test": True}]}, "test of stage 'write', whose verb is write"),
        (
            {"defaults": {"fit": {"overlay": "x.yaml"}}, "stages": [{"name": "x"}]},
            "unknown key 'overlay' in defaults of fit",
        ),
        ({"name": "../x"}, "cannot name a folder"),
        ({"seeds": [-1]}, "whole numbers"),
        ({"seeds": []}, "there are no seeds"),
        ({"stages": [{"name": "x", "seeds": "each"}]}, "it is true .*, false or together"),
    ],
)
def test_mistake_in_a_study_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    """Before anything is run."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KalmError, match=message):
        load_study(study_file(**changes))


class TestStages:
    """What a stage of kalm's own verbs comes to."""

    @pytest.fixture(autouse=True)
    def _configs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        files = {
            "collect": {"experiment": "w/collect/expert"},
            "ground": {
                "experiment": "w/ground/tiny",
                "data": {"init_args": {"real": {"path": "${root}/w/collect/expert/seed=0"}}},
            },
            "bc": {
                "experiment": "w/bc/kalm",
                "model": {"init_args": {"weights_from": "${root}/w/ground/tiny/seed=${seed_everything}"}},
                "data": {"init_args": {"imagined": {"stores": ["${root}/w/collect/expert/seed=0"]}, "batch_size": 2}},
            },
        }
        for name, content in files.items():
            Path(f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")

    def stages(self, *stages: dict[str, Any], **changes: Any) -> dict[str, Stage]:
        """The stages of a study of these, by label."""
        collect = {"name": "collect", "verb": "collect", "config": "collect.yaml"}
        study = load_study(
            study_file(stages=[collect, {"name": "ground", "config": "ground.yaml"}, *stages], **changes)
        )
        return {stage.label: stage for stage in study.stages}

    def test_files_say_where_a_stage_writes_and_what_it_reads(self) -> None:
        """The experiment and the store stand in the configuration; the study names neither."""
        stages = self.stages()
        assert stages["collect"].command == ("collect", "--config", "collect.yaml", "--root=out")
        assert stages["collect"].outputs == ("out/w/collect/expert/seed=0",)
        assert stages["ground"].inputs == stages["collect"].outputs
        assert stages["ground"].outputs == ("out/w/ground/tiny/seed=0/last.ckpt",)

    def labelled(self, **label: Any) -> dict[str, Stage]:
        """Stages that label, solve by the label, and learn from another one."""
        Path("label.yaml").write_text(yaml.safe_dump({"store": "${root}/w/collect/expert/seed=0", "name": "rule"}))
        solve = {"experiment": "w/solve/own", "store": "${root}/w/collect/expert/seed=0", "label": "rule"}
        Path("solve.yaml").write_text(yaml.safe_dump(solve))
        real = {"real": {"path": "${root}/w/collect/expert/seed=0"}, "label": "some"}
        Path("proxy.yaml").write_text(yaml.safe_dump({"experiment": "w/proxy/own", "data": {"init_args": real}}))
        other = {"name": "other", "verb": "label", "config": "label.yaml", "with": {"name": "some"}}
        return self.stages(
            {"name": "label", "verb": "label", "config": "label.yaml", **label},
            other,
            {"name": "solve", "verb": "solve", "config": "solve.yaml"},
            {"name": "proxy", "config": "proxy.yaml"},
            {"name": "examine", "verb": "test", "config": "proxy.yaml", "writes": ["table.json"]},
            {"name": "student", "config": "bc.yaml", "with": {"data.imagined.stores": ["${solve}"]}},
            {"name": "look", "verb": "look", "reads": ["${label}"], "writes": ["seen"]},
        )

    def test_labels_lie_in_stores_and_plans_in_run_folders(self) -> None:
        """What each leaves, and who reads it: a label by its name beside its store, or by the stage that writes it."""
        stages, store = self.labelled(), "out/w/collect/expert/seed=0"
        assert stages["label"].command == ("label", "--config", "label.yaml", "--root=out")
        rule, some = (f"{store}/labels/{name}/label.json" for name in ("rule", "some"))
        assert Path(rule) == Path(store) / label_folder("rule") / LABEL_MANIFEST
        assert (stages["label"].inputs, stages["label"].outputs) == ((store,), (rule,))
        assert stages["other"].outputs == (some,)
        assert stages["solve"].command == ("solve", "--config", "solve.yaml", "--root=out")
        assert (stages["solve"].inputs, stages["solve"].outputs) == ((store, rule), ("out/w/solve/own/seed=0/store",))
        assert stages["proxy"].inputs == (store, some)
        assert stages["examine"].outputs == ("out/w/proxy/own/seed=0/table.json",)
        assert "out/w/solve/own/seed=0/store" in stages["student"].inputs
        assert stages["look"].inputs == (rule,)

    def test_seeds_of_labels_and_plans_are_called_so(self) -> None:
        """A label a seed, if its name says which."""
        label = {"name": "label", "verb": "label", "config": "label.yaml", "seeds": True, "with": {"name": "r${seed}"}}
        self.labelled()
        stages = self.stages(label, {"name": "solve", "verb": "solve", "config": "solve.yaml", "seeds": True})
        assert stages["label seed=1"].command[-2:] == ("--seed=1", "--name=r1")
        assert stages["label seed=1"].outputs == ("out/w/collect/expert/seed=0/labels/r1/label.json",)
        assert stages["solve seed=1"].command[-1] == "--seed=1"
        assert stages["solve seed=1"].outputs == ("out/w/solve/own/seed=1/store",)

    def test_a_label_without_a_name_is_refused(self) -> None:
        """Nobody would know where it lies."""
        with pytest.raises(KalmError, match="stage 'label': name is missing"):
            self.labelled(**{"with": {"name": None}})

    def test_what_reads_a_label_is_made_again_when_the_label_changes(self, commands: Commands) -> None:
        """Stages of another label stay; an outdated label and outdated plans are removed before."""

        def call(command: list[str]) -> int:
            commands.asked.append(command)
            stage = next(stage for stage in study.stages if list(stage.command) == command)
            for path in map(Path, stage.outputs):
                assert not path.exists()
                assert command[0] != "label" or not path.parent.exists()
                made = path / "manifest.json" if command[0] in ("collect", "solve") else path
                made.parent.mkdir(parents=True, exist_ok=True)
                made.write_text(f"{command}", encoding="utf-8")
            return 0

        def read(**label: Any) -> Study:
            self.labelled(**label)
            return load_study("study.yaml")

        study = read()
        names = [stage.name for stage in study.stages if stage.name != "ground"]
        study = replace(study, stages=tuple(stage for stage in study.stages if stage.name in names[:5]))
        run(call, study)
        assert [command[0] for command in commands.asked] == ["collect", "label", "label", "solve", "fit"]
        commands.asked.clear()
        changed = read(**{"with": {"keep": "met"}})
        study = replace(changed, stages=tuple(stage for stage in changed.stages if stage.name in names[:5]))
        run(call, study)
        assert [command[0] for command in commands.asked] == ["label", "solve"]

    def test_what_a_stage_overrides_counts(self) -> None:
        """The experiment and the seed decide the folder; a path that is replaced is not read; a run folder is."""
        options = {"seed_everything": 4, "data.imagined": None, "model.weights_from": "${ground}"}
        bc = self.stages({"name": "bc", "config": ["bc.yaml"], "experiment": "w/bc/own", "with": options})["bc"]
        assert bc.command[3:6] == ("--root=out", "--experiment=w/bc/own", "--seed_everything=4")
        assert bc.command[6:] == ("--data.imagined=null", "--model.weights_from=out/w/ground/tiny/seed=0/last.ckpt")
        assert bc.inputs == ("out/w/ground/tiny/seed=0/last.ckpt",)
        assert bc.outputs == ("out/w/bc/own/seed=4/last.ckpt",)
        assert self.stages({"name": "bc", "config": "bc.yaml"})["bc"].inputs == (
            "out/w/collect/expert/seed=0",
            "out/w/ground/tiny/seed=0/last.ckpt",
        )

    def test_values_are_typed_as_on_the_command_line(self) -> None:
        """Numbers, words, lists, mappings; a list that grows comes before what is said of its last entry."""
        options = {
            "a": 0.5,
            "b": None,
            "c": True,
            "d": [1, "x"],
            "e": {"hard": 4},
            "f+": "m.C",
            "f.count": 2,
            "g": "1 2",
        }
        command = self.stages({"name": "bc", "config": "bc.yaml", "with": options})["bc"].command
        given = ["--a=0.5", "--b=null", "--c=true", "--d=[1, x]", "--e={hard: 4}", "--f+=m.C", "--f.count=2", "--g=1 2"]
        assert list(command[4:]) == given

    def test_test_repeats_the_stage(self) -> None:
        """Same configuration and overrides, once a seed, of that seed's checkpoint; more can be overridden."""
        fit = {"name": "bc", "config": "bc.yaml", "with": {"data.imagined": None}, "seeds": "together"}
        stages = self.stages({**fit, "test": {"data.evaluation.num_test_episodes": 4}}, seeds=[0, 1, 7])
        assert list(stages)[2:] == ["bc seeds=0-1", "bc seed=7", "bc-test seed=0", "bc-test seed=1", "bc-test seed=7"]
        test = stages["bc-test seed=1"]
        own = ("--seed_everything=1", "--data.imagined=null", "--data.evaluation.num_test_episodes=4")
        assert test.command == ("test", "--config", "bc.yaml", "--root=out", *own)
        assert test.inputs == ("out/w/bc/kalm/seed=1/last.ckpt",)
        assert test.outputs == ("out/w/bc/kalm/seed=1/results.jsonl",)

    def test_defaults_of_a_verb_reach_its_stages_and_their_tests(self) -> None:
        """Files come on top of the stage's, values beneath; other verbs do not see them."""
        fit = {"name": "bc", "config": "bc.yaml", "with": {"data.batch_size": 4}, "test": True}
        Path("overlay.yaml").write_text("trainer: {max_steps: 9}", encoding="utf-8")
        defaults = {"fit": {"config": "overlay.yaml", "with": {"data.batch_size": 3, "trainer.max_steps": 5}}}
        stages = self.stages(fit, defaults=defaults)
        own = ("--config", "bc.yaml", "--config", "overlay.yaml", "--root=out")
        for name, verb in (("bc", "fit"), ("bc-test", "test")):
            assert stages[name].command == (verb, *own, "--data.batch_size=4", "--trainer.max_steps=5")
        assert "--trainer.max_steps=5" not in stages["collect"].command

    def test_seeds_together_are_one_stage_a_row_of_seeds(self) -> None:
        """Seeds 0, 1, 2 and 7: one command for the first three and one for the last; an output for each seed."""
        stage = {"name": "fit", "config": "bc.yaml", "seeds": "together", "with": {"data.imagined": None}}
        stages = self.stages(stage, seeds=[0, 1, 2, 7])
        three, one = stages["fit seeds=0-2"], stages["fit seed=7"]
        assert three.command[4:6] == ("--seed_everything=0", "--model.num_seeds=3")
        assert one.command[4:6] == ("--seed_everything=7", "--model.num_seeds=1")
        runs = ("seeds=0-2", "seed=0", "seed=1", "seed=2")
        assert three.outputs == tuple(f"out/w/bc/kalm/{run}/last.ckpt" for run in runs)
        assert one.outputs == ("out/w/bc/kalm/seed=7/last.ckpt",)

    def test_report_sees_commands_as_they_are_typed(self) -> None:
        """The root is filled in; what differs from run to run stays a name."""
        stages = [{"name": "fit", "config": "bc.yaml", "seeds": "together", "with": {"data.imagined": None}}]
        (shown,) = load_study(study_file(stages=stages), root="there").definition["stages"]
        assert shown["command"][3:6] == ["--root=there", "--seed_everything=${seed}", "--model.num_seeds=${num_seeds}"]
        runs = ("${run}", "seed=${seed}")
        assert shown["outputs"] == [f"there/w/bc/kalm/{run}/last.ckpt" for run in runs]


def test_studies_share_what_they_have_in_common(commands: Commands) -> None:
    """A second study with the same stages finds them done."""
    run(commands)
    commands.asked.clear()
    assert "2 stages" not in run(commands, load_study(study_file(name="other", stages=STUDY["stages"][:1])))
    assert commands.asked == []


def test_output_that_another_stage_wrote_over_is_written_again(commands: Commands) -> None:
    """The file is there and the command is the same, but what is in it is another study's."""
    run(commands)
    run(commands, load_study(study_file(name="other", word="bye", stages=STUDY["stages"][:1])))
    commands.asked.clear()
    run(commands)
    assert commands.asked == [WRITE]
    assert Path("out/a").read_text(encoding="utf-8") == "hello"


class TestChainStudy:
    """A study of real verbs: behaviour cloning on the chain, with its evaluation and the report."""

    @pytest.fixture(autouse=True)
    def _in_tmp_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fit = {"name": "bc", "config": write_config(tmp_path), "seeds": True, "test": True}
        study = {**STUDY, "name": "chain", "root": str(tmp_path), "seeds": [3], "stages": [fit]}
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
        monkeypatch.chdir(tmp_path)

    def test_interrupted_fit_continues_and_equals_an_uninterrupted_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Killed after the checkpoint at update 60, the study resumes there, goes on, reports, and is then finished."""
        from kalm.callbacks.every_run import UpdateCheckpoint

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
        from kalm.callbacks.every_run import UpdateCheckpoint

        study = yaml.safe_load((tmp_path / "study.yaml").read_text(encoding="utf-8"))
        study["seeds"] = [3, 4]
        study["stages"][0]["seeds"] = "together"
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
        assert "--model.num_seeds=2 --ckpt_path last" in capsys.readouterr().out
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
        assert kalm("fit", "--config", "bc.yaml", *briefly(5)) == 0
        for _ in range(2):  # a refusal does not make it the study's own
            assert kalm("run", "study.yaml") == 4
            assert "already holds a run" in capsys.readouterr().err
        path = tmp_path / "study/stages/fit+chain+bc+mixed+seed=3+last.ckpt.json"
        path.parent.mkdir(parents=True)
        marker = {"study": "other", "fingerprint": "of another configuration", "is_finished": True, "seconds": 1.0}
        path.write_text(json.dumps(marker), encoding="utf-8")
        assert kalm("run", "study.yaml") == 4, "what another study made is not overwritten"
        path.write_text(json.dumps({**marker, "study": "chain"}), encoding="utf-8")
        assert kalm("run", "study.yaml") == 0
        assert (run_folder_of(tmp_path) / "update=100.ckpt").exists()


def test_finished_study_imports_nothing_heavy() -> None:
    """It says "finished" at once, which means without torch: the module of the verb does not bring it."""
    program = "import sys, kalm.study.run; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
