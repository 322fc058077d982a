"""``python -m kalm collect`` on the YAML file, in miniature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kalm.envs.metaworld import MetaWorld
from kalm.store.collect import success_by_task
from kalm.store.reader import RolloutStore
from tests.chain_run import kalm

CONFIG = Path(__file__).parents[3] / "conf" / "metaworld" / "collect.yaml"


def test_collects_a_store_that_opens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Continuous actions, 91 numbers, verdicts; settings are kept with the store, success a task is reported."""
    assert kalm("collect", "--config", CONFIG, "--root", tmp_path, "--num_rollouts", 6, "--domain.horizon", 60) == 0
    store = RolloutStore(tmp_path / "metaworld/collect/expert/seed=0", verify=True)
    assert store.num_rollouts == 6
    assert store.manifest["made_by"]["horizon"] == 60
    assert store.spec.action_size == 4
    assert store.transitions["observation"].shape[1] == 91
    reported = capsys.readouterr().out.split("successful rollouts by task: ")[1]
    expected = success_by_task(MetaWorld(), store)
    assert sum(count for _, count in expected.values()) == 6
    assert reported.strip() == ", ".join(f"{task} {good}/{count}" for task, (good, count) in expected.items())
    assert np.isfinite(store.transitions["observation"].numpy()).all()
