"""Windows of rollouts: what is drawn, how often, what is padding, and which return belongs to a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchrl.data import ReplayBuffer, TensorStorage

from kalm.core import names
from kalm.core.names import Source
from kalm.data.choice import RolloutFilter
from kalm.data.minibatches import Updates, WindowSampler
from kalm.data.policy_data import PolicyData
from kalm.data.rollout_sources import ImaginedRollouts, RealRollouts
from tests.data.rollouts import DOMAIN, arguments, imagined_rollouts, real_rollouts, splits_of, write_store
from tests.word_encoder import WordEncoder

NUM_STEPS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One real and two imagined stores; real rollouts are of 1 to 12 steps, imagined ones of 6 at most."""
    root = tmp_path_factory.mktemp("stores")
    write_store(root / "real", real_rollouts(60))
    for split in ("rephrase", "easy"):
        write_store(root / split, imagined_rollouts(40, split))
    return root


def make_data(folder: Path, **options: Any) -> PolicyData:
    """Windows of five steps, ten an update."""
    paths = [str(folder / "rephrase"), str(folder / "easy")]
    defaults = {
        "real": RealRollouts(str(folder / "real")),
        "imagined": ImaginedRollouts(paths, RolloutFilter.none),
        "batch_size": 10,
        "updates_per_step": 4,
        "sequence_length": NUM_STEPS,
    }
    return PolicyData(DOMAIN, WordEncoder(), **arguments(defaults, **options))


def draw(lengths: list[int], num_steps: int, num_windows: int, update: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of rollouts of such lengths: the places of their steps, and which of these are real."""
    generator = torch.Generator()
    sampler = WindowSampler(0, torch.tensor(lengths), num_steps, generator)
    sampler.updates = Updates(first=update)
    buffer = ReplayBuffer(storage=TensorStorage(torch.arange(sum(lengths))), sampler=sampler, generator=generator)
    places, info = buffer.sample(num_windows * num_steps, return_info=True)
    return places, info["collector", "mask"]


def test_windows_of_known_rollouts() -> None:
    """Lengths 2, 3 and 5, windows of 3: the first is padded with its last step, the last has windows at 5, 6, 7."""
    position, is_step = draw([2, 3, 5], 3, 600, update=1)
    drawn = list(zip(position.view(-1, 3).tolist(), is_step.view(-1, 3).tolist(), strict=True))
    whole = [True, True, True]
    expected = {
        (0, 1, 1): [True, True, False],
        (2, 3, 4): whole,
        (5, 6, 7): whole,
        (6, 7, 8): whole,
        (7, 8, 9): whole,
    }
    assert {tuple(steps) for steps, _ in drawn} == set(expected)
    assert all(expected[tuple(steps)] == real for steps, real in drawn)
    shares = [sum(steps[0] in starts for steps, _ in drawn) / 600 for starts in ((0,), (2,), (5, 6, 7))]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.08)  # four standard deviations


def test_windows_without_padding_are_all_real() -> None:
    """TorchRL says nothing of padding where there is none."""
    _, is_step = draw([4, 3], 3, 5, update=0)
    assert is_step.dtype == torch.bool
    assert is_step.tolist() == [True] * 15


def test_the_update_decides_the_windows() -> None:
    """Whatever was drawn before, and without touching torch's own generator."""
    state = torch.get_rng_state()
    one, other = (draw([20, 30], 4, 8, update)[0] for update in (5, 6))
    assert torch.equal(draw([20, 30], 4, 8, update=5)[0], one)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_window_is_a_piece_of_one_rollout_with_its_own_padding(folder: Path) -> None:
    """Steps count up by one; a rollout of n < 5 steps comes whole, with 5 - n steps of padding at the end."""
    data = make_data(folder)
    lengths = torch.cat([store.rollouts["length"] for store in data.stores])
    batch = torch.cat([data.batch(index) for index in range(5)]).flatten(0, 1)
    assert batch.batch_size == (200, NUM_STEPS)
    for window in batch:
        length = int(lengths[window[names.ROLLOUT_ID][0]])
        num_real = min(length, NUM_STEPS)
        assert window[names.PADDING_MASK].tolist() == [True] * num_real + [False] * (NUM_STEPS - num_real)
        first = int(window[names.STEP][0])
        assert first <= max(0, length - NUM_STEPS)
        assert window[names.STEP][:num_real].tolist() == list(range(first, first + num_real))
        assert (window[names.ROLLOUT_ID] == window[names.ROLLOUT_ID][0]).all()
        arrives = window[names.OBSERVATION][1:num_real]
        assert torch.equal(arrives, window["next", "observation"][: num_real - 1])


def test_padding_holds_neither_transitions_nor_ends(folder: Path) -> None:
    """Of rollouts that fit a window, the real steps are all transitions and hold every ``terminated``."""
    short = [rollout for rollout in real_rollouts(60) if len(rollout.actions) <= NUM_STEPS]
    write_store(folder / "short", short)
    data = PolicyData(
        DOMAIN, WordEncoder(), RealRollouts(str(folder / "short")), sequence_length=NUM_STEPS, batch_size=50
    )
    batch = data.batch(0).flatten(0, 1)
    is_step, rollout = batch[names.PADDING_MASK], batch[names.ROLLOUT_ID][:, 0]
    assert set(rollout.tolist()) == set(range(len(short)))
    assert is_step.sum(1).tolist() == [len(short[row].actions) for row in rollout.tolist()]
    assert (batch[names.TERMINATED] & is_step).sum(1).tolist() == [
        int(short[row].terminated.sum()) for row in rollout.tolist()
    ]


def test_the_mixture_is_one_of_windows(folder: Path) -> None:
    """Three tenths of ten windows are imagined, in every update, from both stores."""
    data = make_data(folder, imagined__fraction=0.3)
    splits = set()
    for index in range(20):
        batch = data.batch(index)
        is_imagined = batch[names.SOURCE] == Source.IMAGINARY
        assert is_imagined.all(2).sum(1).tolist() == [3] * 4
        assert not is_imagined[:, :7].any()
        splits |= set(splits_of(data, batch)[:, 7:].ravel().tolist())
    assert splits == {"rephrase", "easy"}


def test_an_update_gets_the_same_windows_for_every_number_of_updates_per_step(folder: Path) -> None:
    """Twelve updates as 12 x 1, 3 x 4 and 1 x 12: Equal. So resuming is exact wherever a step ends."""
    by_k = {k: make_data(folder, updates_per_step=k) for k in (1, 4, 12)}
    updates = {k: torch.cat([data.batch(i) for i in range(12 // k)]) for k, data in by_k.items()}
    for key in updates[1].keys(True, True):
        assert torch.equal(updates[1][key], updates[4][key])
        assert torch.equal(updates[1][key], updates[12][key])
    assert not torch.equal(updates[1][names.STEP], make_data(folder, seed=1, updates_per_step=12).batch(0)[names.STEP])


def test_the_return_to_go_is_the_sum_of_what_is_still_earned(folder: Path) -> None:
    """Of every step of every rollout of every store, against plain addition."""
    data = make_data(folder)
    rollouts = [store.rollout(index) for store in data.stores for index in range(store.num_rollouts)]
    expected = {
        (number, step): rollout.rewards[step:].sum()
        for number, rollout in enumerate(rollouts)
        for step in range(len(rollout.rewards))
    }
    assert len(set(expected.values())) > 1
    for index in range(5):
        for row in data.batch(index).flatten():
            place = int(row[names.ROLLOUT_ID]), int(row[names.STEP])
            assert row[names.RETURN_TO_GO].item() == pytest.approx(expected[place], abs=1e-5)


def test_returns_to_go_do_not_run_into_the_next_rollout(folder: Path) -> None:
    """The last step's is its own reward."""
    used = make_data(folder).selection
    to_go, reward = used.read((names.RETURN_TO_GO, names.REWARD), used.starts + used.lengths - 1)
    assert torch.equal(to_go, reward)


def test_statistics_are_those_of_the_rollouts_in_use(folder: Path) -> None:
    """Twenty real rollouts: their returns; mean and deviation over their steps; the longest of both sources."""
    data = make_data(folder, real__max_rollouts=20, imagined__filter=RolloutFilter.success)
    statistics = data.rollout_statistics
    rollouts = real_rollouts(60)[:20]
    to_go = torch.cat([torch.from_numpy(r.rewards).flip(0).cumsum(0).flip(0) for r in rollouts])
    assert statistics.returns.tolist() == pytest.approx([r.rewards.sum() for r in rollouts], abs=1e-5)
    assert statistics.return_to_go_mean == pytest.approx(to_go.mean().item(), abs=1e-5)
    assert statistics.return_to_go_std == pytest.approx(to_go.std(unbiased=False).item(), abs=1e-5)
    imagined = [r for split in ("rephrase", "easy") for r in imagined_rollouts(40, split)]
    in_use = [len(r.actions) for r in rollouts] + [len(r.actions) for r in imagined if r.is_success]
    assert statistics.max_length == max(in_use)


def test_the_longest_rollout_may_be_an_imagined_one(folder: Path) -> None:
    """Real rollouts of two steps at most, imagined ones of six."""
    short = [rollout for rollout in real_rollouts(60) if len(rollout.actions) <= 2]
    write_store(folder / "shorter", short)
    statistics = make_data(folder, real=RealRollouts(str(folder / "shorter"))).rollout_statistics
    assert statistics.max_length == 6
    assert len(statistics.returns) == len(short)
