"""The one loop that steps a world: evaluation, collection and replay all ask it, each with something else that acts.

An episode is one instruction and one reset seed, and nothing else: how many environments run side by side, in which
row an episode ends up, and how many threads step the simulator never change its result. Nothing here draws from a
global random number generator, so that evaluating during training leaves the training run as it was, and nothing is
cast: who acts sees what the world shows, and the world gets what was chosen.

Shape letters: B episodes that run side by side, T time, O observation, A action.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kalm.core.errors import DataError
from kalm.core.goal import Array, InstructedGoal
from kalm.core.names import Source
from kalm.core.rollout import Rollout

if TYPE_CHECKING:
    from kalm.envs.base import Domain
    from kalm.envs.vector_env import DomainVectorEnv

# Who acts: what is seen now, shape (B, O), the number of each row's episode, length B, and what the environment says
# besides, B values for each key; to actions, shape (B,) or (B, A). B shrinks as fewer episodes are left.
Act = Callable[[Array, list[int], dict[str, Any]], Array]

MAX_COLLECTION_SEED = 1_000_000_000  # resets of a collection stay below; those of evaluation begin here
COLLECTED_AT_ONCE = 500  # rollouts; more waste less on waiting for the longest one


@dataclass(frozen=True)
class Episode:
    """What is to be tried: one instruction from one start."""

    instructed: InstructedGoal
    seed: int  # decides the start, and all else that is left to chance
    start: Array | None = None  # observation to start from instead, as nearly as the simulator allows, shape (O,)
    max_steps: int | None = None  # after which nobody acts any more; None leaves the end to the environment


@dataclass(frozen=True)
class EpisodeResult:
    """What became of one episode."""

    episode: Episode
    task: str  # of the goal, over which success is averaged
    is_success: bool  # whether the goal was true after some step
    num_steps: int  # T
    episode_return: float  # undiscounted sum of the environment's rewards
    observations: Array  # shape (T + 1, O)
    actions: Array  # shape (T,) or (T, A)
    num_invalid: int | None = None  # actions that could not be carried out; None where the world cannot tell


def simulate(act: Act, env: DomainVectorEnv, episodes: Sequence[Episode]) -> list[EpisodeResult]:
    """Run every episode once, with one call of ``act`` a simulator step for all running episodes together.

    A row whose episode has ended takes the next waiting episode at once. The results, in the order of ``episodes``, do
    not depend on B as long as ``act`` treats its rows independently. There are no fewer episodes than environments.
    """
    return _Simulation(act, env, episodes).run()


class _Simulation:
    """The bookkeeping of one ``simulate`` call: which episode occupies which row, and what it has done so far."""

    def __init__(self, act: Act, env: DomainVectorEnv, episodes: Sequence[Episode]) -> None:
        self.act, self.env, self.episodes = act, env, episodes
        self.waiting = deque(range(len(episodes)))
        self.episode_of_row = [self.waiting.popleft() for _ in range(env.num_envs)]
        self.is_running = np.ones(env.num_envs, dtype=np.bool_)
        self.observations: list[list[Array]] = [[] for _ in episodes]
        self.actions: list[list[Array]] = [[] for _ in episodes]
        self.returns = [0.0] * len(episodes)
        self.is_success = [False] * len(episodes)

    def run(self) -> list[EpisodeResult]:
        """Step all rows together until no episode waits and none runs."""
        observation, info = self._reset(np.ones(self.env.num_envs, dtype=np.bool_))
        actions = self.env.idle_actions()  # a row that has nothing left to do gets one that nobody reads
        while self.is_running.any():
            rows = np.flatnonzero(self.is_running)
            numbers = [self.episode_of_row[row] for row in rows]
            said = {key: [values[row] for row in rows] for key, values in info.items()}
            actions[rows] = self.act(observation[rows], numbers, said)
            observation, reward, terminated, truncated, info = self.env.step(actions)
            has_ended = terminated | truncated
            for row, number in zip(rows, numbers, strict=True):
                self.observations[number].append(observation[row].copy())
                self.actions[number].append(actions[row].copy())
                self.returns[number] += float(reward[row])
                self.is_success[number] |= bool(info["is_success"][row])
                has_ended[row] |= len(self.actions[number]) == self.episodes[number].max_steps
            starting = self._refill(rows[has_ended[rows]])
            if starting.any():
                observation, info = self._reset(starting)
        return [self._result(number) for number in range(len(self.episodes))]

    def _refill(self, ended: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Give each row in ``ended`` the next waiting episode, or retire it; which rows are to start, shape (B,)."""
        starting = np.zeros(self.env.num_envs, dtype=np.bool_)
        for row in ended:
            if self.waiting:
                self.episode_of_row[row] = self.waiting.popleft()
                starting[row] = True
            else:
                self.is_running[row] = False
        return starting

    def _reset(self, starting: NDArray[np.bool_]) -> tuple[Array, dict[str, Any]]:
        """Start the episodes that the rows in ``starting`` have been given; other rows stay as they are."""
        current = [self.episodes[number] for number in self.episode_of_row]
        options = {
            "goals": [episode.instructed.goal for episode in current],
            "goal_splits": [episode.instructed.goal_split for episode in current],
            "instructions": [episode.instructed.instruction for episode in current],
            "observations": [episode.start for episode in current],
            "reset_mask": starting,
        }
        observation, info = self.env.reset(seed=[episode.seed for episode in current], options=options)
        for row in np.flatnonzero(starting):
            self.observations[self.episode_of_row[row]].append(observation[row].copy())
        return observation, info

    def _result(self, number: int) -> EpisodeResult:
        episode = self.episodes[number]
        observations, actions = np.stack(self.observations[number]), np.stack(self.actions[number])
        invalid = self.env.domain.invalid(observations[:-1], actions, observations[1:])
        return EpisodeResult(
            episode=episode,
            task=episode.instructed.goal.task,
            is_success=self.is_success[number],
            num_steps=len(self.actions[number]),
            episode_return=self.returns[number],
            observations=observations,
            actions=actions,
            num_invalid=None if invalid is None else int(invalid.sum()),
        )


def evaluate(
    act: Act, domain: Domain, episodes: Sequence[Episode], num_envs: int = 64, num_threads: int | None = None
) -> list[EpisodeResult]:
    """Simulate in an environment that is made for it, see ``simulate``.

    Args:
        act: Who acts.
        domain: World to run in.
        episodes: What to run.
        num_envs: Most episodes that run side by side.
        num_threads: Threads of the simulator; all cores by default.
    """
    if num_envs < 1:
        raise DataError(f"num_envs is {num_envs}; evaluation needs at least 1 environment")
    if not episodes:
        return []
    with closing(domain.make_vector_env(min(num_envs, len(episodes)), num_threads)) as env:
        return simulate(act, env, episodes)


def collect(domain: Domain, num_rollouts: int, seed: int, first: int = 0) -> Iterator[Rollout]:
    """Real rollouts of the expert under the training instructions, taken in turn in a shuffled order.

    Args:
        domain: The world; its ``expert`` acts.
        num_rollouts: Rollouts of the whole collection.
        seed: With a rollout's number it decides everything about that rollout.
        first: Number of the rollout to begin with, so that an interrupted collection goes on.

    Yields:
        Rollouts ``first`` to ``num_rollouts - 1``, in order; those that fail within the step limit too.
    """
    instructed = domain.instructed_goals(domain.training_split)
    order = np.random.default_rng(seed).permutation(len(instructed))
    for begin in range(first, num_rollouts, COLLECTED_AT_ONCE):
        numbers = range(begin, min(begin + COLLECTED_AT_ONCE, num_rollouts))
        chosen = [instructed[order[number % len(order)]] for number in numbers]
        yield from collect_for(domain, chosen, seed, numbers)


def collect_for(
    domain: Domain, instructed: Sequence[InstructedGoal], seed: int, numbers: Sequence[int]
) -> list[Rollout]:
    """One rollout of the expert for each instruction; ``numbers`` and ``seed`` decide the chance of each."""
    seeds = [np.random.SeedSequence([seed, number]).generate_state(1)[0] for number in numbers]
    episodes = [Episode(row, int(own) % MAX_COLLECTION_SEED) for row, own in zip(instructed, seeds, strict=True)]
    luck = [np.random.default_rng([seed, number, 1]) for number in numbers]
    with closing(domain.make_vector_env(len(episodes))) as env:
        results = simulate(domain.expert(env, [row.goal for row in instructed], luck), env, episodes)
    return [domain.label_rollout(r.episode.instructed, r.observations, r.actions, Source.REAL) for r in results]


def replay(
    domain: Domain, rollouts: Sequence[Rollout], num_envs: int = 64, max_steps: int | None = None
) -> list[EpisodeResult]:
    """Carry out the actions of rollouts, such as imagined ones, from where they begin. For reports; nothing learns it.

    Args:
        domain: World that the rollouts are of.
        rollouts: None of them empty.
        num_envs: Most environments that run side by side.
        max_steps: Actions to carry out of each rollout at most; all by default.

    Returns:
        One result for each rollout, in their order; it ends with the actions, or when the goal comes true before.
    """
    episodes = [
        Episode(
            InstructedGoal(domain.goal_from_json(rollout.goal), rollout.instruction, rollout.goal_split),
            seed=0,
            start=rollout.observations[0],
            max_steps=len(rollout) if max_steps is None else min(max_steps, len(rollout)),
        )
        for rollout in rollouts
    ]
    num_taken = [0] * len(rollouts)

    def act(observation: Array, numbers: list[int], info: dict[str, Any]) -> Array:
        actions = [rollouts[number].actions[num_taken[number]] for number in numbers]
        for number in numbers:
            num_taken[number] += 1
        return np.stack(actions)

    return evaluate(act, domain, episodes, num_envs)


def drift(rollout: Rollout, result: EpisodeResult) -> float:
    """How far a rollout is from its replay where the replay ended: root mean square over an observation's numbers."""
    error = result.observations[-1] - rollout.observations[result.num_steps]
    return float(np.sqrt(np.square(error).mean()))
