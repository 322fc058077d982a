"""What a world may say of itself to who learns its dynamics from data: that an action's effect is a local matter.

An agent acts on what is before it. So a state is a configuration (all things and what is carried) and a pose (where the
agent is and how it is turned), what an action does depends on the situation alone (what the agent faces, what it
carries), and an effect that was seen in one place can be carried over to another. What the actions do is not said here;
it is learned (``kalm.rl.planning.local_dynamics``).

Shape letters: B states, C configurations, K numbers in one, P poses, W situations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kalm.core.goal import Goal

# What a goal may depend on; ``state`` is everything, and ``arrangement`` where things are, whatever state they are in.
Aspect = Literal["situation", "arrangement", "configuration", "pose", "state"]

NOWHERE = -1  # the situation of a pose in which the agent would face something outside of the world
NOT_LOCAL = -1  # the effect of a step that changed something else than what is before the agent


class Locality(ABC):
    """Takes states of a world apart and puts them together; knows nothing of what actions do.

    Attributes:
        num_situations: Situations are integers in [0, W).
    """

    num_situations: int

    @abstractmethod
    def situation(self, states: NDArray[Any]) -> NDArray[np.int64]:
        """What the agent faces and carries in states (B, ...), as an integer, shape (B,)."""

    @abstractmethod
    def effect(self, states: NDArray[Any], next_states: NDArray[Any]) -> NDArray[np.int64]:
        """What steps changed, seen from the agent, as an integer that is equal for equal effects, shape (B,).

        It is ``NOT_LOCAL`` where anything else changed as well.
        """

    @abstractmethod
    def split(self, states: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Configurations, shape (B, K), and poses in [0, P), shape (B,), of states (B, ...)."""

    @abstractmethod
    def join(self, configurations: NDArray[np.uint8], poses: NDArray[np.int64]) -> NDArray[Any]:
        """States, (B, ...), of configurations (B, K) and poses (B,)."""

    @abstractmethod
    def names(self, configurations: NDArray[np.uint8]) -> NDArray[np.uint64]:
        """A number for each configuration, (C,), that no other one has but by a chance of one in 2 ** 64."""

    @abstractmethod
    def situations(self, configurations: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Situation of every pose in every configuration, shape (C, P); ``NOWHERE`` where there is none."""

    @abstractmethod
    def outcomes(
        self, configurations: NDArray[np.uint8], names: NDArray[np.uint64], effects: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Where effects lead from every pose.

        Args:
            configurations: Shape (C, K).
            names: Of them, shape (C,).
            effects: As ``effect`` numbers them, shape (C, P); negative where none is known, which has no outcome.

        Returns:
            Names of the configurations and the poses after it, each of shape (C, P).
        """

    @abstractmethod
    def after(
        self, configurations: NDArray[np.uint8], poses: NDArray[np.int64], effects: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """What known effects (B,) make of configurations (B, K) and poses (B,): both afterwards."""

    @abstractmethod
    def carried(self, configurations: NDArray[np.uint8]) -> NDArray[np.int64]:
        """What is carried in configurations, shape (C,); 0 is nothing."""

    @abstractmethod
    def arrangements(self, configurations: NDArray[np.uint8]) -> NDArray[np.uint64]:
        """A number for where the things are in each configuration, (C,), whatever state they are in."""

    @abstractmethod
    def surroundings(self, configurations: NDArray[np.uint8]) -> NDArray[np.int64]:
        """What is beside the tile that each pose faces, as an integer, shape (C, P), equal where that is alike."""

    def aspect(self, goal: Goal) -> Aspect:
        """What of a state decides whether a goal is met in it; a judge is asked once for each value of that.

        Unless it is ``state``, what an interaction changes and what is around that decide whether it meets a goal that
        was not met before.
        """
        return "state"
