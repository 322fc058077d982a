"""The README's commands, paths and targets exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kalm.envs.clevr_robot import ClevrRobot, MoveGoal

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _code_lines() -> list[str]:
    """Every line of the README's shell blocks, continuation lines joined."""
    blocks = re.findall(r"```(?:bash|sh|shell)\n(.*?)```", README, flags=re.DOTALL)
    return [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def _kalm_commands() -> list[list[str]]:
    """The words after `python -m kalm` of every command in a shell block."""
    lines = [line for line in _code_lines() if "-m kalm" in line]
    return [shlex.split(line, comments=True)[3:] for line in lines]


def test_the_readme_is_short_enough_to_read():
    """STYLE: under 200 lines."""
    assert len(README.splitlines()) < 200


def test_both_main_commands_are_there():
    """The two commands that do everything."""
    assert {"make demo", "make test"} <= {line.split("#")[0].strip() for line in _code_lines()}


def test_make_targets_exist():
    """Every `make x` in the README is a target of the Makefile."""
    code = " ".join(_code_lines() + re.findall(r"`([^`\n]+)`", README))
    named = set(re.findall(r"\bmake ([a-z][a-z-]+)\b", code))
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert len(named) >= 4
    assert named <= targets


def test_every_stage_has_a_command_by_hand():
    """One example at least of each verb that a researcher types."""
    verbs = {words[0] for words in _kalm_commands()}
    assert {"doctor", "collect", "fit", "predict", "test", "run", "report"} <= verbs


def test_commands_name_verbs_that_exist():
    """The first word of every command is a verb that `python -m kalm --help` lists."""
    done = subprocess.run(
        [sys.executable, "-m", "kalm", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    verbs = set(re.findall(r"^  (\w+)  +\S", done.stdout, flags=re.MULTILINE))
    assert {words[0] for words in _kalm_commands()} <= verbs


@pytest.mark.parametrize("words", _kalm_commands(), ids=" ".join)
def test_commands_name_files_that_exist(words):
    """Every YAML file in a command is in the checkout."""
    for word in words:
        if word.endswith(".yaml"):
            assert (ROOT / word).is_file(), f"{word} does not exist"


def test_paths_in_the_text_exist():
    """Whatever the README puts in backticks and looks like a path of the checkout."""
    paths = set(re.findall(r"`((?:kalm|callbacks|conf|tests)/[\w./-]*)`", README))
    assert len(paths) > 10
    absent = sorted(path for path in paths if not (ROOT / path).exists())
    assert absent == []


def test_every_algorithm_is_in_the_table():
    """Adding an algorithm means adding a row that names its file."""
    files = sorted((ROOT / "kalm" / "rl").glob("*.py"))
    algorithms = [path.name for path in files if "(OfflineRLModule)" in path.read_text(encoding="utf-8")]
    assert len(algorithms) >= 2
    rows = "\n".join(line for line in README.splitlines() if line.startswith("|"))
    assert [name for name in algorithms if f"`kalm/rl/{name}`" not in rows] == []


def test_every_stage_file_is_mentioned():
    """A YAML that nobody is told of is not used."""
    stages = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "conf" / "clevr_robot").glob("*.yaml"))
    assert len(stages) >= 4
    assert [path for path in stages if path not in README] == []


def test_the_example_of_own_goals_is_read(tmp_path):
    """The JSON line in the README is a goal of CLEVR-Robot."""
    (line,) = re.findall(r"```json\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "goals.jsonl").write_text(line, encoding="utf-8")
    (goal,) = ClevrRobot().load_instructed_goals(tmp_path / "goals.jsonl")
    assert goal.goal == MoveGoal("red", "left")


def test_citations_name_both_papers():
    """KALM and TEDUO, by arXiv number."""
    assert "2404.09248" in README
    assert "2412.06877" in README
