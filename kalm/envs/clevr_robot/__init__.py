"""CLEVR-Robot: push five coloured balls to where an instruction wants them (KALM's first domain).

Importing the package registers ``kalm/ClevrRobot-v0``, and so does
``gymnasium.make("kalm.envs.clevr_robot:kalm/ClevrRobot-v0")``.
"""

import gymnasium as gym

from kalm.envs.clevr_robot.domain import ClevrRobot
from kalm.envs.clevr_robot.goals import AllOf, GatherGoal, MoveGoal, PlaceGoal, RowGoal

__all__ = ["AllOf", "ClevrRobot", "GatherGoal", "MoveGoal", "PlaceGoal", "RowGoal"]

gym.register("kalm/ClevrRobot-v0", "kalm.envs.vector_env:SingleEnv", kwargs={"domain": f"{__name__}:ClevrRobot"})
