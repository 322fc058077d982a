"""The goals judge as the original does, by its own labels and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kalm.core.errors import DataError
from kalm.envs.clevr_robot import AllOf, ClevrRobot, GatherGoal, MoveGoal, PlaceGoal, RowGoal
from kalm.envs.clevr_robot.goals import ClevrRobotGoal, goal_from_json
from kalm.envs.clevr_robot.layout import COLORS, DIRECTIONS
from kalm.store.safe_npy import load_npy
from tests.chain_domain import CellGoal

REFERENCE = Path(__file__).parents[1] / "reference" / "clevr_robot.npz"
# Not ours to publish: beside a checkout, where someone has put it there.
OF_AUTHORS = Path(__file__).parents[4] / "shared" / "reference" / "kalm_authors" / "clevr_robot.npy"
FAR_APART = np.array([-0.4, 0.5, 0.4, 0.5, -0.4, -0.1, 0.4, -0.1, 0.0, 0.2])


@pytest.fixture(scope="module")
def labels() -> dict[str, np.ndarray]:
    """The labelled states of the reference file."""
    with np.load(REFERENCE) as reference:
        return dict(reference)


def with_ball(layout: np.ndarray, color: str, x: float, y: float) -> np.ndarray:
    """A copy of a layout with one ball elsewhere."""
    moved = layout.copy()
    index = COLORS.index(color)
    moved[2 * index : 2 * index + 2] = x, y
    return moved


def test_all_placement_labels_are_reproduced(labels: dict[str, np.ndarray]) -> None:
    """4,000 states, judged in one batch for each of the 80 placements, agree with the original's verdicts."""
    observation = labels["place_observation"]
    wrong, judged = 0, 0
    for source in range(5):
        for target in range(5):
            for number, direction in enumerate(DIRECTIONS):
                rows = (
                    (labels["place_source"] == source)
                    & (labels["place_target"] == target)
                    & (labels["place_direction"] == number)
                )
                if source != target and rows.any():
                    goal = PlaceGoal(COLORS[source], COLORS[target], direction)
                    wrong += int((goal.success(observation[rows]) != labels["place_success"][rows]).sum())
                    judged += int(rows.sum())
    assert (judged, wrong) == (4000, 0)
    assert labels["place_success"].sum() > 100, "the file holds successes to reproduce"


@pytest.mark.parametrize(("goal", "name"), [(RowGoal(), "line_success"), (GatherGoal(), "gather_success")])
def test_all_arrangement_labels_are_reproduced(labels: dict[str, np.ndarray], goal: ClevrRobotGoal, name: str) -> None:
    """4,000 verdicts on the row and as many on the gathering agree with the original's."""
    verdicts = goal.success(labels["arrange_observation"])
    np.testing.assert_array_equal(verdicts, labels[name])
    assert 100 < verdicts.sum() < 3900


@pytest.mark.parametrize(
    ("x", "y", "side"),
    [
        (0.0, 0.39, "behind"),
        (0.0, -0.39, "front"),
        (-0.39, 0.0, "left"),
        (0.39, 0.0, "right"),
        (0.2, 0.2, "behind"),  # each diagonal belongs to the quarter that it borders clockwise
        (-0.2, 0.2, "left"),
        (-0.2, -0.2, "front"),
        (0.2, -0.2, "right"),
        (0.0, 0.392, None),  # beyond 0.39 + 0.001
        (0.0009, 0.0009, None),  # both offsets count as zero: no angle
    ],
)
def test_every_offset_lies_at_exactly_one_side(x: float, y: float, side: str | None) -> None:
    """The quarters are half-open, so that no offset is at two sides."""
    layout = with_ball(with_ball(FAR_APART, "blue", 0.0, 0.0), "red", x, y)
    assert [name for name in DIRECTIONS if PlaceGoal("red", "blue", name).success(layout)] == ([side] if side else [])


@pytest.mark.parametrize(
    ("side", "worth"),
    [
        ("behind", 100.0),  # met, in place of what it gained
        ("front", 1.71352),  # hypot(0.3, 0.4 + 0.195) = 0.66635 before, 0.3 + 0.195 = 0.495 after
        ("left", 2.78610),  # hypot(0.3 + 0.195, 0.4) = 0.63642 before, hypot(0.195, 0.3) = 0.35781 after
        ("right", 0.55746),  # hypot(0.3 - 0.195, 0.4) = 0.41355 before, 0.35781 after
    ],
)
def test_placement_reward_is_the_distance_gained_to_the_place(side: str, worth: float) -> None:
    """Blue at (0, 0); red goes from (0.3, 0.4) to (0, 0.3): ten times what that gains to 0.195 at the goal's side."""
    before = with_ball(with_ball(FAR_APART, "blue", 0.0, 0.0), "red", 0.3, 0.4)
    after = with_ball(before, "red", 0.0, 0.3)
    assert PlaceGoal("red", "blue", side).reward(before, np.array(0), after) == pytest.approx(worth, abs=1e-5)


@pytest.mark.skipif(not OF_AUTHORS.is_file(), reason="KALM's authors' data are not at hand")
def test_placement_rewards_are_those_of_the_papers_authors() -> None:
    """Every reward of their 80 rollouts: 818 steps on the way, and the 100 of each last one."""
    recorded = load_npy(OF_AUTHORS)
    mine, theirs = [], []
    for rollout, padding_mask in enumerate(recorded["masks"].astype(bool)):
        numbers = recorded["goals"][rollout, 0]  # of each ball, 1 for the source and 2 for the target; then the side
        source, target = (COLORS[int(np.flatnonzero(numbers[:5] == which)[0])] for which in (1, 2))
        goal = PlaceGoal(source, target, tuple(DIRECTIONS)[int(numbers[5])])
        steps = (recorded[name][rollout, padding_mask] for name in ("observations", "actions", "next_observations"))
        mine.append(goal.reward(*steps))
        theirs.append(recorded["rewards"][rollout, padding_mask, 0])
    assert [rewards[-1] for rewards in theirs] == [100.0] * 80
    assert sum(len(rewards) - 1 for rewards in theirs) == 818
    np.testing.assert_allclose(np.concatenate(mine), np.concatenate(theirs), rtol=0, atol=1e-5)


def test_a_move_is_judged_by_its_action_where_that_is_known() -> None:
    """Moving green left: pushes 2, 5 and 7 of ball 2, that is actions 18, 21 and 23, wherever the ball ends up."""
    goal = MoveGoal("green", "left")
    still = np.tile(FAR_APART, (40, 1))
    np.testing.assert_array_equal(np.flatnonzero(goal.success(still, still, np.arange(40))), [18, 21, 23])
    np.testing.assert_array_equal(np.flatnonzero(goal.reward(still, np.arange(40), still)), [18, 21, 23])


@pytest.mark.parametrize(("moved_by", "expected"), [(-0.16, True), (-0.14, False), (0.16, False)])
def test_a_move_is_judged_by_states_without_an_action(moved_by: float, expected: bool) -> None:
    """The green ball, at x = -0.4, has to go 0.15 to the left."""
    after = with_ball(FAR_APART, "green", -0.4 + moved_by, -0.1)
    assert MoveGoal("green", "left").success(after, FAR_APART) == expected
    assert not MoveGoal("green", "left").success(after), "right after a reset nothing has moved"


def test_a_row_is_in_order_and_within_thirty_degrees() -> None:
    """A slope of 29 degrees counts, one of 31 does not; one wrong neighbour costs one sub-goal."""
    goal = RowGoal()
    for degrees, expected in ((29, True), (31, False)):
        rise = 0.2 * np.tan(np.deg2rad(degrees))
        layout = np.array([-0.4, 0.0, -0.2, rise, 0.0, 0.0, 0.2, 0.0, 0.4, 0.0])
        assert goal.success(layout) == (expected)
    straight = np.array([-0.4, 0.0, -0.2, 0.0, 0.0, 0.0, 0.2, 0.0, 0.4, 0.0])
    swapped = with_ball(with_ball(straight, "purple", 0.4, 0.0), "cyan", 0.2, 0.0)
    assert goal.sub_goals_met(straight) == 4
    assert goal.sub_goals_met(swapped) == 3
    assert goal.reward(swapped, np.array(0), straight) == 100.0, "success, in place of the sub-goal gained"
    assert goal.reward(straight, np.array(0), swapped) == -10.0


def test_gathering_counts_the_balls_near_green() -> None:
    """0.32 is near, 0.33 is not; each ball that comes near is worth 10, the last one 100."""
    layout = np.array([0.32, 0.0, 0.0, 0.32, 0.0, 0.0, -0.32, 0.0, 0.0, -0.33])
    assert GatherGoal().sub_goals_met(layout) == 3
    assert not GatherGoal().success(layout)
    closer = with_ball(layout, "cyan", 0.0, -0.32)
    assert GatherGoal().success(closer)
    assert GatherGoal().reward(layout, np.array(0), closer) == 100.0
    farther = with_ball(layout, "red", 0.33, 0.0)
    assert GatherGoal().reward(farther, np.array(0), layout) == 10.0
    assert GatherGoal().reward(closer, np.array(0), layout) == -10.0


def test_all_of_needs_every_placement() -> None:
    """Two placements hold one after the other; the goal holds with the second."""
    goal = AllOf((PlaceGoal("red", "blue", "left"), PlaceGoal("cyan", "blue", "right")))
    start = with_ball(FAR_APART, "blue", 0.0, 0.2)
    start = with_ball(start, "cyan", 0.4, 0.5)
    one = with_ball(start, "red", -0.3, 0.2)
    both = with_ball(one, "cyan", 0.3, 0.2)
    np.testing.assert_array_equal(goal.sub_goals_met(np.stack([start, one, both])), [0, 1, 2])
    np.testing.assert_array_equal(goal.success(np.stack([start, one, both])), [False, False, True])


def test_success_keeps_any_batch_shape() -> None:
    """Verdicts on (2, 3) observations have shape (2, 3)."""
    batch = np.tile(FAR_APART, (2, 3, 1))
    domain = ClevrRobot()
    for split in domain.goal_splits:
        for goal in {row.goal.task: row.goal for row in domain.instructed_goals(split)}.values():
            assert goal.success(batch, batch, np.zeros((2, 3), dtype=int)).shape == (2, 3)
            assert goal.reward(batch, np.zeros((2, 3), dtype=int), batch).shape == (2, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "key 'goal'"),
        ({"goal": "juggle"}, "juggle.*place, move, row, gather, all_of"),
        ({"goal": "place", "source": "red", "target": "blue"}, "direction"),
        ({"goal": "place", "source": "pink", "target": "blue", "direction": "left"}, "pink.*red, blue"),
        ({"goal": "place", "source": "red", "target": "red", "direction": "left"}, "two different balls"),
        ({"goal": "move", "ball": "red", "direction": "up"}, "up.*behind, left, front, right"),
        ({"goal": "row", "ball": "red"}, "ball"),
        ({"goal": "all_of", "goals": {"goal": "row"}}, "list"),
        ({"goal": "all_of", "goals": [{"goal": "row"}, {"goal": "gather"}]}, "two placements or more"),
        (["place"], "object"),
    ],
)
def test_bad_goals_are_refused_with_what_is_allowed(data: dict, message: str) -> None:
    """A user's goal that is none gets an error that names the field and the choices."""
    with pytest.raises(DataError, match=message):
        goal_from_json(data)


def test_another_domains_goal_is_refused() -> None:
    """No episode begins with what is no goal of this world."""
    with pytest.raises(TypeError, match="another domain"):
        ClevrRobot().make_vector_env(1, 1).reset(options={"goals": [CellGoal(0)]})
