"""Draws by seed, process, part and update alone, each independent of the others; and nothing held out among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from kalm.core import names
from kalm.core.errors import CheckpointError, DataError
from kalm.core.names import Source
from kalm.data.choice import RolloutFilter
from kalm.data.grounding_data import GroundingData, GroundingTasks
from kalm.data.minibatches import SYMMETRY_STREAM, Minibatches, Part, Updates
from kalm.data.policy_data import PolicyData
from kalm.data.return_conditioned_data import ReturnConditionedData
from kalm.data.rollout_data import RolloutData
from kalm.data.rollout_sources import ImaginedRollouts, RealRollouts
from kalm.data.selection import Selection
from kalm.data.symmetry import SymmetryKind, symmetries_of
from kalm.data.transition_data import TransitionData
from kalm.envs.symmetry import Symmetry
from kalm.store.reader import RolloutStore
from tests.chain_domain import ChainDomain
from tests.data.rollouts import DOMAIN, broken, real_rollouts, write_store
from tests.line_domain import LineDomain
from tests.llm.token_encoder import TokenEncoder

MAKERS: dict[str, Callable[[RealRollouts, int], Any]] = {
    "policy": lambda real, seed: PolicyData(DOMAIN, TokenEncoder(), real, seed=seed),
    "transition": lambda real, seed: TransitionData(DOMAIN, real, num_held_out=10, seed=seed),
    "return-conditioned": lambda real, seed: ReturnConditionedData(
        DOMAIN, TokenEncoder(), real, num_held_out=10, seed=seed
    ),
    **{
        task: lambda real, seed, task=task: GroundingData(
            DOMAIN,
            TokenEncoder(),
            real,
            tasks=replace(GroundingTasks(0, 0, 0), **{task: 8}),
            num_held_out=10,
            seed=seed,
        )
        for task in ("generation", "dynamics", "explanation")
    },
}
each_data = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> RealRollouts:
    """Sixty rollouts; observations of the last ten, and of no other, have sevens."""
    rollouts = real_rollouts(60)
    marked = [broken(rollout, observations=7 * rollout.observations) for rollout in rollouts[50:]]
    path = tmp_path_factory.mktemp("marked") / "real"
    write_store(path, [*rollouts[:50], *marked])
    return RealRollouts(str(path))


def observation(batch: Any) -> torch.Tensor:
    """Observations of a batch of any kind."""
    return batch.observation if hasattr(batch, "prompts") else batch[names.OBSERVATION]


def test_random_words_depend_on_seed_stream_and_update() -> None:
    """Change one of them and no word stays; ask for more updates and those that were there stay."""
    words = Updates(seed=3, first=5, number=2).words(stream=1, num_words=6)
    assert words.shape == (2, 6)
    others = [
        Updates(4, 5, 2).words(1, 6),
        Updates(3, 7, 2).words(1, 6),
        Updates(3, 5, 2).words(2, 6),
        Updates(3, 5, 2).words(SYMMETRY_STREAM, 6),
    ]
    everything = np.concatenate([words.ravel(), *(other.ravel() for other in others)])
    assert len(np.unique(everything)) == 12 * 5
    assert (Updates(3, 4, 4).words(1, 6)[1:3] == words).all()
    numbers = Updates(3, 5, 2).numbers(1, 6)
    assert (numbers >= 0).all()
    assert len(numbers.unique()) == 12


@pytest.mark.parametrize("sequence_length", [1, 3])
def test_parts_draw_independently_of_each_other(real: RealRollouts, sequence_length: int) -> None:
    """Two parts of the same rollouts agree in a row no more often than by chance; so do seeds and updates."""
    selection = real.choose(DOMAIN, Selection.whole([RolloutStore(real.path)]))
    minibatches = Minibatches([Part(selection, 40), Part(selection, 40)], sequence_length)
    base = Updates(seed=0, first=0, number=50)
    rows = first_steps(minibatches, base)
    pairs = [(rows[:, :40], rows[:, 40:])]
    for other in (replace(base, seed=1), replace(base, first=50)):
        pairs.append((rows, first_steps(minibatches, other)))
    pairs.append((rows[1:], rows[:-1]))
    for left, right in pairs:
        assert (left == right).double().mean() < 0.05
    assert torch.equal(first_steps(minibatches, replace(base, first=20, number=10)), rows[20:30])
    assert len(rows.unique()) > 0.9 * len(selection.rows()) / sequence_length


def first_steps(minibatches: Minibatches, updates: Updates) -> torch.Tensor:
    """The first step of each row, (K, B)."""
    rows, is_step = minibatches.draw(updates)
    return rows if is_step is None else rows[..., 0]


@each_data
def test_batches_depend_on_the_seed_and_the_index(real: RealRollouts, make: Any) -> None:
    """And on nothing else: another object gives the same."""
    first, same, other = make(real, 0), make(real, 0), make(real, 1)
    assert torch.equal(observation(first.batch(2)), observation(same.batch(2)))
    for different in (other.batch(2), first.batch(3)):
        left, right = observation(first.batch(2)), observation(different)
        assert left.shape != right.shape or not torch.equal(left, right)


@each_data
def test_what_is_held_out_is_in_no_batch(real: RealRollouts, make: Any) -> None:
    """Nor in any statistic; a policy, which holds nothing out, sees all."""
    data: RolloutData = make(real, 0)
    greatest = max(observation(data.batch(index)).max().item() for index in range(40))  # type: ignore[attr-defined]
    expected = 7.0 if isinstance(data, PolicyData) else 1.0
    assert greatest == data.moments[0].greatest.max() == data.moments[2].greatest.max() == expected
    held_out = [data.held_out_rollouts.rollout(place) for place in range(len(data.held_out_rollouts))]
    assert [rollout.observations.max() for rollout in held_out] == ([] if expected == 7 else [7.0] * 10)


def test_tasks_show_a_rollout_under_symmetries_of_their_own(tmp_path: Path) -> None:
    """How one task shows a rollout says nothing about how another does: sixty rollouts, told apart by their size."""
    rollouts = real_rollouts(60)
    sized = [broken(r, observations=(place + 1) * r.observations) for place, r in enumerate(rollouts)]
    write_store(tmp_path / "sized", sized)
    sources = DOMAIN, TokenEncoder(), RealRollouts(str(tmp_path / "sized"))
    shown = {}
    for task in ("dynamics", "explanation"):
        tasks = replace(GroundingTasks(0, 0, 0), **{task: 1000})
        data = GroundingData(
            *sources, tasks=tasks, symmetry=SymmetryKind.names, tokens_per_prompt=10**6, num_held_out=1
        )
        batch = data.batch(0)
        sizes = [int(observation.max()) - 1 for observation in batch.final_observation]
        ends = [observation.argmax() for observation in batch.final_observation]
        shown[task] = dict(zip(sizes, ends, strict=True))
    assert len(shown["dynamics"]) == len(shown["explanation"]) == 59
    turned = [place for place, r in enumerate(rollouts[:59]) if r.observations[-1].argmax() != 2]
    agreement = np.mean([shown["dynamics"][place] == shown["explanation"][place] for place in turned])
    assert 0.25 < agreement < 0.75


def attached(data: PolicyData, rank: int = 0, world_size: int = 1) -> PolicyData:
    """As one process of a distributed training."""
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), global_rank=rank, world_size=world_size)  # type: ignore[assignment]
    return data


def test_devices_draw_rows_of_their_own(real: RealRollouts) -> None:
    """So two devices learn from twice the rows; another number of devices is refused on resume."""
    one, other = (attached(PolicyData(DOMAIN, TokenEncoder(), real), rank, 2) for rank in range(2))
    same = one.batch_of_device(0)[names.ROLLOUT_ID] == other.batch_of_device(0)[names.ROLLOUT_ID]
    assert same.double().mean() < 0.1
    assert (other.batch_of_device(0) == PolicyData(DOMAIN, TokenEncoder(), real).batch(1)).all()
    with pytest.raises(CheckpointError, match="num_devices: 2 -> 1"):
        attached(PolicyData(DOMAIN, TokenEncoder(), real)).load_state_dict(one.state_dict())


def test_the_order_of_calls_does_not_matter(real: RealRollouts) -> None:
    """Whoever draws from the buffer, or asks for another seed's rows, changes no batch."""
    data = PolicyData(DOMAIN, TokenEncoder(), real, symmetry=SymmetryKind.names)
    before = data.batch(3)
    _ = data.buffer.sample(20), data.buffer[0].sample(7), data.batch(9)
    assert (data.batch(3) == before).all()


def test_symmetries_are_drawn_apart_from_rows(real: RealRollouts) -> None:
    """Whether a row is mirrored says nothing about which row it is, nor about the update before."""
    plain, shown = (
        PolicyData(DOMAIN, TokenEncoder(), real, batch_size=400, symmetry=kind)
        for kind in (SymmetryKind.none, SymmetryKind.names)
    )
    recorded, turned = plain.batch(0), shown.batch(0)
    is_mirrored = (recorded[names.ACTION] != turned[names.ACTION]).double()
    assert (is_mirrored[1:] == is_mirrored[:-1]).double().mean() == pytest.approx(0.5, abs=0.05)
    rollout = recorded[names.ROLLOUT_ID].double()
    correlation = np.corrcoef(is_mirrored.flatten(), rollout.flatten() % 2)[0, 1]
    assert abs(correlation) < 0.05


class TwoKinds(ChainDomain):
    """Has other mirror images than exchanges of names."""

    mirror_images = ChainDomain().symmetries[::-1]


def test_each_kind_of_symmetry_is_the_domains(real: RealRollouts) -> None:
    """Names, mirror images, stand-ins, or none; what a domain lacks is refused."""
    domain = TwoKinds()
    assert symmetries_of(domain, SymmetryKind.none) == ()
    exchanged, mirrored = (symmetries_of(domain, kind) for kind in (SymmetryKind.names, SymmetryKind.mirror))
    assert [bool(symmetry.word_of) for symmetry in exchanged] == [False, True]
    assert [bool(symmetry.word_of) for symmetry in mirrored] == [True, False]
    with pytest.raises(DataError, match="symmetry is mirror, but the domain chain has none"):
        symmetries_of(DOMAIN, SymmetryKind.mirror)
    assert symmetries_of(WithStandIn(), SymmetryKind.stand_ins) == WithStandIn.stand_ins
    with pytest.raises(DataError, match="symmetry is stand_ins, but the domain chain has none"):
        symmetries_of(DOMAIN, SymmetryKind.stand_ins)


class WithStandIn(LineDomain):
    """The line, with room for another walker that is never there, and that may be shown, mirrored, for the first."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    stand_ins = (
        Symmetry(np.arange(2), np.ones(1, np.float32), {}),
        Symmetry(np.array([1, 0]), np.ones(1, np.float32), {"go": "roll"}, np.array([1, -1], np.float32)),
    )


def test_what_stands_in_for_another_has_its_statistics(tmp_path: Path) -> None:
    """The walker begins steps at -1/2 and 0: mean -1/4, deviation 1/4; it moves by 1/2 and 1/4: deviation 1/8.

    So the one that is shown for it, mirrored, has a mean of 1/4 and the same deviations, though it was never there.
    """
    instructed = LineDomain().instructed_goals("train")[0]
    positions = np.array([[-0.5, 0.0], [0.0, 0.0], [0.25, 0.0]], np.float32)
    actions = np.ones((2, 1), np.float32)
    walk = LineDomain().label_rollout(instructed, positions, actions, Source.REAL)
    write_store(tmp_path / "walk", [walk, walk], domain=WithStandIn())
    sources = WithStandIn(), TokenEncoder(), RealRollouts(str(tmp_path / "walk"))
    plain, shown = (
        GroundingData(*sources, symmetry=kind, num_held_out=1) for kind in (SymmetryKind.none, SymmetryKind.stand_ins)
    )
    assert plain.observation_mean.tolist() == [-0.25, 0.0]
    assert plain.observation_std.tolist() == [0.25, 1.0]
    assert plain.change_std.tolist() == [0.125, 0.0]
    assert shown.observation_mean.tolist() == [-0.25, 0.25]
    assert shown.observation_std.tolist() == [0.25, 0.25]
    assert shown.change_std.tolist() == [0.125, 0.125]


def test_a_policy_is_shown_stand_ins_under_sentences_of_their_own(tmp_path: Path) -> None:
    """Who goes to an end, in the first number, is now and then somebody who rolls there, in the second, mirrored."""
    recorded = next(row for row in LineDomain().instructed_goals("train") if row.instruction == "go to the left end")
    positions, actions = np.array([[0.5, 0.0], [0.25, 0.0], [-1.0, 0.0]], np.float32), -np.ones((2, 1), np.float32)
    walk = LineDomain().label_rollout(recorded, positions, actions, Source.REAL)
    real = RealRollouts(str(write_store(tmp_path / "walk", [walk], domain=WithStandIn()).path))
    data = PolicyData(WithStandIn(), TokenEncoder(), real, symmetry=SymmetryKind.stand_ins, batch_size=50)
    assert data.instructions == ["go to the left end", "roll to the left end"]
    assert data.goal_embeddings.shape[0] == 2
    batch = data.batch(0).flatten()
    shown = zip(batch[names.INSTRUCTION_ID].tolist(), batch[names.OBSERVATION].tolist(), strict=True)
    assert {(number, *seen) for number, seen in shown} == {(0, 0.5, 0), (0, 0.25, 0), (1, 0, -0.5), (1, 0, -0.25)}


def test_stand_ins_and_paraphrases_are_refused_together() -> None:
    """Nobody has other words for what a stand-in does."""
    with pytest.raises(DataError, match="paraphrase is true and symmetry is stand_ins"):
        PolicyData(
            WithStandIn(), TokenEncoder(), RealRollouts("nowhere"), symmetry=SymmetryKind.stand_ins, paraphrase=True
        )


def test_what_only_imagination_has_has_the_statistics_of_all(tmp_path: Path) -> None:
    """Real steps begin at (-1/2, 0) and (0, 0), imagined ones at (1, 0) and (1, 1).

    The first number has the real mean, -1/4, and deviation, 1/4; the second, of which real steps know only 0, those of
    0, 0, 0 and 1: mean 1/4, deviation the root of 3 / 16.
    """
    instructed = LineDomain().instructed_goals("train")[0]
    walks = {
        "real": ([[-0.5, 0.0], [0.0, 0.0], [0.25, 0.0]], Source.REAL, {}),
        "made": ([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]], Source.IMAGINARY, {"seed": 0}),
    }
    for name, (positions, source, facts) in walks.items():
        walk = LineDomain().label_rollout(
            instructed, np.array(positions, np.float32), np.ones((2, 1), np.float32), source, facts, ends_when_met=False
        )
        write_store(tmp_path / name, [walk], domain=WithStandIn())
    imagined = ImaginedRollouts([str(tmp_path / "made")], RolloutFilter.none)
    data = PolicyData(WithStandIn(), TokenEncoder(), RealRollouts(str(tmp_path / "real")), imagined)
    torch.testing.assert_close(data.observation_mean, torch.tensor([-0.25, 0.25]))
    torch.testing.assert_close(data.observation_std, torch.tensor([0.25, 3**0.5 / 4]))


def test_the_range_of_outcomes_is_that_of_rollouts_as_shown(tmp_path: Path) -> None:
    """Of steps to the right end alone; seen in the mirror they lead to the left one too."""
    to_the_right = [r for r in real_rollouts(200) if r.is_success and r.actions.all()]
    write_store(tmp_path / "right", to_the_right)
    sources = DOMAIN, TokenEncoder(), RealRollouts(str(tmp_path / "right"), RolloutFilter.success)
    plain, shown = (
        GroundingData(*sources, symmetry=k, num_held_out=1) for k in (SymmetryKind.none, SymmetryKind.names)
    )
    greatest = plain.outcome_range[1]
    assert greatest[-1] == 1
    assert greatest[0] == 0
    assert torch.equal(shown.outcome_range[1], torch.maximum(greatest, greatest.flip(0)))
