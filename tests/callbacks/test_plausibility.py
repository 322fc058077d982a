"""How often each plausibility flag is raised, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from kalm.callbacks.plausibility import Plausibility
from kalm.core.names import Source
from tests.callbacks.judged import validate, walk

JUMPS_ONCE = walk([0, 1, 3, 2], [1, 1, 0], goal=4)  # 1 of 3 steps
JUMPS_TWICE = walk([4, 0, 4, 3, 2], [0, 1, 0, 0], goal=1)  # 2 of 4 steps
STAYS_REAL = walk([2, 3, 4], [1, 1], goal=4, source=Source.REAL)


def test_shares_are_of_transitions_and_not_of_rollouts(tmp_path: Path) -> None:
    """Imagined: 1 + 2 of 3 + 4 steps jump; real: none of 2; every observation is one-hot."""
    metrics = validate(
        tmp_path, Plausibility(), {"imaginary": [JUMPS_ONCE]}, {"real": [STAYS_REAL]}, {"imaginary": [JUMPS_TWICE]}
    )
    assert metrics == {
        "plausibility/imaginary/train/jumped": pytest.approx(3 / 7),
        "plausibility/imaginary/train/nowhere": 0.0,
        "plausibility/real/train/jumped": 0.0,
        "plausibility/real/train/nowhere": 0.0,
    }


def test_every_validation_counts_anew(tmp_path: Path) -> None:
    """The same callback, once on a rollout that jumps and once on one that does not."""
    callback = Plausibility()
    first = validate(tmp_path, callback, {"imaginary": [JUMPS_ONCE]})
    second = validate(tmp_path, callback, {"real": [STAYS_REAL]})
    assert first["plausibility/imaginary/train/jumped"] == pytest.approx(1 / 3)
    assert second == {"plausibility/real/train/jumped": 0.0, "plausibility/real/train/nowhere": 0.0}
