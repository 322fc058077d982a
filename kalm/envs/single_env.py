"""Any domain as a Gymnasium environment: one episode at a time, on top of the vectorised one with a single row."""

from __future__ import annotations

import pkgutil
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from kalm.envs.base import Domain

_OPTIONS = {"goal", "instruction", "observation"}


class SingleEnv(gym.Env[Any, Any]):
    """One episode of a domain, equal to that of the vectorised environment under the same seed.

    ``reset`` takes three options: ``observation`` (what to start from), ``goal`` (a goal or its JSON form) and
    ``instruction`` (a sentence for it). Without a goal, a training instruction is drawn; without an ``observation``,
    a start at which the goal is not true already. Both draws depend on the seed alone.

    ``info`` holds ``is_success`` and ``instruction`` after every reset and step. An episode is terminated on success
    and truncated after the goal's ``max_steps``; from then on nothing changes until ``reset``.

    Args:
        domain: The world, or where its class is, such as ``kalm.envs.metaworld:MetaWorld``.
        render_mode: None or ``rgb_array``.
        render_size: Pixels along each side of a picture.
        settings: What the class is called with.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(
        self, domain: Domain | str, render_mode: str | None = None, render_size: int = 256, **settings: Any
    ) -> None:
        """Build the simulator; what it renders with is not touched before the first ``render``."""
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}; it must be None or 'rgb_array'")
        self.domain: Domain = pkgutil.resolve_name(domain)(**settings) if isinstance(domain, str) else domain
        self.metadata = {**self.metadata, "render_fps": self.domain.render_fps}
        self.render_mode, self.render_size = render_mode, render_size
        self.observation_space, self.action_space = self.domain.observation_space, self.domain.action_space
        self._envs = self.domain.make_vector_env(1, 1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; see the class for the options."""
        super().reset(seed=seed)
        options = options or {}
        unknown = set(options) - _OPTIONS
        if unknown:
            raise ValueError(f"reset got the options {sorted(unknown)}; it knows goal, instruction and observation")
        self._envs.rngs[0] = self.np_random
        observation, info = self._envs.reset(options={f"{name}s": [value] for name, value in options.items()})
        return observation[0], _info(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act once."""
        observation, reward, terminated, truncated, info = self._envs.step(np.asarray(action)[None])
        return observation[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), _info(info)

    def render(self) -> NDArray[np.uint8] | None:
        """Picture with the instruction written on it, shape (size, size, 3), or None without render mode.

        Raises:
            SimulatorError: If the world renders with GL and there is none here; ``Domain.draw`` needs none.
        """
        return None if self.render_mode is None else self._envs.picture(0, self.render_size)

    def close(self) -> None:
        """End what the simulator has begun, such as threads and GL contexts."""
        self._envs.close()


def _info(info: dict[str, Any]) -> dict[str, Any]:
    return {"is_success": bool(info["is_success"][0]), "instruction": info["instruction"][0]}
