"""The command line: quick to answer, strict about what it is given, clear about what is wrong with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from kalm.__main__ import main
from kalm.core.errors import KalmError
from kalm.runs.folder import run_folder
from tests.chain_run import briefly, kalm, run_folder_of, write_config


def overlay(tmp_path: Path, content: dict[str, Any]) -> Path:
    """A second configuration file."""
    path = tmp_path / "overlay.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def printed_config(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    """What ``--print_config`` says after everything is merged and resolved."""
    assert kalm(*arguments, "--print_config") == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["collect", "--help"], ["run", "--help"], ["report", "--help"], ["export", "--help"]]
)
def test_help_needs_no_heavy_import(arguments: list[str]) -> None:
    """What makes --help slow is torch and its friends; a process that only answers --help imports none of them."""
    program = (
        "import sys; from kalm.__main__ import main\n"
        f"code = main({arguments!r})\n"
        "heavy = {'torch', 'lightning', 'transformers', 'mujoco', 'matplotlib', 'tensordict'} & set(sys.modules)\n"
        "sys.stderr.write(' '.join(sorted(heavy))); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: python -m kalm" in done.stdout


def test_doctor_help_needs_no_heavy_import() -> None:
    """The check of the GPU imports torch; asking what doctor does, not."""
    program = (
        "import sys; from kalm.__main__ import main; main(['doctor', '--help']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=True)


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    """Lightning's four and ours."""
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for verb in ("fit", "validate", "test", "predict", "collect", "solve", "run", "export", "report", "doctor"):
        assert f"\n  {verb} " in out


def test_process_exits_with_the_errors_code_and_no_traceback(tmp_path: Path) -> None:
    """Through the real process: usage is 2, one line on standard error."""
    command = [sys.executable, "-m", "kalm", "run", str(tmp_path / "none.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert (
        done.stderr == f"error: study file {tmp_path / 'none.yaml'} does not exist; folder {tmp_path} holds nothing\n"
    )


def test_unknown_verb_names_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2."""
    assert main(["train"]) == 2
    assert "unknown verb 'train'; the verbs are collect, label, solve, fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"trainer": {"max_step": 3}}, ["'trainer.max_step'", "did you mean 'trainer.max_steps'?"]),
        ({"trainr": {"max_steps": 3}}, ["'trainr.max_steps'", "did you mean 'trainer.max_steps'?"]),
        (
            {"model": {"class_path": "kalm.rl.bc.BC", "init_args": {"lerning_rate": 1}}},
            ["kalm.rl.bc.BC has no parameter 'lerning_rate'", "did you mean 'learning_rate'?"],
        ),
        (
            {"model": {"class_path": "kalm.rl.bc.CB"}},
            ["'kalm.rl.bc.CB' does not exist", "did you mean 'kalm.rl.bc.BC'?"],
        ),
        ({"model": {"class_path": "kalm.rl.bcc.BC"}}, ["does not exist", "did you mean 'kalm.rl.bc.BC'?"]),
        ({"model": {"class_path": "kalm.callbacks.every_run.UpdateCheckpoint"}}, ["model", "LightningModule"]),
        ({"data": {"init_args": {"real": {"path": "${rooot}/real"}}}}, ["rooot", "did you mean 'root'?"]),
        ({"root": "${experiment}", "experiment": "${root}"}, ["refers to itself"]),
        ({"trainer": {"max_steps": "many"}}, ["trainer.max_steps", "many"]),
        ({"trainer": {"default_root_dir": "/tmp"}}, ["trainer.default_root_dir", "set root and experiment instead"]),
    ],
)
def test_mistake_in_yaml_names_the_key_and_the_nearest_valid_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: dict[str, Any], named: list[str]
) -> None:
    """Misspelt keys, wrong class paths, circular and dangling interpolation, wrong types."""
    arguments = ("--config", write_config(tmp_path), "--config", overlay(tmp_path, content))
    assert kalm("fit", *arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "Traceback" not in message
    for text in named:
        assert text in message


def test_abbreviated_option_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--trainer.max_step`` must not pass for ``--trainer.max_steps``, today or when a new option starts alike."""
    assert kalm("fit", "--config", write_config(tmp_path), "--trainer.max_step", "5") == 2
    assert "did you mean 'trainer.max_steps'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.init_args.evaluation.goal_splits": ["train", "esay"]}, "esay.*train, rephrase, easy, hard"),
        ({"data.init_args.evaluation.goals_file": "goals.jsonl"}, "rephrase.*splits with instructions: train"),
    ],
)
def test_unknown_or_empty_split_names_the_valid_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    """A misspelt split, and a goals file without one of the splits; data errors have exit code 3 or 2."""
    goal = '{"goal": {"type": "cell", "cell": 1}, "instruction": "be there", "goal_split": "train"}\n'
    (tmp_path / "goals.jsonl").write_text(goal, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KALM_TRACEBACK", "1")
    with pytest.raises(KalmError, match=message):
        kalm("fit", "--config", write_config(tmp_path, **changes), "--trainer.max_steps", "25")


@pytest.mark.parametrize(
    "name", ["../../etc", "/etc/kalm/x", "a/../../b", "chain/bc", "a/b/c/d", "", "a/b/.hidden", "a/b/c d"]
)
def test_experiment_cannot_lead_out_of_the_root(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Refused with what is allowed; nothing is written."""
    with pytest.raises(KalmError, match="cannot name a folder below"):
        run_folder(str(tmp_path), name, 0)


def test_experiment_is_checked_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same, through the parser."""
    assert kalm("fit", "--config", write_config(tmp_path), "--experiment", "../../etc") == 2
    assert "'../../etc' cannot name a folder" in capsys.readouterr().err


def test_overlay_appends_callbacks_and_overrides_scalars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``callbacks+:`` in a later file adds to the list; a plain key replaces what was there."""
    rate = {"class_path": "kalm.callbacks.every_run.UpdateProgressBar", "init_args": {"refresh_rate": 2}}
    file = overlay(tmp_path, {"trainer": {"max_steps": 5, "callbacks+": [rate]}})
    config = printed_config(capsys, "fit", "--config", write_config(tmp_path), "--config", file)
    assert config["trainer"]["max_steps"] == 5
    assert [callback["class_path"] for callback in config["trainer"]["callbacks"]] == [
        "kalm.callbacks.success_rate.SuccessRate",
        "kalm.callbacks.every_run.UpdateProgressBar",
    ]
    replaced = overlay(tmp_path, {"trainer": {"callbacks": [rate]}})
    config = printed_config(capsys, "fit", "--config", write_config(tmp_path), "--config", replaced)
    assert len(config["trainer"]["callbacks"]) == 1


def test_interpolation_follows_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``${root}`` in a file means the root that counts in the end, not the one in that file."""
    arguments = ("--config", write_config(tmp_path), "--root", "elsewhere")
    assert printed_config(capsys, "fit", *arguments)["data"]["init_args"]["real"]["path"] == "elsewhere/real"


def test_one_means_one_batch_whatever_was_imported_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python's cache may turn Lightning's ``int | float`` into ``float | int``; 1 must not become 1.0, all batches."""
    add = LightningCLI.add_core_arguments_to_parser

    def add_with_other_order(cli: LightningCLI, parser: LightningArgumentParser) -> None:
        add(cli, parser)
        action = next(action for action in parser._actions if action.dest == "trainer.limit_val_batches")
        action._typehint = float | int | None  # type: ignore[attr-defined]

    monkeypatch.setattr(LightningCLI, "add_core_arguments_to_parser", add_with_other_order)
    config = printed_config(capsys, "fit", "--config", write_config(tmp_path), "--trainer.limit_val_batches", "1")
    limit = config["trainer"]["limit_val_batches"]
    assert (limit, type(limit)) == (1, int)


def test_progress_bar_counts_updates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five updates a step, resumed at 25: the bar ends at 50 of 50, where batches would have said 5 of 25."""
    config, show = write_config(tmp_path), ("--trainer.enable_progress_bar", "true")
    assert kalm("fit", "--config", config, *show, "--trainer.max_steps", "25") == 0
    assert "25/25" in capsys.readouterr().out
    assert kalm("fit", "--config", config, *show, "--trainer.max_steps", "50", "--ckpt_path", "last") == 0
    assert "50/50" in capsys.readouterr().out


def test_validate_evaluates_the_last_checkpoint(tmp_path: Path) -> None:
    """Without being told which one; and without one it is an error, not an evaluation of random weights."""
    config = write_config(tmp_path)
    assert kalm("validate", "--config", config) == 4
    assert kalm("fit", "--config", config, *briefly(10)) == 0
    assert kalm("validate", "--config", config) == 0
    lines = (run_folder_of(tmp_path) / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["update"] for line in lines} == {10}


def test_seed_reaches_the_data(tmp_path: Path) -> None:
    """One seed: the folder's name, the data's order and the resolved configuration agree."""
    config = write_config(tmp_path)
    shortened = ("--trainer.max_steps", "5", "--trainer.limit_val_batches", "0")
    metrics = []
    for seed in (11, 12):
        assert kalm("fit", "--config", config, *shortened, "--seed_everything", str(seed)) == 0
        metrics.append((run_folder_of(tmp_path, seed) / "metrics.csv").read_text(encoding="utf-8"))
    assert metrics[0] != metrics[1]


def test_saved_config_starts_the_same_run_again(tmp_path: Path) -> None:
    """config.yaml is complete: given alone, with another root, it makes an equal metrics.csv."""
    first = run_folder_of(tmp_path)
    assert kalm("fit", "--config", write_config(tmp_path), *briefly(10)) == 0
    again = tmp_path / "again"
    assert kalm("fit", "--config", first / "config.yaml", "--root", again) == 0
    second = run_folder_of(again)
    assert (second / "metrics.csv").read_bytes() == (first / "metrics.csv").read_bytes()


def test_overwrite_starts_afresh(tmp_path: Path) -> None:
    """The old run's files go once the new run is built; files of others stay."""
    config, folder = write_config(tmp_path), run_folder_of(tmp_path)
    assert kalm("fit", "--config", config, *briefly(10)) == 0
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    assert kalm("fit", "--config", config, "--overwrite", "true", "--model.init_args.learning_rate", "-1") == 2
    assert (folder / "update=10.ckpt").exists(), "a mistake must not cost the old run"
    assert (
        kalm(
            "fit",
            "--config",
            config,
            "--overwrite",
            "true",
            "--trainer.max_steps",
            "5",
            "--trainer.limit_val_batches",
            "0",
        )
        == 0
    )
    left = sorted(path.name for path in folder.iterdir() if not path.name.startswith("events"))
    assert left == ["config.yaml", "last.ckpt", "metrics.csv", "notes.txt", "update=5.ckpt", "update=5.ckpt.json"]
    assert sum(path.name.startswith("events") for path in folder.iterdir()) == 1


def test_secrets_of_the_environment_are_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither configuration nor checkpoint nor logs hold what the environment holds."""
    monkeypatch.setitem(os.environ, "WANDB_API_KEY", "s3cr3t-t0ken")
    assert kalm("fit", "--config", write_config(tmp_path), *briefly(5)) == 0
    files = [path for path in run_folder_of(tmp_path).iterdir() if path.is_file()]
    assert len(files) >= 4
    assert not any(b"s3cr3t-t0ken" in path.read_bytes() for path in files)
