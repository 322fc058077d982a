"""What is remembered of the episodes of an evaluation, and how the return that is wanted shrinks."""

from __future__ import annotations

import torch

from kalm.core.specs import vector_spec
from kalm.envs.running_episodes import RunningEpisodes
from tests.chain_domain import LEFT, RIGHT, CellGoal

SPEC = vector_spec(observation_size=5, action_size=2, is_discrete=True, goal_embedding_size=4)


class StepGoal(CellGoal):
    """A cell with a reward of 1 for every step to the right and 10 more for reaching it."""

    def reward(self, observation, action, next_observation):  # type: ignore[no-untyped-def]
        """By goal, action and the observation after it."""
        return 1.0 * (action == RIGHT) + 10.0 * self.success(next_observation)


def cells(*numbers: int) -> torch.Tensor:
    """Observations."""
    return torch.eye(5)[list(numbers)]


def running(num_kept_steps: int, num_episodes: int = 2) -> RunningEpisodes:
    """Episodes that want a return of 20; the goal is the right end."""
    return RunningEpisodes([StepGoal(4)] * num_episodes, SPEC, num_kept_steps, target_return=20.0)


def test_what_is_wanted_shrinks_by_what_was_earned() -> None:
    """Right, left, right into the goal: 20, 20 - 1 = 19, 19 - 0 = 19, 19 - 11 = 8."""
    episodes, number = running(4, 1), torch.tensor([0])
    for cell, action in ((2, RIGHT), (3, LEFT), (3, RIGHT)):
        episodes.observe(cells(cell), number)
        episodes.act(torch.tensor([action]), number)
    history = episodes.observe(cells(4), number)
    assert history.return_to_go.tolist() == [[20.0, 19.0, 19.0, 8.0]]
    assert history.observation[0].argmax(-1).tolist() == [2, 3, 3, 4]
    assert history.action.tolist() == [[RIGHT, LEFT, RIGHT, 0]]
    assert history.now.tolist() == history.num_steps.tolist() == [3]


def test_only_the_latest_steps_are_kept() -> None:
    """Three of five: right, right, left, right, and now; what is wanted goes on from the step that was dropped."""
    episodes, number = running(3, 1), torch.tensor([0])
    for cell, action in ((0, RIGHT), (1, RIGHT), (2, LEFT), (1, RIGHT)):
        episodes.observe(cells(cell), number)
        episodes.act(torch.tensor([action]), number)
    history = episodes.observe(cells(2), number)
    assert history.observation[0].argmax(-1).tolist() == [2, 1, 2]
    assert history.action.tolist() == [[LEFT, RIGHT, 0]]
    assert history.return_to_go.tolist() == [[18.0, 18.0, 17.0]]
    assert history.now.tolist() == [2]
    assert history.num_steps.tolist() == [4]


def test_steps_behind_the_present_one_are_empty() -> None:
    """At the first step of four."""
    history = running(4).observe(cells(2, 3), torch.tensor([1, 0]))
    assert history.now.tolist() == [0, 0]
    assert (history.observation[:, 1:] == 0).all()
    assert history.return_to_go.tolist() == [[20.0, 0.0, 0.0, 0.0]] * 2


def test_episodes_are_told_apart_by_their_numbers() -> None:
    """Rows change places and number, and rows of no episode (-1) come along; each history is its episode's."""
    episodes = running(4)
    first, second, nobody = torch.tensor([0, 1, -1, -1]), torch.tensor([1, -1, 0, -1]), torch.tensor([0, -1, -1, -1])
    episodes.observe(cells(0, 2, 4, 4), first)
    episodes.act(torch.tensor([RIGHT, LEFT, RIGHT, LEFT]), first)
    history = episodes.observe(cells(1, 4, 1, 4), second)
    assert history.observation[0].argmax(-1).tolist()[:2] == [2, 1]
    assert history.observation[2].argmax(-1).tolist()[:2] == [0, 1]
    assert history.return_to_go[0].tolist() == [20.0, 20.0, 0.0, 0.0]
    assert history.return_to_go[2].tolist() == [20.0, 19.0, 0.0, 0.0]
    episodes.act(torch.tensor([LEFT, LEFT, RIGHT, LEFT]), second)
    alone = episodes.observe(cells(2, 4, 4, 4), nobody)
    assert alone.observation[0].argmax(-1).tolist()[:3] == [0, 1, 2]
    assert alone.action[0].tolist() == [RIGHT, RIGHT, 0, 0]


def test_the_steps_of_an_episode_count_up_to_the_last_that_is_known() -> None:
    """Three steps are kept; rollouts have steps 0 to 3. At step 1: 0, 1; at step 3: 1, 2, 3; at step 6 as at step 3."""
    episodes, number, seen = running(3, 1), torch.tensor([0]), []
    for _ in range(7):
        history = episodes.observe(cells(0), number)
        seen.append(history.step_up_to(3)[0, : int(history.now) + 1].tolist())
        episodes.act(torch.tensor([LEFT]), number)
    assert seen == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]]


def test_a_history_is_a_copy() -> None:
    """What a policy was shown does not change when the episode goes on."""
    episodes, number = running(2, 1), torch.tensor([0])
    history = episodes.observe(cells(0), number)
    before = history.observation.clone()
    episodes.act(torch.tensor([RIGHT]), number)
    episodes.observe(cells(1), number)
    assert torch.equal(history.observation, before)
