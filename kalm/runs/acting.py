"""How discrete actions are chosen in evaluation: by their scores, and by what decides an episode, and nothing else.

The best action of a policy without memory can go round in circles: it repeats a push that changed nothing. So it can
also be drawn, or be marked down where it was taken before. Whatever is drawn is decided by the seed of the run, the
seed of the episode and the number of its step.

Shape letters: B rows, O numbers in an observation, A actions, Z numbers for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kalm.core.errors import require
from kalm.core.specs import Spec
from kalm.envs.simulation import Episode

ActingRule = Literal["argmax", "sample", "no_repeat"]


@dataclass(frozen=True)
class Acting:
    """How a discrete action is chosen by the scores of all, which are logits or Q-values.

    Attributes:
        rule: ``argmax`` takes the best (papers). ``sample`` draws from the softmax of scores over ``temperature``.
            ``no_repeat`` takes the best, after ``penalty`` is taken off the log-probability of an action for each time
            that it was taken before, in this episode, within ``radius`` of this state.
        temperature: Of the softmax, above 0; the log-probabilities of ``no_repeat`` are up to a constant the scores
            over it.
        penalty: In nats, above 0.
        radius: Euclidean distance of observations, 0 or more; at 0 only the same state counts.
    """

    rule: ActingRule = "argmax"
    temperature: float = 1.0
    penalty: float = 2.0
    radius: float = 0.06

    def __post_init__(self) -> None:
        """Check the options."""
        require(self.rule in ("argmax", "sample", "no_repeat"), "rule", self.rule, "argmax, sample or no_repeat")
        require(self.temperature > 0, "temperature", self.temperature, "above 0; rule: argmax takes the best")
        require(self.penalty > 0, "penalty", self.penalty, "above 0")
        require(self.radius >= 0, "radius", self.radius, "0 or more")


BEST = Acting()


def require_discrete(acting: Acting, spec: Spec) -> None:
    """Refuse rules that continuous actions have no use for.

    Raises:
        KalmError: If actions are continuous and not the best is taken.
    """
    allowed = "argmax where actions are continuous"
    require(spec.is_discrete or acting.rule == "argmax", "acting.rule", acting.rule, allowed)


class ActionChoice:
    """Chooses in running episodes, and remembers what each of them did where that matters."""

    def __init__(self, acting: Acting, seed: int, episodes: Sequence[Episode], spec: Spec) -> None:
        """Begin the episodes, none of which has taken a step.

        Args:
            acting: The rule.
            seed: Of the run.
            episodes: The episodes, by whose place they are named later on.
            spec: Of the world.
        """
        self._acting, self._seed, self._num_actions = acting, seed, spec.action_size
        # The last entry is for rows that belong to no episode, whose number is -1.
        self._episode_seeds = np.array([*(episode.seed for episode in episodes), 0], dtype=np.uint64)
        self._num_taken = np.zeros(len(self._episode_seeds), dtype=np.uint64)
        self._past: dict[int, list[tuple[NDArray[Any], int]]] = {}  # observation and action of each step

    def choose(self, scores: Tensor, observations: Tensor, numbers: Tensor) -> Tensor:
        """The actions of the next step of some episodes.

        Args:
            scores: Shape (B, A).
            observations: As the environment gives them, shape (B, O) or (B, ...).
            numbers: Which episode each row is, int64 of shape (B,); -1 for a row of none.

        Returns:
            Int64 of shape (B,), on the device of the scores.
        """
        rows = numbers.cpu().numpy()
        if self._acting.rule == "argmax":
            return scores.argmax(dim=-1)
        if self._acting.rule == "sample":
            luck = uniform_numbers(self._seed, self._episode_seeds[rows], self._num_taken[rows], self._num_actions)
            self._num_taken[rows] += 1
            return draw_actions(scores.cpu(), luck, self._acting.temperature).to(scores.device)
        seen = observations.cpu().numpy().reshape(len(rows), -1).astype(np.float64)
        times = np.stack([self._times_taken(row, state) for row, state in zip(rows.tolist(), seen, strict=True)])
        marked_down = scores.cpu().double() / self._acting.temperature - self._acting.penalty * torch.from_numpy(times)
        chosen = marked_down.argmax(dim=-1)
        for row, state, action in zip(rows.tolist(), seen, chosen.tolist(), strict=True):
            if row >= 0:
                self._past.setdefault(row, []).append((state, action))
        return chosen.to(scores.device)

    def _times_taken(self, row: int, state: NDArray[np.float64]) -> NDArray[np.int64]:
        """How often the episode took each action near a state, shape (A,)."""
        past = self._past.get(row)
        if not past:
            return np.zeros(self._num_actions, dtype=np.int64)
        states, actions = zip(*past, strict=True)
        is_near = np.linalg.norm(np.stack(states) - state, axis=-1) <= self._acting.radius
        return np.bincount(np.array(actions)[is_near], minlength=self._num_actions)


class Repeats:
    """Remembers what running episodes did in which situations; what makes two situations the same, who asks decides."""

    def __init__(self, num_episodes: int, num_actions: int) -> None:
        """Begin the episodes, none of which has taken a step."""
        self._num_actions = num_actions
        self._times: list[dict[int, NDArray[np.int64]]] = [{} for _ in range(num_episodes)]

    def times(self, episodes: Sequence[int], situations: NDArray[np.int64]) -> NDArray[np.int64]:
        """How often each of B episodes took each action in the situation that it is in, (B,); shape (B, A)."""
        never = np.zeros(self._num_actions, dtype=np.int64)
        pairs = zip(episodes, situations.tolist(), strict=True)
        return np.stack([self._times[episode].get(situation, never) for episode, situation in pairs])

    def add(self, episodes: Sequence[int], situations: NDArray[np.int64], actions: NDArray[np.int64]) -> None:
        """Remember one more step of B episodes."""
        for episode, situation, action in zip(episodes, situations.tolist(), actions.tolist(), strict=True):
            self._times[episode].setdefault(situation, np.zeros(self._num_actions, dtype=np.int64))[action] += 1


def draw_actions(logits: Tensor, luck: NDArray[np.float64], temperature: float) -> Tensor:
    """Draw from the softmax of logits over a temperature, by adding Gumbel's noise to them; at 0 the likeliest.

    Args:
        logits: Shape (B, A).
        luck: Uniform numbers in (0, 1), shape (B, A).
        temperature: 0 or more.

    Returns:
        Actions, int64 of shape (B,).
    """
    noise = -torch.from_numpy(luck).log().neg().log()
    return (logits.double() + temperature * noise).argmax(dim=-1)


def uniform_numbers(
    seed: int, episodes: NDArray[np.uint64], steps: NDArray[np.uint64], size: int
) -> NDArray[np.float64]:
    """Uniform numbers in (0, 1) for a step of each of B episodes: a function of seed, episode, step and place alone.

    A counter is scrambled (splitmix64: Steele et al. 2014) once a number that decides, for no generator has to be made.

    Args:
        seed: Of the run.
        episodes: Seed of each episode, shape (B,).
        steps: Number of its step, shape (B,).
        size: Numbers for each, Z.

    Returns:
        Shape (B, Z).
    """
    with np.errstate(over="ignore"):
        state = _scramble(_scramble(_scramble(np.uint64(seed)) ^ episodes) ^ steps)
        words = _scramble(state[:, None] ^ np.arange(1, size + 1, dtype=np.uint64))
    return ((words >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


def _scramble(words: Any) -> Any:
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
