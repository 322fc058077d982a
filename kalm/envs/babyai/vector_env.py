"""Many episodes of BabyAI in one array, or each in an environment of minigrid's own.

Shapes: B environments, R rows of them, W columns, H rows of the grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kalm.core.errors import DataError
from kalm.core.goal import Array, Goal
from kalm.envs.babyai.goals import BabyAIGoal
from kalm.envs.babyai.layout import AGENT, COLORS, EMPTY, NUM_CODES, TILES, WALL, agent_of, code_of
from kalm.envs.babyai.simulator import next_states
from kalm.envs.vector_env import DomainVectorEnv

if TYPE_CHECKING:
    from kalm.envs.babyai.domain import BabyAI

_STANDABLE = [EMPTY, *(code_of("door", color, "open") for color in COLORS)]  # codes of tiles under an agent


class BabyAIVectorEnv(DomainVectorEnv):
    """B episodes; what is seen of one is all there is to know of it."""

    def __init__(self, domain: BabyAI, num_envs: int) -> None:
        """Make the environments of minigrid, if they are asked for."""
        super().__init__(domain, num_envs)
        self._world, self._levels = domain, []
        if domain.simulator == "minigrid":
            from kalm.envs.babyai.grids import reset_quietly

            self._levels = [domain.make_level() for _ in range(num_envs)]
            for level in self._levels:
                reset_quietly(level, 0)

    def _lay_out(self, row: int, rng: np.random.Generator, goal: Goal, goal_split: str) -> Array:
        assert isinstance(goal, BabyAIGoal)
        return self._restore(row, goal, self._world.places(goal_split).draw(goal, rng))

    def _restore(self, row: int, goal: Goal, observation: Array) -> Array:
        check_state(observation)
        if self._levels:
            from kalm.envs.babyai.minigrid_world import put_goal, put_state

            assert isinstance(goal, BabyAIGoal)
            put_state(self._levels[row], observation)
            put_goal(self._levels[row], goal)
        return observation

    def _simulate(self, rows: NDArray[np.intp], actions: Array) -> Array:
        if not self._levels:
            return next_states(self._observation[rows], actions)
        from kalm.envs.babyai.minigrid_world import state_of

        for row, action in zip(rows.tolist(), actions.tolist(), strict=True):
            self._levels[row].step(action)
        return np.stack([state_of(self._levels[row]) for row in rows.tolist()])


def check_state(state: Array) -> None:
    """Refuse what is no state, (W, H, 2): it has one agent, on a tile it can stand on, and walls all around.

    Raises:
        DataError: If it is none; the message says why.
    """
    tiles, agents = state[..., TILES], np.argwhere(state[..., AGENT])
    edges = np.concatenate([tiles[[0, -1]].ravel(), tiles[:, [0, -1]].ravel()])
    x, y, _, carried = agent_of(state)
    for is_wrong, what in (
        (len(agents) != 1, f"has {len(agents)} agents; it must have one"),
        ((edges != WALL).any(), "has no wall all around, and an agent could leave it"),
        (tiles[x, y] not in _STANDABLE, "has its agent on a tile that it cannot stand on"),
        ((tiles >= NUM_CODES).any() or carried >= NUM_CODES, f"has a code above {NUM_CODES - 1}"),
    ):
        if is_wrong:
            raise DataError(f"a state of BabyAI {what}")
