"""Imagination and plausibility tables, worked by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.core.specs import vector_spec
from kalm.report.rollout_tables import (
    StoreVerdicts,
    imagination_table,
    load_verdicts,
    plausibility_table,
)
from kalm.runs.folder import REJECTED_FILE
from kalm.store.writer import RolloutStoreWriter

SPEC = vector_spec(observation_size=2, action_size=2, is_discrete=True)
FLAGS = ("out_of_workbench", "beyond_dynamics_limits")


def _rollout(num_steps: int, is_success: bool, violations: tuple[int, int], goal_split="easy") -> Rollout:
    """An imagined rollout of zeros with the verdicts that a test wants."""
    ends = np.zeros(num_steps, dtype=np.bool_)
    terminated, truncated = ends.copy(), ends.copy()
    (terminated if is_success else truncated)[-1] = True
    return Rollout(
        goal={"kind": "move"},
        instruction=f"Do as {goal_split} goals do.",
        goal_split=goal_split,
        source=Source.IMAGINARY,
        observations=np.zeros((num_steps + 1, 2), dtype=np.float32),
        actions=np.zeros(num_steps, dtype=np.int64),
        rewards=np.zeros(num_steps, dtype=np.float32),
        terminated=terminated,
        truncated=truncated,
        is_success=is_success,
        violations=dict(zip(FLAGS, violations, strict=True)),
    )


@pytest.fixture
def root(tmp_path):
    """A store of four imagined easy rollouts and one hard one.

    Easy: success and plausible (4 steps); success, 1 of 2 steps out; failure, plausible (3 steps); failure, 1 of 1
    beyond. So 2 of 4 meet their goal, 2 of 4 are plausible, 1 of 4 is both; of 10 transitions 1 and 1 are flagged.
    """
    path = tmp_path / "clevr_robot" / "imagine" / "store"
    writer = RolloutStoreWriter(path, "clevr_robot", SPEC, FLAGS, made_by={})
    writer.append(
        "0",
        [
            _rollout(4, True, (0, 0)),
            _rollout(2, True, (1, 0)),
            _rollout(3, False, (0, 0)),
            _rollout(1, False, (0, 1)),
            _rollout(5, False, (0, 0), "hard"),
        ],
    )
    writer.finish()
    return tmp_path


def test_imagined_rollouts_are_counted_by_split(root):
    """Easy 2/4, 2/4, 1/4; hard 0/1, 1/1, 0/1; the paper's 36 and 28 beside."""
    verdicts, problems = load_verdicts([root])
    assert problems == []
    assert imagination_table(verdicts).rows == (
        ("easy (clevr_robot/imagine/store)", "4", "50.0", "50.0", "1 (25.0)", "36"),
        ("hard (clevr_robot/imagine/store)", "1", "0.0", "100.0", "0 (0.0)", "28"),
    )


def test_plausibility_is_a_share_of_transitions(root):
    """Easy has 4 + 2 + 3 + 1 = 10 transitions, one with each flag: 10 %; the paper's pair beside."""
    verdicts, _ = load_verdicts([root])
    table = plausibility_table(verdicts)
    assert table.header[2:4] == ("out of workbench %", "beyond dynamics limits %")
    assert table.rows == (
        ("imaginary, easy (clevr_robot/imagine/store)", "10", "10.00", "10.00", "0.0 / 0.2"),
        ("imaginary, hard (clevr_robot/imagine/store)", "5", "0.00", "0.00", "4.3 / 0.2"),
    )


def test_a_store_found_twice_counts_once(root):
    """The root and the stage's folder both hold it."""
    assert len(load_verdicts([root, root / "clevr_robot"])[0]) == 1


def test_unfinished_and_damaged_stores_are_reported_not_raised(root):
    """Generation was killed in one store; a file of the other is gone."""
    writer = RolloutStoreWriter(root / "half", "clevr_robot", SPEC, FLAGS, made_by={})
    writer.append("0", [_rollout(1, True, (0, 0))])
    (root / "clevr_robot" / "imagine" / "store" / "instructions.jsonl").unlink()
    verdicts, problems = load_verdicts([root])
    assert verdicts == []
    assert any("half is unfinished" in problem for problem in problems)
    assert any("store could not be read" in problem and "instructions.jsonl" in problem for problem in problems)


def test_rejected_rollouts_are_admitted(root):
    """Two shards: 2 empty in one, 1 empty and 3 too long in the other, next to the store."""
    counted = {"0-easy-0": {"empty": 2}, "0-easy-1": {"empty": 1, "too long": 3}}
    path = root / "clevr_robot" / "imagine" / REJECTED_FILE
    path.write_text(json.dumps(counted), encoding="utf-8")
    verdicts, _ = load_verdicts([root])
    assert imagination_table(verdicts).note.endswith("in clevr_robot/imagine/store: 3 empty, 3 too long.")


def test_real_rollouts_come_first_and_only_in_the_plausibility_table():
    """Real data is the yardstick; it has no number in the paper's table."""
    counts = {"num_rollouts": 2, "success": 2, "plausible": 1, "both": 1, "num_transitions": 8, "out_of_workbench": 2}
    imagined = StoreVerdicts("a", "clevr_robot", "imaginary", FLAGS[:1], {"train": counts})
    real = StoreVerdicts("z", "clevr_robot", "real", FLAGS[:1], {"train": counts})
    assert [row[0] for row in imagination_table([imagined, real]).rows] == ["train (a)"]
    table = plausibility_table([imagined, real])
    assert [row[0] for row in table.rows] == ["real, train (z)", "imaginary, train (a)"]
    assert table.rows[0][2:] == ("25.00", "-")


def test_each_domain_is_held_against_its_own_table_of_the_paper():
    """Table 5, easy goals; table 1 is of the other domain; a domain of one's own has none."""
    flags = ("floating_object", "out_of_workbench", "implausible_arm_pose", "beyond_dynamics_limits")
    counts = {
        "num_rollouts": 1,
        "success": 1,
        "plausible": 1,
        "both": 1,
        "num_transitions": 8,
        **dict.fromkeys(flags, 2),
    }
    arm, own = (StoreVerdicts(name, name, "imaginary", flags, {"easy": counts}) for name in ("metaworld", "own"))
    assert [row[-1] for row in plausibility_table([arm, own]).rows] == ["35.5 / 10.9 / 39.2 / 47.9", "-"]
    assert [row[-1] for row in imagination_table([arm, own]).rows] == ["-", "-"]
