"""Meta-World: a robot arm and an instruction for one of 22 tasks (KALM's second domain).

The tasks, by split. Each is called ``<name>-v2`` in the paper and ``<name>-v3`` in the package, but for the two that
the package lacks:

| split | tasks |
|---|---|
| train, rephrase | reach, push, pick-place, button-press, door-unlock, door-open, window-open, faucet-open |
| train, rephrase | coffee-push, coffee-button |
| easy | reach-wall, push-wall, pick-place-wall, button-press-wall, door-lock, door-close, window-close, faucet-close |
| hard | hammer, soccer |
| hard | make-coffee: coffee-push's scene with a spring behind the button; push the mug, then press the button |
| hard | locked-door-open: door-open's scene with a bolt on the door; unlock, then open |

What differs from the paper's v2 scenes, in all tasks:

- MuJoCo's own bindings simulate in place of mujoco-py; the scenes are the package's v3 ones.
- Rewards follow the package's ``reward_function_version`` v2, but are computed from the 91 numbers of the observation
  (``potential``); success rules are the package's (``success``).
- The seed of a reset decides the layout, and the arm is brought to its rest once a scene instead of twice a reset.
- Quaternions are MuJoCo's (w, x, y, z), of the part that moves; the package mixes conventions and gives some of parts
  that stand still.
- Whatever is in a scene is seen: the coffee machine's button also when the mug is what matters, and the other way
  round.

Importing the package registers ``kalm/MetaWorld-v0``, and so does
``gymnasium.make("kalm.envs.metaworld:kalm/MetaWorld-v0")``; the settings of ``MetaWorld`` may follow.
"""

import gymnasium as gym

from kalm.envs.metaworld.domain import MetaWorld
from kalm.envs.metaworld.goals import TaskGoal

__all__ = ["MetaWorld", "TaskGoal"]

gym.register("kalm/MetaWorld-v0", "kalm.envs.vector_env:SingleEnv", kwargs={"domain": f"{__name__}:MetaWorld"})
