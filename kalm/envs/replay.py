"""Imagined rollouts tried in the simulator: their actions, from where they begin. For reports only; nothing learns it.

Shape letters: B rollouts that are replayed side by side, O numbers in an observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from kalm.core.rollout import Rollout
from kalm.envs.base import Domain


@dataclass(frozen=True)
class Replay:
    """What became of one rollout.

    Attributes:
        is_success: Whether its goal came true in the simulator.
        drift: How far the imagined observation was from the real one when the replay ended: root mean square over the
            numbers of an observation.
    """

    is_success: bool
    drift: float


def replay(domain: Domain, rollouts: Sequence[Rollout], num_envs: int = 64) -> list[Replay]:
    """Carry out the actions of rollouts; a replay ends with the actions, or when the goal comes true before.

    Args:
        domain: World that the rollouts are of.
        rollouts: None of them empty.
        num_envs: Environments that run side by side, B at most.

    Returns:
        One result for each rollout, in their order.
    """
    batches = [rollouts[first : first + num_envs] for first in range(0, len(rollouts), num_envs)]
    return [result for batch in batches for result in _replay_batch(domain, batch)]


def _replay_batch(domain: Domain, rollouts: Sequence[Rollout]) -> list[Replay]:
    num_steps = np.array([len(rollout) for rollout in rollouts])
    is_success = np.zeros(len(rollouts), dtype=np.bool_)
    drift = np.zeros(len(rollouts))
    with closing(domain.make_vector_env(len(rollouts))) as envs:
        options = {
            "goals": [domain.goal_from_json(rollout.goal) for rollout in rollouts],
            "instructions": [rollout.instruction for rollout in rollouts],
            "observations": [rollout.observations[0] for rollout in rollouts],
        }
        envs.reset(seed=0, options=options)
        for step in range(num_steps.max()):
            going = (step < num_steps) & ~is_success
            # Who has no action left gets the last one again; what it leads to is not looked at.
            actions = np.stack([rollout.actions[min(step, len(rollout) - 1)] for rollout in rollouts])
            observation, _, terminated, _, _ = envs.step(actions)
            for row in np.flatnonzero(going).tolist():
                error = observation[row] - rollouts[row].observations[step + 1]
                drift[row] = np.sqrt(np.square(error).mean())
            is_success |= going & terminated
    return [Replay(bool(success), float(far)) for success, far in zip(is_success, drift, strict=True)]
