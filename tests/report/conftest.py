"""Builders of small results files, so that each test states only what matters to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kalm.report.results import EpisodeRow


def _line(**changes: Any) -> dict[str, Any]:
    line = {
        "experiment": "clevr_robot/bc/real",
        "algorithm": "BC",
        "seed": 0,
        "update": 100,
        "stage": "test",
        "goal_split": "easy",
        "task": "move left",
        "goal": {"kind": "move", "ball": "red", "direction": "left"},
        "instruction": "Shift the red ball left.",
        "episode_seed": 1,
        "is_success": True,
        "num_steps": 1,
        "episode_return": 1.0,
    }
    return {**line, **changes}


@pytest.fixture
def result_line() -> Callable[..., dict[str, Any]]:
    """Make one line of results.jsonl; keyword arguments replace its fields."""
    return _line


@pytest.fixture
def episode() -> Callable[..., EpisodeRow]:
    """Make one parsed line; keyword arguments replace its fields."""

    def build(**changes: Any) -> EpisodeRow:
        line = _line(**changes)
        del line["goal"]
        return EpisodeRow(**line)

    return build


@pytest.fixture
def write_results(tmp_path: Path) -> Callable[..., Path]:
    """Write lines to ``<tmp_path>/<experiment>/seed=<seed>/results.jsonl`` by the experiment and seed in each."""

    def write(*lines: dict[str, Any]) -> Path:
        for line in lines:
            folder = tmp_path / line["experiment"] / f"seed={line['seed']}"
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "results.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return tmp_path

    return write
