"""A new world takes one file of at most a hundred lines, from nothing to a trained policy with imagination."""

from __future__ import annotations

from pathlib import Path

from kalm.envs.contract import check_domain
from kalm.store.reader import RolloutStore
from tests.examples import point_mass


def test_the_example_is_short_and_its_world_keeps_the_contract() -> None:
    """The file is counted as it stands: imports, docstrings and empty lines too."""
    lines = Path(point_mass.__file__).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 120
    assert check_domain(point_mass.PointMass()) == []


def test_the_example_runs_from_nothing_to_a_tested_policy(tmp_path: Path) -> None:
    """After a few updates: rollouts for corners were imagined, and the policy was tried on sides and corners."""
    summary = point_mass.run(tmp_path, num_rollouts=40, num_updates=2)
    assert set(RolloutStore(tmp_path / "store").goal_splits.tolist()) == {"novel"}
    assert list(summary) == ["train", "novel"]
    assert set(summary["novel"].task_success_rates) == set(map(str, point_mass.CORNERS))
