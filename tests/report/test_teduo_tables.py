"""What could be solved, out of the files that ``solve`` leaves."""

from __future__ import annotations

import json
from pathlib import Path

from kalm.report.teduo_tables import solved_table


def write_solved(root: Path, name: str, *tasks: str, is_oracle: bool = False) -> Path:
    """The file of one run, of one task or both: 2 of 4 pairs are met and solved from half; 6 of 6 from all states."""
    kinds = {
        "open": {"num_pairs": 4, "num_pairs_met": 2, "solvable_share": 0.5, "num_plans": 10, "mean_length": 20.0},
        "pick_up": {"num_pairs": 6, "num_pairs_met": 6, "solvable_share": 1.0, "num_plans": 30, "mean_length": 40.0},
    }
    folder = root / "babyai/solve" / name / "seed=0"
    folder.mkdir(parents=True)
    content = {"is_oracle": is_oracle, "kinds": {task: kinds[task] for task in tasks}}
    (folder / "solved.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_all_tasks_are_one_row_more(tmp_path: Path) -> None:
    """(2 * 50 + 6 * 100) / 8 = 87.5 % of states, and (10 * 20 + 30 * 40) / 40 = 35 steps; of one task there is none."""
    folders = [write_solved(tmp_path, "both", "open", "pick_up"), write_solved(tmp_path, "one", "open", is_oracle=True)]

    table = solved_table(folders, [tmp_path])

    assert table is not None
    assert table.rows == (
        ("babyai/solve/both/seed=0: open", "2 of 4", "50.0", "10", "20.0"),
        ("babyai/solve/both/seed=0: pick_up", "6 of 6", "100.0", "30", "40.0"),
        ("babyai/solve/both/seed=0: all tasks", "8 of 10", "87.5", "40", "35.0"),
        ("babyai/solve/one/seed=0: open", "2 of 4", "50.0", "10", "20.0"),
    )
    assert "babyai/solve/one" in table.note
    assert "babyai/solve/both" not in table.note


def test_without_a_file_there_is_no_table(tmp_path: Path) -> None:
    """Nothing was solved."""
    assert solved_table([tmp_path], [tmp_path]) is None
