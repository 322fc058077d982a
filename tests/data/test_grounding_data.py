"""Grounding batches: every rollout once an epoch, a pure function of the index, tasks as asked, sound starts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kalm.core.errors import CheckpointError, DataError
from kalm.core.goal import Goal
from kalm.core.rollout import Rollout
from kalm.data.grounding_data import GroundingData, GroundingTasks
from kalm.data.language_batches import GroundingBatch, GroundingTask, batch_rollouts, join_batches, make_work_items
from kalm.data.rollout_sources import ImaginedRollouts
from kalm.data.selection import Selection
from kalm.data.statistics import Moments
from kalm.data.symmetry import SymmetryKind
from kalm.data.task_batches import TaskBatches
from kalm.envs.symmetry import Symmetry
from kalm.language.prompts import DYNAMICS, EXPLANATIONS, GENERATION, UNSEEN_EXPLANATION, generation_prompt
from kalm.store.reader import RolloutStore
from tests.chain_domain import CellGoal, ChainDomain, step
from tests.data.rollouts import imagined_rollouts, real_rollouts, write_store
from tests.line_domain import LineDomain
from tests.llm.models import chain_grounding_data, one_hot_starts

DOMAIN = ChainDomain()


def assert_equal(left: GroundingBatch, right: GroundingBatch) -> None:
    """All fields."""
    for one, other in zip(left, right, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def task_batches(folder: Path, **options: Any) -> tuple[TaskBatches, list[Rollout]]:
    """Batches of 50 chain rollouts as the generation task, and those rollouts."""
    rollouts = real_rollouts(50)
    store = write_store(folder / "store", rollouts)
    defaults: dict[str, Any] = {
        "rollouts_per_batch": 8,
        "tokens_per_prompt": 24,
        "crop_probability": 0.0,
        "symmetries": (),
        "seed": (0, 0),
    }
    prompts = [[generation_prompt(rollout.instruction)] for rollout in rollouts]
    batches = TaskBatches(
        Selection.whole([store]),
        GroundingTask.GENERATION,
        prompts,
        None,
        **{**defaults, **options},
    )
    return batches, rollouts


def rollouts_of(batch: GroundingBatch) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Prompt, cells before each step and actions of each rollout."""
    ends = batch.lengths.cumsum(0).tolist()
    found = []
    for end, length, prompt in zip(ends, batch.lengths.tolist(), batch.prompt_of_rollout.tolist(), strict=True):
        cells, actions = batch.observation[end - length : end].argmax(-1), batch.action[end - length : end]
        found.append((batch.prompts[prompt], tuple(cells.tolist()), tuple(actions.tolist())))
    return found


def test_an_epoch_has_every_rollout_once(tmp_path: Path) -> None:
    """Six batches of 50 rollouts, each rollout behind its own prompt, in another order the next epoch."""
    batches, rollouts = task_batches(tmp_path)
    expected = Counter(
        (generation_prompt(r.instruction), tuple(r.observations[:-1].argmax(-1).tolist()), tuple(r.actions.tolist()))
        for r in rollouts
    )
    epochs = [[rollouts_of(batches(epoch * 6 + place)) for place in range(6)] for epoch in range(2)]
    for epoch in epochs:
        assert Counter(entry for batch in epoch for entry in batch) == expected
    assert epochs[0] != epochs[1]


def test_a_batch_is_a_pure_function_of_its_index(tmp_path: Path) -> None:
    """Asked for in any order, by another object too; another seed gives another batch."""
    one, _ = task_batches(tmp_path / "one")
    other, _ = task_batches(tmp_path / "other")
    different, _ = task_batches(tmp_path / "different", seed=(1, 0))
    late = [one(index) for index in (13, 2, 7)]
    for batch, index in zip(late, (13, 2, 7), strict=True):
        assert_equal(batch, other(index))
    assert rollouts_of(late[0]) != rollouts_of(different(13))


def test_a_cropped_rollout_is_the_end_of_a_rollout(tmp_path: Path) -> None:
    """Always cropped: each is a suffix of its rollout with at least one step, many are shorter, most epochs differ."""
    batches, rollouts = task_batches(tmp_path, crop_probability=1.0)
    suffixes = {
        (generation_prompt(r.instruction), tuple(r.observations[:-1].argmax(-1)[t:]), tuple(r.actions[t:]))
        for r in rollouts
        for t in range(len(r))
    }
    epochs = [[entry for place in range(6) for entry in rollouts_of(batches(6 * epoch + place))] for epoch in range(2)]
    for epoch in epochs:
        assert len(epoch) == 50
        assert set(epoch) <= suffixes
    assert sum(len(actions) for _, _, actions in epochs[0]) < sum(len(rollout) for rollout in rollouts)
    assert Counter(epochs[0]) != Counter(epochs[1])
    batch = batches(0)
    last = batch.lengths.cumsum(0) - 1
    assert torch.equal(batch.final_observation, batch.next_observation[last])


def test_rollouts_under_symmetries_stay_true(tmp_path: Path) -> None:
    """Mirrored or not, by chance: each rollout still walks as the chain does, to the end that its prompt names."""
    batches, rollouts = task_batches(tmp_path, symmetries=DOMAIN.symmetries)
    shown = [entry for index in range(6) for entry in rollouts_of(batches(index))]
    mirror = DOMAIN.symmetries[1]
    as_recorded = {
        (generation_prompt(r.instruction), tuple(r.observations[:-1].argmax(-1)), tuple(r.actions)) for r in rollouts
    }
    mirrored = {
        (mirror.text(prompt), tuple(4 - cell for cell in cells), tuple(1 - action for action in actions))
        for prompt, cells, actions in as_recorded
    }
    assert len(shown) == len(rollouts)
    assert set(shown) <= as_recorded | mirrored
    assert set(shown) & (mirrored - as_recorded)
    assert set(shown) & (as_recorded - mirrored)
    assert Counter(shown) != Counter(entry for index in range(6, 12) for entry in rollouts_of(batches(index)))


def test_mirrored_vectors_change_sign(tmp_path: Path) -> None:
    """A mirror of a line: positions and steps have the other sign, in about half of the rollouts; ends change sides."""
    domain = LineDomain()
    rollouts = list(domain.collect(50, seed=0))
    write_store(tmp_path / "line", rollouts, domain=domain)
    same, sides = np.ones(1, np.float32), {"left": "right", "right": "left"}
    images = Symmetry(np.arange(1), same, {}), Symmetry(np.arange(1), -same, sides, observation_sign=-same)
    batches = TaskBatches(
        Selection.whole([RolloutStore(tmp_path / "line")]),
        GroundingTask.GENERATION,
        [[rollout.instruction] for rollout in rollouts],
        None,
        rollouts_per_batch=50,
        tokens_per_prompt=1,
        crop_probability=0.0,
        symmetries=images,
        seed=(0, 0),
    )
    batch = batches(0)
    recorded = {(r.instruction, *r.observations[:, 0].tolist(), *r.actions[:, 0].tolist()) for r in rollouts}
    mirrored = {(images[1].text(text), *(-value for value in values)) for text, *values in recorded}
    shown, first = [], 0
    for length, prompt, final in zip(batch.lengths, batch.prompt_of_rollout, batch.final_observation, strict=True):
        steps = slice(first, first := first + int(length))
        positions = [*batch.observation[steps, 0].tolist(), final.item()]
        shown.append((batch.prompts[prompt], *positions, *batch.action[steps, 0].tolist()))
    assert len(shown) == 50
    assert set(shown) <= recorded | mirrored
    assert 10 < sum(entry in mirrored for entry in shown) < 40


@pytest.mark.parametrize("options", [{"symmetry": SymmetryKind.mirror}])
def test_mirrors_that_a_domain_lacks_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    """The chain has names to exchange and no mirror images."""
    with pytest.raises(DataError, match="mirror"):
        chain_grounding_data(tmp_path, **options)


def test_explanations_under_symmetries_have_answers_under_them(tmp_path: Path) -> None:
    """The end that an answer names is where its rollout ends."""
    batch = chain_grounding_data(tmp_path, symmetry=SymmetryKind.names, tasks__generation=0, tasks__dynamics=0).batch(0)
    for answer, final, terminated in zip(batch.answers, batch.final_observation, batch.is_terminated, strict=True):
        assert terminated
        assert ("left" in answer) == (int(final.argmax()) == 0)


def test_rollouts_with_the_same_prompt_share_it_up_to_the_limit(tmp_path: Path) -> None:
    """No group has more tokens than allowed unless it is one long rollout; prompts repeat no more than needed."""
    batches, rollouts = task_batches(tmp_path)
    num_groups = 0
    for index in range(6):
        batch = batches(index)
        tokens = torch.zeros(len(batch.prompts)).index_add(0, batch.prompt_of_rollout, 2.0 * batch.lengths + 1)
        sizes = torch.bincount(batch.prompt_of_rollout)
        assert ((tokens <= 24) | (sizes == 1)).all()
        assert (batch.prompt_of_rollout.diff() >= 0).all()
        num_groups += len(batch.prompts)
    total = sum(2 * len(rollout) + 1 for rollout in rollouts)
    assert total / 24 <= num_groups < 50


def test_explanation_is_asked_for_in_every_wording_but_that_of_the_evaluation(tmp_path: Path) -> None:
    """Over an epoch all of them come up; a rollout is asked about in another wording the next time."""
    data = chain_grounding_data(tmp_path, tasks__generation=0, tasks__dynamics=0, tasks__explanation=1000)
    first, second = (dict(zip(rollouts_of(batch), batch.answers, strict=True)) for batch in map(data.batch, range(2)))
    assert {prompt for prompt, *_ in first} == set(EXPLANATIONS)
    assert first.keys() != second.keys()
    assert UNSEEN_EXPLANATION not in EXPLANATIONS
    one = chain_grounding_data(tmp_path, tasks__generation=0, tasks__dynamics=0, tasks__num_explanation_prompts=1)
    assert set(one.batch(0).prompts) == {EXPLANATIONS[0]}
    with pytest.raises(DataError, match="num_explanation_prompts is 9; there are 8"):
        chain_grounding_data(tmp_path, tasks__num_explanation_prompts=9)


def test_tasks_come_together_with_their_prompts_and_answers(tmp_path: Path) -> None:
    """Each task's rollouts follow its prompt; only explanations have answers, one sentence a goal."""
    batch = chain_grounding_data(tmp_path).batch(3)
    prompts = [batch.prompts[index] for index in batch.prompt_of_rollout.tolist()]
    by_task: dict[int, set[str]] = {int(task): set() for task in GroundingTask}
    for task, prompt, answer in zip(batch.task.tolist(), prompts, batch.answers, strict=True):
        by_task[task].add(prompt)
        assert bool(answer) == (task == GroundingTask.EXPLANATION)
    assert by_task[GroundingTask.DYNAMICS] == {DYNAMICS}
    assert by_task[GroundingTask.EXPLANATION] <= set(EXPLANATIONS)
    assert all(prompt.startswith(GENERATION.partition("<")[0]) for prompt in by_task[GroundingTask.GENERATION])
    assert set(batch.answers) <= {
        "",
        "go to the left end",
        "reach the right end",
        "go to the right end",
        "reach the left end",
    }
    assert len(set(batch.answers) - {""}) == 2


def test_joined_batches_keep_every_rollout_behind_its_prompt() -> None:
    """Prompt numbers are shifted; nothing else changes."""
    rollouts = real_rollouts(5)
    parts = [
        batch_rollouts(rollouts[:2], ["a", "b"], GroundingTask.GENERATION),
        batch_rollouts(rollouts[2:], ["c", "d", "e"], GroundingTask.DYNAMICS),
    ]
    joined = join_batches(parts)
    assert [entry for part in parts for entry in rollouts_of(part)] == rollouts_of(joined)
    assert joined.task.tolist() == [0, 0, 1, 1, 1]


def test_held_out_rollouts_are_never_trained_on(tmp_path: Path) -> None:
    """Statistics and batches come from the others; only rollouts that pass the filter are used."""
    data = chain_grounding_data(tmp_path, num_rollouts=100, num_held_out=30)
    store = data.store
    used = [store.rollout(row) for row in range(100) if store.is_success[row]]
    held_out = [rollout for batch in data.val_dataloader()[0] for rollout in batch.rollouts]
    assert [r.actions.tolist() for r in held_out] == [r.actions.tolist() for r in used[-30:]]
    observations = np.concatenate([r.observations[:-1] for r in used[:-30]])
    changes = np.concatenate([np.diff(r.observations, axis=0) for r in used[:-30]])
    np.testing.assert_allclose(data.observation_mean, observations.mean(0), atol=1e-6)
    np.testing.assert_allclose(data.observation_std, observations.std(0), atol=1e-6)
    np.testing.assert_allclose(data.change_std, changes.std(0), atol=1e-6)
    outcomes = np.concatenate([r.observations[1:] for r in used[:-30]])
    np.testing.assert_array_equal(data.outcome_range, [outcomes.min(0), outcomes.max(0)])


def write_imagined(folder: Path, **options: Any) -> ImaginedRollouts:
    """Two stores of imagined rollouts for goals that the real ones do not have; many miss theirs, many jump."""
    splits = ("easy", "hard")
    for split in splits:
        write_store(folder / split, imagined_rollouts(40, split))
    return ImaginedRollouts([str(folder / split) for split in splits], **options)


def test_verified_imagined_rollouts_join_generation_alone(tmp_path: Path) -> None:
    """Of 16 rollouts of generation 8 are imagined, all of them sound; the other tasks show real ones only."""
    real = chain_grounding_data(tmp_path, tokens_per_prompt=1)
    data = chain_grounding_data(tmp_path, tokens_per_prompt=1, imagined=write_imagined(tmp_path))
    for index in range(4):
        batch = data.batch(index)
        prompts = [batch.prompts[prompt] for prompt in batch.prompt_of_rollout.tolist()]
        is_imagined = np.array([any(word in prompt for word in ("middle", "centre")) for prompt in prompts])
        generates = batch.task.numpy() == GroundingTask.GENERATION
        assert generates.sum() == pytest.approx(16, abs=2)
        assert is_imagined.sum() == pytest.approx(8, abs=1)
        assert not is_imagined[~generates].any()
        assert batch.is_terminated.numpy()[is_imagined].all()
    walks = [entry for index in range(4) for entry in rollouts_of(data.batch(index)) if "come back" in entry[0]]
    for _, cells, actions in walks:  # no jump: the filter is both
        assert step(np.array(cells), np.array(actions)).tolist() == [*cells[1:], 2]
    assert walks
    assert torch.equal(data.observation_mean, real.observation_mean)
    assert data.answers == real.answers
    assert data.fingerprint != real.fingerprint == real.store.fingerprint


def test_imagined_rollouts_under_symmetries_stay_true(tmp_path: Path) -> None:
    """Seen in the mirror, an imagined walk to the left middle is one to the right middle, and its sentence says so."""
    data = chain_grounding_data(tmp_path, symmetry=SymmetryKind.names, imagined=write_imagined(tmp_path, fraction=1.0))
    ends = set()
    for index in range(6):
        batch = data.batch(index)
        prompts = [batch.prompts[prompt] for prompt in batch.prompt_of_rollout.tolist()]
        for prompt, task, final in zip(prompts, batch.task, batch.final_observation, strict=True):
            if task == GroundingTask.GENERATION:
                cell = "left middle", "centre", "right middle"
                assert cell[int(final.argmax()) - 1] in prompt
                ends.add(int(final.argmax()))
    assert ends == {1, 2, 3}


def test_the_seed_decides_the_order_of_imagined_rollouts_too(tmp_path: Path) -> None:
    """Generation alone, of imagined rollouts alone."""
    options = {"imagined": write_imagined(tmp_path, fraction=1.0), "tasks": GroundingTasks(8, 0, 0)}
    one, other = (chain_grounding_data(tmp_path, seed=seed, **options) for seed in (0, 1))
    assert rollouts_of(one.batch(0)) != rollouts_of(other.batch(0))


def test_imagined_stores_without_a_sound_rollout_are_refused(tmp_path: Path) -> None:
    """Before training; the message names the filter."""
    missed = [rollout for rollout in imagined_rollouts(40, "hard") if not rollout.is_success]
    write_store(tmp_path / "missed", missed)
    data = chain_grounding_data(tmp_path, imagined=ImaginedRollouts([str(tmp_path / "missed")]))
    refusal = r"no imagined rollout passes filter: both by the label domain_rule; .*, by the rule:\s+.*missed"
    with pytest.raises(DataError, match=refusal):
        data.setup("fit")


def test_going_on_with_other_imagined_rollouts_is_refused(tmp_path: Path) -> None:
    """Resuming names what changed; evaluation does not mind."""
    before, after = chain_grounding_data(tmp_path), chain_grounding_data(tmp_path, imagined=write_imagined(tmp_path))
    after.load_state_dict(before.state_dict())
    after.trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), world_size=1)  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match="imagined.fraction: None -> 0.5"):
        after.load_state_dict(before.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"imagined": ImaginedRollouts(["somewhere"], fraction=0.01)}, "makes 0 imagined ones; it must make 1 to 16"),
        ({"imagined": ImaginedRollouts(["somewhere"], num_least=-1)}, "num_least is -1; it must be 0 or more"),
        ({"tasks": GroundingTasks(0, 0, 0)}, "one task must be left"),
        ({"tokens_per_prompt": 0}, "tokens_per_prompt is 0; it must be 1 or more"),
        ({"crop_probability": 1.5}, "crop_probability is 1.5; it is a share"),
        ({"goal_splits": ["esay"]}, "the splits are train, rephrase, easy, hard"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    """Before any data is read."""
    with pytest.raises(DataError, match=message):
        chain_grounding_data(tmp_path, **options)


def test_too_few_rollouts_are_refused(tmp_path: Path) -> None:
    """The message has the numbers."""
    data = chain_grounding_data(tmp_path, num_rollouts=20, num_held_out=40)
    with pytest.raises(DataError, match=r"rollouts of .* pass filter: success; with num_held_out 40 none is left"):
        data.setup("fit")


def test_work_items_cover_instructions_evenly_from_starts_that_need_work() -> None:
    """Six instructions: 14 items take each twice and two of them, evenly spaced, once more; goals are not met yet."""
    goals = DOMAIN.instructed_goals("train")
    items = make_work_items(DOMAIN, goals, 14, one_hot_starts([0, 1, 2, 3, 4]), (0, 1))
    counts = Counter(item.instructed.instruction for item in items)
    assert [counts[goal.instruction] for goal in goals] == [3, 2, 2, 3, 2, 2]
    assert not any(item.instructed.goal.success(item.start) for item in items)
    assert {item.max_steps for item in items} == {12}
    assert len({item.seed for item in items}) == 14
    again = make_work_items(DOMAIN, goals, 3, one_hot_starts([0, 1, 2, 3, 4]), (0, 1))
    assert [item.instructed.instruction for item in again] == [goals[place].instruction for place in (0, 2, 4)]


def test_a_goal_that_every_start_has_met_is_refused() -> None:
    """The instruction is named."""
    goals = DOMAIN.instructed_goals("hard")
    with pytest.raises(DataError, match="'come back to the centre' is already met"):
        make_work_items(DOMAIN, goals, 1, one_hot_starts([2]), (0,))


def test_moments_in_pieces_equal_those_of_the_whole() -> None:
    """Large offsets lose nothing; a number that never changes has deviation 1."""
    values = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([1e4, 0.0, 0.0])
    values[:, 2] = 5.0
    moments = Moments()
    for piece in values.split(7):
        moments.add(piece)
    exact = values.double()
    torch.testing.assert_close(moments.mean, exact.mean(0).float())
    torch.testing.assert_close(moments.std[:2], exact[:, :2].std(0, correction=0).float(), rtol=1e-5, atol=1e-6)
    assert moments.std[2] == 1.0
    assert torch.equal(moments.least, values.amin(0))
    assert torch.equal(moments.greatest, values.amax(0))


def test_data_begin_again_where_the_trainer_stands(tmp_path: Path) -> None:
    """After 5 updates of two batches each the next batch is number 10."""

    class Trainer:
        global_step, accumulate_grad_batches = 5, 2
        global_rank, world_size = 0, 1

    data: GroundingData = chain_grounding_data(tmp_path)
    data.trainer = Trainer()  # type: ignore[assignment]
    assert_equal(next(iter(data.train_dataloader())), data.batch(10))


def test_a_domain_may_have_starts_of_its_own() -> None:
    """Where every goal has a scene of its own, imagination begins there, whatever the data's first observations are."""

    class OwnStarts(ChainDomain):
        def first_observation(self, goal: Goal, rng: np.random.Generator) -> np.ndarray:
            assert isinstance(goal, CellGoal)
            return one_hot_starts([4 - goal.cell])[0]

    goals = DOMAIN.instructed_goals("train")
    for item in make_work_items(OwnStarts(), goals, 6, one_hot_starts([2]), (0,)):
        assert isinstance(item.instructed.goal, CellGoal)
        assert item.start.argmax() == 4 - item.instructed.goal.cell
