"""CLEVR-Robot: push five coloured balls to where an instruction wants them (KALM's first domain)."""

from kalm.envs.clevr_robot.domain import ClevrRobot
from kalm.envs.clevr_robot.goals import AllOf, GatherGoal, MoveGoal, PlaceGoal, RowGoal

__all__ = ["AllOf", "ClevrRobot", "GatherGoal", "MoveGoal", "PlaceGoal", "RowGoal"]
