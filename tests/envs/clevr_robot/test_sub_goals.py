"""Sub-goals: what to do next towards a hard goal, from positions that can be read off."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from kalm.envs.clevr_robot import ClevrRobot
from kalm.envs.clevr_robot.goals import AllOf, ClevrRobotGoal, GatherGoal, MoveGoal, PlaceGoal, RowGoal
from kalm.envs.clevr_robot.layout import sample_layout
from kalm.envs.clevr_robot.sub_goals import next_sub_goal


def balls(
    red: tuple[float, float],
    blue: tuple[float, float],
    green: tuple[float, float],
    purple: tuple[float, float],
    cyan: tuple[float, float],
) -> NDArray[np.float64]:
    """An observation from positions."""
    return np.array([*red, *blue, *green, *purple, *cyan])


APART = balls((-0.45, 0.5), (0.0, 0.5), (0.0, 0.0), (0.45, 0.5), (0.45, -0.2))
RED_BY_BLUE, CYAN_BY_PURPLE = PlaceGoal("red", "blue", "left"), PlaceGoal("cyan", "purple", "front")


def test_a_placement_that_does_not_hold_is_next() -> None:
    """Red lies 0.3 to the left of blue, so that cyan in front of purple is left to do."""
    observation = balls((-0.3, 0.5), (0.0, 0.5), (0.0, 0.0), (0.45, 0.5), (0.45, -0.2))
    assert RED_BY_BLUE.success(observation)
    assert next_sub_goal(AllOf((RED_BY_BLUE, CYAN_BY_PURPLE)), observation) == CYAN_BY_PURPLE


def test_a_ball_that_is_placed_stays_where_it_is() -> None:
    """Red is placed by blue; that it be in front of green is asked of green, which is free: behind red."""
    observation = balls((-0.3, 0.5), (0.0, 0.5), (0.0, 0.0), (0.45, 0.5), (0.45, -0.2))
    goal = AllOf((RED_BY_BLUE, PlaceGoal("red", "green", "front")))
    assert next_sub_goal(goal, observation) == PlaceGoal("green", "red", "behind")


def test_a_ball_goes_to_one_that_need_not_move() -> None:
    """Red by blue and blue by green: blue first, or it would leave red behind."""
    goal = AllOf((RED_BY_BLUE, PlaceGoal("blue", "green", "left")))
    assert next_sub_goal(goal, APART) == PlaceGoal("blue", "green", "left")


def test_the_row_grows_from_the_left() -> None:
    """Blue is not yet to the right of red; beside it but too high (60 degrees), it is pushed to the front."""
    assert next_sub_goal(RowGoal(), balls((0, 0), (-0.4, 0), (0.3, 0), (0.4, 0.3), (-0.4, 0.4))) == PlaceGoal(
        "blue", "red", "right"
    )
    beside = balls((-0.45, 0), (-0.22, 0.22), (0.3, 0), (0.4, 0.3), (-0.4, 0.4))
    assert next_sub_goal(RowGoal(), beside) == MoveGoal("blue", "front")


def test_the_furthest_ball_is_gathered_next() -> None:
    """Red, at the upper left and more left than high, comes to the left of green; beside it but too far, closer."""
    spread = balls((-0.5, 0.4), (0.0, 0.3), (0.0, 0.0), (0.3, 0.0), (0.0, -0.2))
    assert next_sub_goal(GatherGoal(), spread) == PlaceGoal("red", "green", "left")
    beside = balls((-0.35, 0.0), (0.0, 0.3), (0.0, 0.0), (0.3, 0.0), (0.0, -0.2))
    assert next_sub_goal(GatherGoal(), beside) == MoveGoal("red", "right")


@pytest.mark.parametrize("goal", [RED_BY_BLUE, MoveGoal("red", "left")])
def test_goals_without_parts_have_no_sub_goal(goal: ClevrRobotGoal) -> None:
    """Placements and moves are pursued as they are."""
    assert next_sub_goal(goal, APART) is None


def test_every_hard_goal_has_a_sub_goal_that_can_be_asked_for_until_it_is_met() -> None:
    """At random positions, for every hard goal: none exactly where the goal holds, else one with instructions."""
    domain = ClevrRobot()
    known = {one.goal for split in ("train", "easy") for one in domain.instructed_goals(split)}
    rng = np.random.default_rng(0)
    met = 0
    for _ in range(40):
        observation = sample_layout(rng)
        for goal in {one.goal for one in domain.instructed_goals("hard")}:
            sub_goal = domain.next_sub_goal(goal, observation)
            assert (sub_goal is None) == goal.success(observation)
            assert sub_goal is None or (sub_goal in known and not sub_goal.success(observation))
            met += sub_goal is None
    assert met
