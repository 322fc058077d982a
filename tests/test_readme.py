"""What README and RESULTS.md name exists, their commands parse, and the README's Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from kalm.__main__ import main
from kalm.cli import verbs
from kalm.envs.clevr_robot import ClevrRobot, MoveGoal
from kalm.language.encoder import SentenceEncoder
from kalm.rl.bc import BC

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "conf" / "study" / "RESULTS.md").read_text(encoding="utf-8")
MAX_LINES, MAX_COLUMNS = 150, 160
LIGHTNING_VERBS = ("fit", "validate", "test", "predict")


def code_lines(text: str) -> list[str]:
    """Every line of the shell blocks, continuation lines joined, and every code span."""
    blocks = re.findall(r"```(?:bash|sh|shell)\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return lines + [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", prose)]


def commands(text: str, module: str) -> list[list[str]]:
    """The words after ``python -m <module>`` of every command."""
    found = [line.partition(f"python -m {module}") for line in code_lines(text)]
    return [shlex.split(rest, comments=True) for before, name, rest in found if name and not before]


KALM_COMMANDS = [words for text in (README, RESULTS) for words in commands(text, "kalm ")]


def test_the_readme_is_short_enough_to_read() -> None:
    """Five minutes, in a terminal as well as in a browser."""
    assert len(README.splitlines()) <= MAX_LINES
    for text in (README, RESULTS):
        assert [line for line in text.splitlines() if len(line) > MAX_COLUMNS] == []


def test_both_main_commands_are_there() -> None:
    """The two commands that do everything."""
    assert {"make demo", "make test"} <= {line.split("#")[0].strip() for line in code_lines(README)}


def test_make_targets_exist() -> None:
    """Every `make x` is a target of the Makefile."""
    named = set(re.findall(r"\bmake ([a-z][a-z-]+)\b", " ".join(code_lines(README) + code_lines(RESULTS))))
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert len(named) >= 4
    assert named <= targets


def test_every_stage_has_a_command_by_hand() -> None:
    """One example at least of each verb that a researcher types."""
    verbs = {words[0] for words in commands(README, "kalm ")}
    assert {"doctor", "collect", "fit", "predict", "test", "run", "report", "export"} <= verbs


@pytest.mark.parametrize("words", KALM_COMMANDS, ids=" ".join)
def test_every_command_parses(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the files, keys and classes that it names; nothing is run."""
    monkeypatch.chdir(ROOT)
    verb, *rest = [word.replace("my.World", "tests.chain_domain.ChainDomain") for word in words]
    if verb in (*LIGHTNING_VERBS, "collect"):
        assert main([verb, *rest, "--print_config"]) == 0
    elif "--help" in rest:
        assert main([verb, *rest]) == 0
    else:
        parser, _ = verbs.VERBS[verb]
        parsed = parser().parse_args(rest)
        assert all((ROOT / word).is_file() for word in rest if word.endswith(".yaml")), parsed


@pytest.mark.parametrize("text", [README, RESULTS], ids=["README", "RESULTS"])
def test_paths_in_the_text_exist(text: str) -> None:
    """Whatever is in backticks, a command or a link and looks like a path of the checkout."""
    paths = set(re.findall(r"[`( ]((?:kalm|callbacks|conf|tests)/[\w./-]*\w/?)", text))
    modules = {words[0].replace(".", "/") + ".py" for words in commands(text, "")}
    paths |= {path for path in modules if path.startswith("tests/")}
    assert len(paths) >= 8
    absent = sorted(path for path in paths if not (ROOT / path).exists())
    assert absent == []


def test_every_algorithm_is_in_the_table() -> None:
    """Adding an algorithm means adding a row that names its file."""
    files = sorted((ROOT / "kalm" / "rl").glob("*.py"))
    algorithms = [path.name for path in files if "(OfflineRLModule)" in path.read_text(encoding="utf-8")]
    assert len(algorithms) >= 2
    rows = "\n".join(line for line in README.splitlines() if line.startswith("|"))
    assert [name for name in algorithms if f"`kalm/rl/{name}`" not in rows] == []


def test_every_stage_file_is_mentioned() -> None:
    """A YAML that nobody is told of is not used."""
    stages = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "conf" / "clevr_robot").glob("*.yaml"))
    assert len(stages) >= 4
    assert [path for path in stages if path not in README] == []


def test_every_number_of_the_readme_is_in_the_results() -> None:
    """The README shows some of the measured numbers and has none of its own."""
    table = README.partition("| policy | train |")[2].partition("\n\n")[0]
    numbers = set(re.findall(r"\d+\.\d", table))
    assert len(numbers) > 20
    assert [number for number in numbers if number not in RESULTS] == []


def test_the_moving_picture_is_small() -> None:
    """It is loaded with the page."""
    (path,) = re.findall(r"!\[[^]]*\]\(([^)]+\.gif)\)", README)
    assert (ROOT / path).stat().st_size < 1_000_000


def test_the_example_of_own_goals_is_read(tmp_path: Path) -> None:
    """The JSON line in the README is a goal of CLEVR-Robot."""
    (line,) = re.findall(r"```json\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "goals.jsonl").write_text(line, encoding="utf-8")
    (goal,) = ClevrRobot().load_instructed_goals(tmp_path / "goals.jsonl")
    assert goal.goal == MoveGoal("red", "left")


def test_the_example_of_a_policy_in_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a checkpoint of an untrained policy; the action is one of the domain's."""
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    (path,) = re.findall(r'"(checkpoints/[^"]+\.ckpt)"', code)
    monkeypatch.chdir(tmp_path)
    Path(path).parent.mkdir(parents=True)
    encoder = SentenceEncoder(cache_dir=None)
    policy = BC(spec=ClevrRobot().spec.with_goals(encoder.embedding_size))
    torch.save({"state_dict": policy.state_dict()}, path)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert ClevrRobot().action_space.contains(int(names["action"]))  # type: ignore[call-overload]


def test_citations_name_both_papers() -> None:
    """KALM and TEDUO, by arXiv number."""
    assert "2404.09248" in README
    assert "2412.06877" in README
