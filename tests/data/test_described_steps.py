"""Single steps behind what is said of them, and states behind sentences of several goals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from kalm.core.errors import DataError
from kalm.core.goal import Array, Goal
from kalm.data.described_steps import DescribedSteps
from kalm.data.grounding_data import GroundingData, GroundingTasks
from kalm.data.language_batches import GroundingTask
from kalm.data.rollout_sources import RealRollouts
from kalm.data.selection import Selection
from kalm.data.sub_goal_batches import SubGoalBatches
from kalm.data.symmetry import SymmetryKind
from kalm.language.prompts import generation_prompt, sub_goal_prompt
from tests.chain_domain import CELL_NAMES, CellGoal, ChainDomain
from tests.data.rollouts import real_rollouts, write_store
from tests.llm.token_encoder import TokenEncoder

ANSWER = {0: "go to the left end", 4: "go to the right end"}


class ToldChain(ChainDomain):
    """The chain, whose steps are seen to lead left or right, and whose ends can be asked for together."""

    def descriptions(self, before: Array, after: Array) -> list[Sequence[str]]:
        """Where a step led to; nothing of one against a wall."""
        way = np.asarray(after).argmax(-1) - np.asarray(before).argmax(-1)
        return [{-1: ("it went left", "left it is"), 0: (), 1: ("it went right",)}[int(step)] for step in way]

    def composed(self, goals: Sequence[Goal], rng: np.random.Generator) -> str | None:
        """One cell after the other."""
        names = [CELL_NAMES[goal.cell] for goal in goals if isinstance(goal, CellGoal)]
        return " then the ".join(names) if len(names) > 1 else None


def selection(folder: Path) -> Selection:
    """All of 40 walks, some of which bump into walls."""
    return Selection.whole([write_store(folder / "store", real_rollouts(40))])


def data(folder: Path, domain: ChainDomain, **tasks: int) -> GroundingData:
    """Batches of tasks of 40 walks under mirrored names."""
    selection(folder)
    real = RealRollouts(str(folder / "store"))
    sizes = {"generation": 0, "dynamics": 0, "explanation": 0}
    chosen = GroundingTasks(**sizes | tasks)
    return GroundingData(domain, TokenEncoder(), real, tasks=chosen, symmetry=SymmetryKind.names, num_held_out=4)


def test_every_step_that_leads_somewhere_is_a_rollout_of_its_own(tmp_path: Path) -> None:
    """Behind what is said of it, as it was recorded."""
    rollouts = selection(tmp_path)
    steps = DescribedSteps(ToldChain(), rollouts)
    cells = [made.observations.argmax(-1) for made in real_rollouts(40)]
    ways = [way for path in cells for way in np.diff(path).tolist() if way]
    assert len(steps) == len(ways) < sum(map(len, cells)) - 40, "some steps led nowhere"
    assert [len(said) for said in steps.sentences] == [2 if way < 0 else 1 for way in ways]
    rows = steps.rows(torch.arange(len(steps)))
    before, after = steps.read(("observation", ("next", "observation")), rows)
    assert (after.argmax(-1) - before.argmax(-1)).tolist() == ways


def test_described_steps_stay_true_under_symmetries(tmp_path: Path) -> None:
    """One step each, a sentence shared by no more than asked for; what is said is what happened; no text, no end."""
    batches = data(tmp_path, ToldChain(), description=12, steps_per_description=3)
    sides = set()
    for index in range(4):
        batch = batches.batch(index)
        assert set(batch.task.tolist()) == {GroundingTask.DESCRIPTION}
        assert set(batch.lengths.tolist()) == {1}
        assert batch.prompt_of_rollout.bincount().max() <= 3
        way = batch.next_observation.argmax(-1) - batch.observation.argmax(-1)
        for prompt, step in zip(batch.prompt_of_rollout.tolist(), way.tolist(), strict=True):
            side = "right" if step > 0 else "left"
            assert batch.prompts[prompt] in (generation_prompt(f"it went {side}"), generation_prompt(f"{side} it is"))
            sides.add(side)
        assert set(batch.answers) == {""}
    assert sides == {"left", "right"}


def test_states_behind_composed_sentences_say_what_is_left(tmp_path: Path) -> None:
    """Before a walk its own end is still to be reached, unless another comes first; after it only the other is."""
    batches = data(tmp_path, ToldChain(), sub_goal=16)
    seen = set()
    for index in range(8):
        batch = batches.batch(index)
        assert not batch.lengths.any()
        assert len(batch.observation) == len(batch.action) == 0
        for prompt, task, answer, state, at_end in zip(
            batch.prompts, batch.task, batch.answers, batch.final_observation, batch.is_terminated, strict=True
        ):
            cell = int(state.argmax())
            if task == GroundingTask.GENERATION:
                assert answer == ""
                assert bool(at_end) == (cell == (0 if "left" in prompt else 4))
                continue
            first, second = (0, 4) if prompt == sub_goal_prompt("left end then the right end") else (4, 0)
            expected = second if at_end and cell == first else first
            assert answer == ANSWER[expected]
            seen.add((first, bool(at_end), expected))
    assert seen == {(0, False, 0), (0, True, 4), (0, True, 0), (4, False, 4), (4, True, 0), (4, True, 4)}


def test_sub_goals_are_a_pure_function_of_seed_and_index(tmp_path: Path) -> None:
    """Asked again the same, under another seed others."""
    rollouts = selection(tmp_path)
    answers = [ANSWER[row.goal["cell"]] for row in rollouts.instruction_rows]
    one, again, other = (SubGoalBatches(ToldChain(), rollouts, answers, 8, (), (seed, 0)) for seed in (0, 0, 1))
    assert one(5).prompts == again(5).prompts != other(5).prompts
    assert torch.equal(one(5).final_observation, again(5).final_observation)


@pytest.mark.parametrize(("task", "message"), [("description", "describes none"), ("sub_goal", "composes none")])
def test_a_domain_that_says_nothing_is_refused(tmp_path: Path, task: str, message: str) -> None:
    """By name, with what to do."""
    with pytest.raises(DataError, match=f"tasks.{task} asks for .*{message} of the .*; set it to 0"):
        data(tmp_path, ChainDomain(), **{task: 4}).batch(0)
