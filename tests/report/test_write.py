"""A whole report, from files to files."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from kalm.core.errors import DataError
from kalm.core.provenance import git_commit
from kalm.report import write_report

REAL, BOTH = "clevr_robot/bc/real", "clevr_robot/bc/both"
STUDY = {
    "name": "tiny study",
    "seeds": [0, 1],
    "stages": [{"name": "bc", "command": ["fit", "--config", "conf/my bc.yaml", "--seed_everything", "${seed}"]}],
    "report": {
        "rows": [{"experiment": REAL, "label": "BC"}, {"experiment": BOTH, "label": "BC + KALM", "baseline": REAL}]
    },
}


@pytest.fixture
def complete(write_results, result_line, tmp_path):
    """Both experiments, both seeds, two validations and a test each; and the metrics of one grounding run."""
    for experiment in (REAL, BOTH):
        for seed in (0, 1):
            for update, stage in ((50, "validate"), (100, "validate"), (100, "test")):
                success = experiment == BOTH or update == 50
                facts = {"experiment": experiment, "seed": seed, "update": update, "stage": stage}
                algorithm = "BC" if experiment == BOTH else "CQL"
                write_results(result_line(**facts, algorithm=algorithm, is_success=success))
    folder = tmp_path / "clevr_robot" / "ground" / "tiny" / "seed=0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(
        "step,explain/seen_prompt_accuracy,imagine/easy/action_match\n5,0.5,0.25\n9,0.9,0.5\n", encoding="utf-8"
    )
    return tmp_path


def test_a_report_is_markdown_a_page_and_plots(complete, tmp_path):
    """Every file is there, the page is self-contained, and the table says what the episodes say."""
    paths = write_report([complete], tmp_path / "out", STUDY, num_last_evaluations=2)
    markdown = paths.markdown.read_text(encoding="utf-8")
    assert "| BC | 2 | 0.0 ± 0.0 (0.0-79.3) |" in markdown
    assert "| difference |  | +100.0 (+20.7 to +100.0) |" in markdown
    assert "mean of the last 2 evaluations" in markdown
    assert "| BC | 2 | 50.0 ± 0.0 |" in markdown
    assert "| explanation, seen prompt | 90.0 | > 85 |" in markdown
    assert [plot.name for plot in paths.plots] == ["success.png", "training.png", "grounding.png"]
    page = paths.page.read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r"(src|href)=.(https?:|[\w./]+png)", page)
    for plot in paths.plots:
        assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_report_ends_with_how_it_was_made(complete, tmp_path):
    """Commands as typed, seeds, updates, version, commit, machine, durations."""
    paths = write_report([complete], tmp_path / "out", STUDY, durations={"ground": 61.0, "bc": 3.5})
    ending = paths.markdown.read_text(encoding="utf-8").partition("## How these numbers were made")[2]
    assert "command: python -m kalm fit --config 'conf/my bc.yaml' --seed_everything '${seed}'" in ending
    assert f"run: {BOTH} (BC): seeds 0, 1; evaluated at update 100" in ending
    assert f"run: {REAL} (CQL): seeds 0, 1; evaluated at update 100" in ending
    assert re.search(r"kalm: 0\.\d+\.\d+, commit ([0-9a-f]{40}(-dirty)?|unknown)", ending)
    assert re.search(r"machine: .*\d+ cores", ending)
    assert "duration: ground: 1 min 01 s" in ending
    assert "duration: all stages: 1 min 04 s" in ending


def test_an_experiment_that_the_study_runs_once_lacks_no_seed(write_results, result_line, tmp_path):
    """Its stage has no seed in its outputs, and one seed of results is all that there can be."""
    root = write_results(*(result_line(experiment=REAL, seed=seed) for seed in (0, 1)), result_line(experiment=BOTH))
    once = {"name": "once", "outputs": [f"checkpoints/{BOTH}/seed=0/results.jsonl"]}
    study = {**STUDY, "stages": [*STUDY["stages"], once]}
    assert not any(BOTH in line for line in write_report([root], tmp_path / "out", study).missing)


def test_a_partial_study_gives_a_partial_report(write_results, result_line, tmp_path):
    """One of two experiments, one of two seeds, not tested yet: the rest is named."""
    root = write_results(result_line(experiment=REAL, stage="validate"))
    paths = write_report([root], tmp_path / "out", STUDY)
    assert paths.missing[:3] == (
        f"{REAL}, seed 0: not tested yet; its last validation is shown",
        f"{REAL}, seed 1: no episodes; it was not trained or not evaluated",
        f"{BOTH}, seed 0: no episodes; it was not trained or not evaluated",
    )
    assert any(sentence.startswith("imagined rollouts") for sentence in paths.missing)
    assert any(sentence.startswith("grounding") for sentence in paths.missing)
    page = paths.page.read_text(encoding="utf-8")
    assert all(sentence in page for sentence in paths.missing)


def test_what_was_only_validated_is_not_shown_beside_what_was_tested(write_results, result_line, tmp_path):
    """The one experiment was tested; the other's validation is left out, and that is said."""
    root = write_results(
        *(result_line(experiment=REAL, seed=seed) for seed in (0, 1)),
        *(result_line(experiment=BOTH, seed=seed, stage="validate") for seed in (0, 1)),
    )
    paths = write_report([root], tmp_path / "out", STUDY)
    assert f"{BOTH}, seed 1: not tested yet; left out, for others were" in paths.missing
    assert "| BC + KALM | 0 | - |" in paths.markdown.read_text(encoding="utf-8")


def test_replications_belong_to_their_row(complete, write_results, result_line, tmp_path):
    """A second grounding of the row with imagination: its runs count, and its missing seed is named."""
    write_results(result_line(experiment="clevr_robot/bc/again", is_success=False))
    row = {"experiment": BOTH, "label": "BC + KALM", "baseline": REAL, "replications": ["clevr_robot/bc/again"]}
    study = {**STUDY, "report": {"rows": [STUDY["report"]["rows"][0], row]}}
    paths = write_report([complete], tmp_path / "out", study)
    assert "| BC + KALM | 2 x 2 | 50.0 ± 70.7 (0.0-100.0) |" in paths.markdown.read_text(encoding="utf-8")
    assert "clevr_robot/bc/again, seed 1: no episodes; it was not trained or not evaluated" in paths.missing


def test_grounding_alone_is_reported(tmp_path):
    """The study stopped before its first policy."""
    (tmp_path / "metrics.csv").write_text("step,explain/seen_prompt_accuracy\n5,0.5\n", encoding="utf-8")
    paths = write_report([tmp_path], tmp_path / "out", STUDY)
    assert "explanation, seen prompt" in paths.markdown.read_text(encoding="utf-8")
    assert [plot.name for plot in paths.plots] == ["grounding.png"]


def test_without_a_study_every_experiment_is_a_row(complete, tmp_path):
    """And nothing is compared with anything."""
    markdown = write_report([complete], tmp_path / "out").markdown.read_text(encoding="utf-8")
    assert "| clevr_robot/bc/real | 2 |" in markdown
    assert "difference" not in markdown


def test_experiments_outside_of_the_study_are_left_out(complete, write_results, result_line, tmp_path):
    """The root holds runs of another day, too: another experiment, another seed, another language model."""
    write_results(result_line(experiment="clevr_robot/bc/other"), result_line(experiment=REAL, seed=7))
    other = tmp_path / "clevr_robot" / "ground" / "other" / "seed=0"
    other.mkdir(parents=True)
    (other / "metrics.csv").write_text("step,explain/seen_prompt_accuracy\n5,0.1\n", encoding="utf-8")
    stage = {"name": "ground", "command": ["fit"], "outputs": [f"{complete}/clevr_robot/ground/tiny/seed=0/last.ckpt"]}
    paths = write_report([complete], tmp_path / "out", {**STUDY, "stages": [stage]})
    markdown = paths.markdown.read_text(encoding="utf-8")
    assert "clevr_robot/ground/tiny/seed=0" in markdown
    assert "other" not in markdown
    assert "seeds 0, 1;" in markdown
    assert not any("seed 7" in sentence for sentence in paths.missing)


def test_hostile_labels_reach_tables_and_plots_as_text(write_results, result_line, tmp_path):
    """A label with markup, mathematics that does not parse, and terminal markup."""
    evil = "<img src=x onerror=alert(1)> $\\frac{ [bold]"
    study = {**STUDY, "report": {"rows": [{"experiment": REAL, "label": evil}]}}
    root = write_results(result_line(experiment=REAL), result_line(experiment=REAL, stage="validate", task=evil))
    console = Console(file=io.StringIO(), width=250)
    paths = write_report([root], tmp_path / "out", study, console=console)
    for text in (paths.page.read_text(encoding="utf-8"), paths.markdown.read_text(encoding="utf-8")):
        assert "<img src=x" not in text
    assert evil in console.file.getvalue()


def test_the_console_shows_the_table_and_where_the_rest_is(complete, tmp_path):
    """What `make demo` ends with."""
    videos = complete / REAL / "seed=0" / "videos"
    videos.mkdir()
    (videos / "easy-0.gif").write_bytes(b"GIF89a")
    console = Console(file=io.StringIO(), width=200)
    write_report([complete], tmp_path / "out", STUDY, console=console)
    shown = console.file.getvalue()
    assert f"videos: {videos} and 0 more" in shown
    assert f"tensorboard --logdir {complete}" in shown
    assert "BC + KALM" in shown
    assert "+100.0" in shown
    assert f"with plots: {tmp_path / 'out' / 'report.html'}" in shown


def test_a_narrow_terminal_cuts_no_number_off(complete, tmp_path):
    """Forty columns do not hold the table; the numbers are there all the same."""
    console = Console(file=io.StringIO(), width=40)
    write_report([complete], tmp_path / "out", STUDY, console=console)
    shown = console.file.getvalue()
    assert all(number in shown for number in ("100.0 ± 0.0", "(20.7-100.0)", "+100.0", "(+20.7 to +100.0)"))


def test_the_same_results_give_the_same_report(complete, tmp_path):
    """No times, no random names: two reports differ only if the results do."""
    first = write_report([complete], tmp_path / "one", STUDY)
    second = write_report([complete], tmp_path / "two", STUDY)
    assert first.page.read_bytes() == second.page.read_bytes()


def test_nothing_to_report_names_what_is_there(tmp_path):
    """A typo in the folder, a folder without results."""
    with pytest.raises(DataError, match="no such folder to report on: .*absent"):
        write_report([tmp_path / "absent"], tmp_path / "out")
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match=r"nothing to report .*found there: notes\.txt"):
        write_report([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_misspelt_key_in_the_report_section_is_named(complete, tmp_path):
    """`lable` is not silently ignored."""
    study = {**STUDY, "report": {"rows": [{"experiment": REAL, "lable": "BC"}]}}
    with pytest.raises(DataError, match=r"row 1 .*'lable'.*allowed keys: experiment, label, baseline, replications"):
        write_report([complete], tmp_path / "out", study)


def test_a_folder_outside_of_git_has_no_commit(tmp_path, monkeypatch):
    """An installed wheel is not a checkout."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit(Path(tmp_path)) == "unknown"
