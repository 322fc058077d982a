"""Collects experience without goals: minigrid's bot under commands that nobody is told, or random actions.

A rollout is a pure function of the seed and its number, so that a collection can be interrupted, and made by any
number of processes. The bot acts in minigrid itself; what is recorded is the way of its actions in our own simulator,
and where both end up must be the same.

Shape letters: T steps, W columns, H rows.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.core.termination import end_with_parent
from kalm.envs.babyai.goals import MAX_STEPS
from kalm.envs.babyai.grids import Grid, Level, reset_quietly
from kalm.envs.babyai.layout import NUM_ACTIONS
from kalm.envs.babyai.minigrid_world import Bot, put_command, put_state, random_command, state_of
from kalm.envs.babyai.simulator import roll_out
from kalm.envs.vector_env import usable_cores

if TYPE_CHECKING:
    from kalm.envs.babyai.domain import BabyAI

_AT_ONCE = 40  # rollouts that a process makes before it hands them over
_WAITING = 3  # times as many are asked for ahead as there are processes

_Way = tuple[NDArray[np.uint8], NDArray[np.int64]]  # where a rollout begins, and its actions


def collect(domain: BabyAI, num_rollouts: int, seed: int, first: int = 0) -> Iterator[Rollout]:
    """Real rollouts ``first`` to ``num_rollouts - 1``, in order.

    Rollout n is in training grid n modulo their number, from any tile that an agent may begin on. The bot is given a
    random command of BabyAI's own, in a skill grid the one that it is for, and acts until it is carried out, or for 500
    steps. Of neither is anything recorded.
    """
    for number, (start, actions) in enumerate(_ways(domain, num_rollouts, seed, first), start=first):
        num_steps = len(actions)
        yield Rollout(
            goal={},
            instruction="",
            goal_split="",
            source=Source.REAL,
            observations=roll_out(start, actions),
            actions=actions,
            rewards=np.zeros(num_steps, dtype=np.float32),
            terminated=np.zeros(num_steps, dtype=np.bool_),
            truncated=np.arange(num_steps) == num_steps - 1,
            is_success=False,
            provenance={"grid": number % domain.num_training_grids},
        )


def _ways(domain: BabyAI, num_rollouts: int, seed: int, first: int) -> Iterator[_Way]:
    chunks = [range(begin, min(begin + _AT_ONCE, num_rollouts)) for begin in range(first, num_rollouts, _AT_ONCE)]
    num_processes = min(domain.num_processes or usable_cores(), len(chunks))
    if num_processes <= 1:
        collector = _Collector(domain)
        yield from (collector.make(seed, number) for number in range(first, num_rollouts))
        return
    # Spawned, because a process that has threads, as torch begins, must not be forked.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_processes, context, _Worker.begin, (domain,))
    try:
        waiting: deque[Future[list[_Way]]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(_Worker.work, seed, chunk))
            if len(waiting) >= _WAITING * num_processes:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Collector:
    """Makes rollouts, with a level of minigrid for each grid that it has been in."""

    def __init__(self, domain: BabyAI) -> None:
        self._domain = domain
        self._grids = domain.places(domain.training_split).grids
        self._levels: dict[int, Level] = {}

    def make(self, seed: int, number: int) -> _Way:
        """Start, (W, H, 2), and actions, (T,), of one rollout."""
        rng = np.random.default_rng([seed, number])
        grid = self._grids[number % len(self._grids)]
        start = grid.random_state(rng)
        if rng.random() < self._domain.random_share:
            return start, rng.integers(NUM_ACTIONS, size=self._domain.random_steps)
        while len(actions := self._follow_bot(grid, start, rng)) == 0:  # it gave up at once
            start = grid.random_state(rng)
        return start, actions

    def _follow_bot(self, grid: Grid, start: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.int64]:
        level = self._level(grid)
        level.np_random = rng
        put_state(level, start)
        put_command(level, random_command(level))
        bot, is_over = Bot(level), False
        actions: list[int] = []
        while not is_over and len(actions) < MAX_STEPS and (action := bot.act()) is not None:
            _, _, is_over, _, _ = level.step(action)
            actions.append(action)
        way = np.array(actions, dtype=np.int64)
        if not np.array_equal(roll_out(start, way)[-1], state_of(level)):
            raise AssertionError(f"the simulator and minigrid ended up in different states in grid {grid.number}")
        return way

    def _level(self, grid: Grid) -> Level:
        if grid.number not in self._levels:
            level = self._levels[grid.number] = self._domain.make_level()
            reset_quietly(level, grid.number)
            level.gen_obs = dict  # nobody looks at what minigrid would show, and to work it out takes long
        return self._levels[grid.number]


class _Worker:
    """The collector of a process that makes rollouts for another one."""

    collector: ClassVar[_Collector]

    @classmethod
    def begin(cls, domain: BabyAI) -> None:
        end_with_parent()
        cls.collector = _Collector(domain)

    @classmethod
    def work(cls, seed: int, numbers: range) -> list[_Way]:
        return [cls.collector.make(seed, number) for number in numbers]
