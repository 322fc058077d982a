"""BabyAI: rooms of coloured things, and goals that are about them (TEDUO's first domain).

Importing the package registers ``kalm/BabyAI-v0``, and so does
``gymnasium.make("kalm.envs.babyai:kalm/BabyAI-v0")``.
"""

import gymnasium as gym

from kalm.envs.babyai.domain import BabyAI
from kalm.envs.babyai.goals import GoTo, GoToTile, Open, PickUp, PutNext, Thing

__all__ = ["BabyAI", "GoTo", "GoToTile", "Open", "PickUp", "PutNext", "Thing"]

gym.register("kalm/BabyAI-v0", "kalm.envs.vector_env:SingleEnv", kwargs={"domain": f"{__name__}:BabyAI"})
