"""Many episodes at once, and one: what the environments of all domains share, but for the simulator.

Shapes: B environments, R rows of them, O an observation, A an action.
"""

from __future__ import annotations

import os
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from kalm.core.goal import Array, BoolArray, Goal, reward_of_each, success_of_each
from kalm.envs.base import Domain

_MAX_STARTS = 1000  # drawn for a goal; a built-in one is already true in a few of a hundred at most


class DomainVectorEnv(gym.vector.VectorEnv[Array, Array, Array], ABC):
    """B episodes that begin and end on their own; an ended one stands still until it is reset.

    Episode i depends on ``seed[i]`` and its options alone: not on B, its place or the number of threads. Copies and
    pickles go on where the original was.

    ``reset`` takes the options ``goals`` (a goal or its JSON form), ``goal_splits`` (in whose places to begin, the
    training split's by default), ``instructions`` and ``observations`` (a value or None for each environment) and
    ``reset_mask`` (boolean, shape (B,): which to reset; the others go on). ``info`` holds ``is_success``, boolean,
    shape (B,), ``instruction``, a list of B sentences, and ``row``, 0 to B - 1.

    A domain says how an episode begins (``_lay_out``, ``_restore``) and what a step leads to (``_simulate``).

    Attributes:
        domain: Whose goals.
        rngs: Source of chance of each environment; a seed replaces it.
    """

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.DISABLED, "render_modes": []}
    _of_this_process: ClassVar[tuple[str, ...]] = ()  # attributes that copies begin without, such as threads

    def __init__(self, domain: Domain, num_envs: int) -> None:
        """Keep the domain's spaces and rules; nothing has begun.

        Raises:
            ValueError: If ``num_envs``, B, is below 1.
        """
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; it must be 1 or more")
        super().__init__()
        self.domain = domain
        self.num_envs = num_envs
        self.single_observation_space = domain.observation_space
        self.single_action_space = domain.action_space
        self.observation_space = batch_space(domain.observation_space, num_envs)
        self.action_space = batch_space(domain.action_space, num_envs)
        self.rngs = [seeding.np_random()[0] for _ in range(num_envs)]
        self._goals: list[Goal | None] = [None] * num_envs
        self._instructions = [""] * num_envs
        self._observation = _blank(domain.observation_space, num_envs)
        self._num_steps, self._max_steps = np.zeros((2, num_envs), dtype=np.int64)
        self._terminated, self._truncated, self._is_success = np.zeros((3, num_envs), dtype=np.bool_)

    def __getstate__(self) -> dict[str, Any]:
        """All but what belongs to this process."""
        return {**self.__dict__, **dict.fromkeys(self._of_this_process)}

    @abstractmethod
    def _lay_out(self, row: int, rng: np.random.Generator, goal: Goal, goal_split: str) -> Array:
        """Draw the start of an episode in one environment from ``rng``; what is seen, shape (O,).

        Most worlds begin alike in all splits; in one whose places differ too, ``goal_split`` says where to begin.
        """

    def _restore(self, row: int, goal: Goal, observation: Array) -> Array:
        """Start from an observation of shape (O,), as nearly as the simulator can; what is seen then, shape (O,).

        By default the observation is all that a simulator knows of an environment.
        """
        return observation

    @abstractmethod
    def _simulate(self, rows: NDArray[np.intp], actions: Array) -> Array:
        """Carry out one action, shape (R,) or (R, A), in each of some rows, shape (R,); what is seen then, (R, O)."""

    def picture(self, row: int, size: int) -> NDArray[np.uint8]:
        """View of one environment, shape (size, size, 3); the domain's drawing, unless the simulator has a better."""
        return self.domain.draw(self._observation[row], self._instructions[row], size)

    def idle_actions(self) -> Array:
        """An action for each environment that means nothing, of shape (B,) or (B, A)."""
        return _blank(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start episodes; see the class for the options. One seed s means s, s + 1, ... as in Gymnasium.

        Without a goal, a training instruction is drawn; without an observation, a start at which the goal is not true.
        """
        options = _checked_options(options, ("goals", "goal_splits", "instructions", "observations", "reset_mask"))
        seeds = self._per_env("seed", range(seed, seed + self.num_envs) if isinstance(seed, int) else seed)
        goals = self._per_env("goals", options.get("goals"))
        splits = self._per_env("goal_splits", options.get("goal_splits"))
        instructions = self._per_env("instructions", options.get("instructions"))
        observations = self._per_env("observations", options.get("observations"))
        chosen = np.asarray(self._per_env("reset_mask", options.get("reset_mask", [True] * self.num_envs)), np.bool_)
        for row in np.flatnonzero(chosen).tolist():
            if seeds[row] is not None:
                self.rngs[row] = seeding.np_random(seeds[row])[0]
            self._begin(row, goals[row], instructions[row], observations[row], splits[row])
        return self._observation.copy(), self._info()

    def _begin(self, row: int, goal: Any, instruction: str | None, observation: Any, goal_split: str | None) -> None:
        """Begin an episode in one environment, drawing what is None."""
        goal, built_in = self._choose(self.rngs[row], goal)
        if observation is None:
            seen = self._draw_start(row, goal, goal_split or self.domain.training_split)
        else:
            seen = self._restore(row, goal, _checked(observation, self.single_observation_space))
        self._goals[row], self._observation[row] = goal, seen
        self._instructions[row] = built_in if instruction is None else instruction
        self._max_steps[row] = goal.max_steps
        self._is_success[row] = goal.success(self._observation[row])
        self._num_steps[row], self._terminated[row], self._truncated[row] = 0, False, False

    def _choose(self, rng: np.random.Generator, goal: Any) -> tuple[Goal, str]:
        """A goal and a sentence for it."""
        if goal is None:
            training = self.domain.instructed_goals(self.domain.training_split)
            drawn = training[rng.integers(len(training))]
            return drawn.goal, drawn.instruction
        goal = goal if isinstance(goal, Goal) else self.domain.goal_from_json(goal)
        if not isinstance(goal, self.domain.goal_class):
            raise TypeError(f"{goal!r} is a goal of another domain than {self.domain.name}")
        return goal, self.domain.instruction_for(goal)

    def _draw_start(self, row: int, goal: Goal, goal_split: str) -> Array:
        for _ in range(_MAX_STARTS):
            seen = self._lay_out(row, self.rngs[row], goal, goal_split)
            if not goal.success(seen):
                return seen
        raise ValueError(f"goal {goal} was true at {_MAX_STARTS} random starts; give an observation to start from")

    def step(self, actions: Array) -> tuple[Array, Array, BoolArray, BoolArray, dict[str, Any]]:
        """Act once in every episode that has not ended.

        In an episode that has, nothing changes: the action is ignored, the reward is zero, the flags stay.
        """
        is_box = isinstance(self.single_action_space, gym.spaces.Box)
        actions = np.asarray(actions, dtype=self.single_action_space.dtype if is_box else None)
        running = np.flatnonzero(~(self._terminated | self._truncated))
        rewards = np.zeros(self.num_envs)
        if len(running):
            before, taken = self._observation[running], actions[running]
            goals = [goal for row in running if (goal := self._goals[row]) is not None]
            if len(goals) < len(running):
                raise gym.error.ResetNeeded("step was called before every environment had been reset")
            if bad := [action for action in taken if not self.single_action_space.contains(action)]:
                raise ValueError(f"actions hold {bad[0]!r}; each must be {_what_fits(self.single_action_space)}")
            self._observation[running] = self._simulate(running, taken)
            after = self._observation[running]  # what is shown is what is judged, in the space's own type
            is_success = success_of_each(goals, after, before, taken)
            rewards[running] = reward_of_each(goals, before, taken, after)
            self._num_steps[running] += 1
            self._is_success[running] = is_success
            self._terminated[running] = is_success
            self._truncated[running] = ~is_success & (self._num_steps[running] >= self._max_steps[running])
        return self._observation.copy(), rewards, self._terminated.copy(), self._truncated.copy(), self._info()

    def _per_env(self, name: str, values: Any) -> Sequence[Any]:
        if values is None:
            return [None] * self.num_envs
        if len(values) != self.num_envs:
            raise ValueError(f"{name} has {len(values)} values; there are {self.num_envs} environments, one value each")
        return values

    def _info(self) -> dict[str, Any]:
        instructions = list(self._instructions)
        return {"is_success": self._is_success.copy(), "instruction": instructions, "row": np.arange(self.num_envs)}


class SingleEnv(gym.Env[Any, Any]):
    """One episode of a domain, equal to that of the vectorised environment under the same seed.

    ``reset`` takes four options: ``observation`` (what to start from), ``goal`` (a goal or its JSON form),
    ``goal_split`` (in whose places to begin, the training split's by default) and ``instruction`` (a sentence for the
    goal). Without a goal, a training instruction is drawn; without an ``observation``, a start at which the goal is not
    true already. Both draws depend on the seed alone.

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
        options = _checked_options(options, ("goal", "goal_split", "instruction", "observation"))
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


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _checked_options(options: dict[str, Any] | None, known: tuple[str, ...]) -> dict[str, Any]:
    if unknown := set(options or {}) - set(known):
        raise ValueError(f"reset got the options {sorted(unknown)}; it knows {', '.join(known[:-1])} and {known[-1]}")
    return options or {}


def _blank(space: gym.Space[Any], num: int) -> Array:
    """Room for elements of a space: an array of its numbers or, where it is of no numbers, of objects."""
    return np.empty(num, dtype=object) if space.shape is None else np.zeros((num, *space.shape), dtype=space.dtype)


def _checked(observation: Any, space: gym.Space[Any]) -> Any:
    """An observation to start from, of the right shape and finite: where observations are arrays, a fresh one."""
    if space.shape is None:
        return observation
    checked = np.array(observation, dtype=space.dtype)
    if checked.shape != space.shape:
        raise ValueError(f"observation has shape {checked.shape}; it must be {space.shape}")
    if not np.isfinite(checked).all():
        raise ValueError(f"observation has {np.count_nonzero(~np.isfinite(checked))} values that are not finite")
    return checked


def _what_fits(space: gym.Space[Any]) -> str:
    if isinstance(space, gym.spaces.Discrete):
        return f"an integer in [0, {space.n})"
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        return f"{space.shape[0]} numbers in [{space.low.min():g}, {space.high.max():g}]"
    return f"of {space}"
