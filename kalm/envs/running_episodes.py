"""What a policy with a memory knows of the episodes it is evaluated on: their latest steps and what is wanted of them.

The return that is wanted of an episode shrinks by each reward, as in algorithm 1 of Decision Transformer (Chen et al.
2021, arXiv:2106.01345). The reward of a step is worked out by the goal's own rule from two observations and the
action between them, which is what the environment does.

Shape letters: B rows of one call, C steps that are kept, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kalm.core.goal import Goal
from kalm.core.specs import GridObservation, Spec


@dataclass(frozen=True)
class History:
    """The latest steps of some episodes; those behind the present one are 0."""

    observation: Tensor  # as the environment gives it, shape (B, C, O)
    action: Tensor  # shape (B, C) or (B, C, A); that of the present step is not chosen yet
    return_to_go: Tensor  # return that is wanted from each step on, shape (B, C)
    now: Tensor  # place of the present step, in [0, C); shape (B,)
    num_steps: Tensor  # taken before it, shape (B,)

    def step_up_to(self, last_step: int) -> Tensor:
        """Number of each step in its episode, shape (B, C), at most ``last_step``.

        An episode that is further is counted as if it were there now: its steps still differ by one.
        """
        first = self.num_steps.clamp(max=last_step) - self.now
        places = torch.arange(self.observation.shape[1], device=first.device)
        return (first.unsqueeze(1) + places).clamp(min=0, max=last_step)


class RunningEpisodes:
    """Keeps the latest steps of each episode of an evaluation."""

    def __init__(self, goals: Sequence[Goal], spec: Spec, num_kept_steps: int, target_return: float) -> None:
        """Begin with no step taken.

        Args:
            goals: What each episode is after; their rules give the rewards.
            spec: Sizes of observation and action.
            num_kept_steps: Steps that are kept, C.
            target_return: Return that is wanted of each episode.
        """
        self._goals, self._target_return = goals, target_return
        # The last row is for rows of a call that belong to no episode, whose number is -1.
        size = (len(goals) + 1, num_kept_steps)
        self._observation = (
            torch.zeros(*size, *spec.observation.shape, dtype=torch.uint8)
            if isinstance(spec.observation, GridObservation)
            else torch.zeros(*size, spec.observation_size)
        )
        self._action = (
            torch.zeros(*size, dtype=torch.int64) if spec.is_discrete else torch.zeros(*size, spec.action_size)
        )
        self._return_to_go = torch.zeros(*size)
        self._num_steps = torch.zeros(len(goals) + 1, dtype=torch.int64)  # before the present one

    def observe(self, observation: Tensor, episode: Tensor) -> History:
        """Add what is seen now, shape (B, O), in the episodes of these numbers, shape (B,); none twice but -1."""
        seen = observation.cpu()
        wanted = self._still_wanted(seen, episode)
        num_steps, last = self._num_steps[episode], self._observation.shape[1] - 1
        self._forget(episode[num_steps > last])
        now = num_steps.clamp(max=last)
        self._observation[episode, now] = seen
        self._return_to_go[episode, now] = wanted
        kept = (self._observation[episode], self._action[episode], self._return_to_go[episode], now, num_steps)
        return History(*(part.to(observation.device) for part in kept))

    def act(self, action: Tensor, episode: Tensor) -> None:
        """Add what is done now, shape (B,) or (B, A)."""
        self._action[episode, self._now(episode)] = action.cpu()
        self._num_steps[episode] += 1

    def _now(self, episode: Tensor) -> Tensor:
        return self._num_steps[episode].clamp(max=self._observation.shape[1] - 1)

    def _still_wanted(self, seen: Tensor, episode: Tensor) -> Tensor:
        """What was wanted before the latest action, less what it earned; of a new episode, the target return."""
        wanted = torch.full((len(episode),), self._target_return)
        for row, number in enumerate(episode.tolist()):
            if number >= 0 and self._num_steps[number] > 0:
                before = int(self._num_steps[number].clamp(max=self._observation.shape[1])) - 1
                wanted[row] = self._return_to_go[number, before] - self._reward(number, before, seen[row])
        return wanted

    def _reward(self, number: int, place: int, seen: Tensor) -> float:
        observation, action = self._observation[number, place], self._action[number, place]
        parts = [part.unsqueeze(0).numpy() for part in (observation, action, seen)]
        return float(self._goals[number].reward(*parts)[0])

    def _forget(self, episode: Tensor) -> None:
        """Drop the oldest step of full histories."""
        for kept in (self._observation, self._action, self._return_to_go):
            kept[episode] = kept[episode].roll(-1, dims=1)
            kept[episode, -1] = 0
