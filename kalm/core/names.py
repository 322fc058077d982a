"""Every name that the parts of kalm share: transition keys, provenance, sizes.

Nothing here imports anything heavy, so that every other file may import it.
"""

from __future__ import annotations

from dataclasses import dataclass
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
INSTRUCTION_ID = "instruction_id"
SOURCE = "source"
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


@dataclass(frozen=True)
class TaskSpec:
    """The sizes that every learner needs before it sees data; derived from a domain and a sentence encoder.

    Attributes:
        observation_size: Numbers in one observation, O.
        action_size: Number of discrete actions, or numbers in one continuous action, A.
        is_discrete: Whether an action is an index in [0, A) rather than a vector in [-1, 1]^A.
        goal_embedding_size: Numbers in the sentence embedding of an instruction, E.
        entities: First and one past the last number of each thing that a scene may lack.
    """

    observation_size: int
    action_size: int
    is_discrete: bool
    goal_embedding_size: int
    entities: tuple[tuple[int, int], ...] = ()
