"""Every name that the parts of kalm share: transition keys and provenance."""

from __future__ import annotations

from enum import IntEnum

# Keys of one transition, in a rollout store, a replay buffer and a batch alike (TorchRL's layout).
OBSERVATION = "observation"
ACTION = "action"
NEXT_OBSERVATION = ("next", "observation")
REWARD = ("next", "reward")
TERMINATED = ("next", "terminated")  # the task ended here: never bootstrap
TRUNCATED = ("next", "truncated")  # time or data ran out here: do bootstrap
ROLLOUT_ID = "rollout_id"
STEP = "step"
INSTRUCTION_ID = "instruction_id"  # -1 = made for no goal
SOURCE = "source"
# Only where observations are grids or texts: the row of the state table where each of them stands, once.
STATE = "state"
NEXT_STATE = ("next", "state")
# Only where grids have numbers beside them.
NUMBERS = "numbers"
NEXT_NUMBERS = ("next", "numbers")
# Only in stores of plans: which actions, of a discrete number, are equally best at a step.
OPTIMAL_ACTIONS = "optimal_actions"
# In a batch of windows of rollouts only.
PADDING_MASK = "padding_mask"  # True = real step
RETURN_TO_GO = "return_to_go"  # sum of this step's and all later rewards of the rollout, undiscounted
WEIGHT = "weight"  # how much it counts in the loss; in a batch only, and there only if weights were asked for


class Source(IntEnum):
    """Where a rollout comes from; stored with every transition as its integer."""

    REAL = 0
    IMAGINARY = 1

    @property
    def label(self) -> str:
        """Lower-case name, as it appears in metric names and tables."""
        return self.name.lower()
