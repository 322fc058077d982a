"""The judge of imagined steps: what it marks, worked by hand; how its limit comes about; and its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kalm.callbacks.rollout_writer import RolloutWriter
from kalm.core import names
from kalm.core.errors import CheckpointError, DataError
from kalm.core.rollout import Rollout
from kalm.data.choice import RolloutFilter, rollout_verdicts
from kalm.data.rollout_sources import RealRollouts
from kalm.data.symmetry import SymmetryKind
from kalm.data.transition_data import TransitionData
from kalm.judging.dynamics_veto import OffLearnedDynamics, Unconfirmed
from kalm.judging.judge import Verdict
from kalm.rl.dynamics.dynamics_check import DynamicsCheck, load_dynamics_check
from kalm.runs.checkpoint_io import VerifiedCheckpointIO
from kalm.runs.folder import STORE
from kalm.store.reader import RolloutStore
from tests.callbacks.test_rollout_writer import Walker, goal_data
from tests.chain_domain import ChainDomain, one_hot, step
from tests.data.rollouts import real_rollouts, write_store
from tests.envs.test_simulation import walk
from tests.rl.helpers import trainer as predict_trainer

DOMAIN = ChainDomain()


class Worlds(nn.Module):
    """Members that know the chain, but for the last ones, in which every step leads to the left."""

    def __init__(self, num_members: int, num_wrong: int) -> None:
        """Say how many there are, and how many of them are wrong."""
        super().__init__()
        self.num_members, self.num_wrong = num_members, num_wrong

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Changes, shape (N, B, 5); ``action`` is one-hot."""
        cell, taken = observation.argmax(-1).numpy(), action.argmax(-1).numpy()
        true, wrong = (torch.from_numpy(one_hot(step(cell, way))) - observation for way in (taken, 0 * taken))
        return torch.stack([true] * (self.num_members - self.num_wrong) + [wrong] * self.num_wrong)

    def each(self, observation: Tensor, action: Tensor) -> Tensor:
        """Changes of shape (N, B, 5) in as many worlds, one a member."""
        worlds = zip(observation, action, strict=True)
        return torch.stack([self(*world)[member] for member, world in enumerate(worlds)])


def check_with(num_wrong: int) -> DynamicsCheck:
    """Three members; neutral statistics; a limit of a half."""
    check = DynamicsCheck(DOMAIN.spec)
    check.members = Worlds(3, num_wrong)  # type: ignore[assignment]
    check.error_limit = 0.5
    return check.eval()


def judged(check: DynamicsCheck, rollouts: list[Rollout], least_confirming: int) -> tuple[Verdict, Verdict]:
    """What the two vetoes that ask the model say: of steps, and of successes."""
    goals = [DOMAIN.goal_from_json(rollout.goal) for rollout in rollouts]
    judges = OffLearnedDynamics(check, {}), Unconfirmed(check, DOMAIN, least_confirming, {})
    steps, successes = (judge.judge(goals, rollouts) for judge in judges)
    return steps, successes


def transition(cell: int, action: int, next_cell: int) -> tuple[Tensor, Tensor, Tensor]:
    """One step as a batch of one."""
    before, after = (torch.from_numpy(one_hot(np.array([place]))) for place in (cell, next_cell))
    return before, torch.tensor([action]), after


def test_losses_and_errors_by_hand() -> None:
    """All members say cell 2 while the step led to cell 3: two of five numbers are off by 1.

    Each member's loss is 2/5, the error its root. With one member of three wrong (cell 0 for cell 2) and the step true,
    the loss is a third of 2/5; the mean is off by 1/3 in two numbers: the root of 2/9/5.
    """
    jump, true = transition(1, 1, 3), transition(1, 1, 2)
    assert check_with(0).losses(*jump).item() == pytest.approx(0.4)
    assert check_with(0).errors(*jump).item() == pytest.approx(0.4**0.5)
    assert check_with(1).losses(*true).item() == pytest.approx(0.4 / 3)
    assert check_with(1).errors(*true).item() == pytest.approx((2 / 9 / 5) ** 0.5)


@pytest.mark.parametrize(("num_wrong", "least", "expected"), [(0, 3, [0, 0]), (1, 2, [0, 0]), (2, 2, [1, 0])])
def test_a_success_needs_members_that_confirm_it(num_wrong: int, least: int, expected: list[int]) -> None:
    """Two steps to the right end; in a wrong world the walker never gets there. A miss claims nothing to confirm."""
    rollouts = [walk(4, [2, 3, 4], [1, 1]), walk(4, [1, 2], [1])]
    _, successes = judged(check_with(num_wrong), rollouts, least)
    assert check_with(num_wrong).num_confirming(DOMAIN, rollouts).tolist() == [3 - num_wrong, 0]
    assert successes.num_marked is not None
    assert successes.num_marked.tolist() == expected
    assert successes.met.tolist() == [not expected[0], False]
    assert successes.score.tolist() == [pytest.approx((3 - num_wrong) / 3), 0]
    assert successes.abstained.tolist() == [False, True]


def test_a_world_goes_no_further_than_real_steps_have_led() -> None:
    """No real step has led to the right end, so no member's world gets there; to the cell before it they do."""
    check = check_with(0)
    check.greatest_outcome[4] = 0.0
    rollouts = [walk(4, [2, 3, 4], [1, 1]), walk(3, [2, 3], [1])]
    assert check.num_confirming(DOMAIN, rollouts).tolist() == [0, 3]


def test_steps_beyond_the_limit_are_counted() -> None:
    """The second of three steps jumps; its error of 0.63 is above a half. The success owes itself to the jump."""
    steps, successes = judged(check_with(0), [walk(4, [0, 1, 3, 4], [1, 1, 1])], least_confirming=1)
    assert (steps.num_marked, successes.num_marked) == (np.array([1]), np.array([1]))
    assert not steps.met.any()
    assert steps.score.tolist() == [pytest.approx(2 / 3)]


def fit(folder: Path, num_updates: int, path: Path | None = None, **options: Any) -> Path:
    """Train on the chain; the checkpoint."""
    if not (folder / "real").exists():
        write_store(folder / "real", real_rollouts(200))
    lightning.seed_everything(0, verbose=False)
    data = TransitionData(
        DOMAIN, RealRollouts(str(folder / "real")), batch_size=32, symmetry=SymmetryKind.names, num_held_out=40
    )
    check = DynamicsCheck(data.spec, hidden_sizes=(32,), learning_rate=1e-2, schedule_updates=300, **options)
    run = predict_trainer(folder, num_updates, plugins=[VerifiedCheckpointIO()])
    run.fit(check, datamodule=data, ckpt_path=path)
    saved = folder / f"{num_updates}-{path is None}.ckpt"
    run.save_checkpoint(saved)
    return saved


def test_what_was_learned_tells_true_steps_from_jumps(tmp_path: Path) -> None:
    """After 300 updates no real step is marked but for the share allowed; every jump over a cell is."""
    check = load_dynamics_check(fit(tmp_path, 300, false_alarm_rate=0.01), DOMAIN)
    assert 0 < check.error_limit < 0.3
    rollouts = [*real_rollouts(50, seed=9), walk(2, [0, 2], [1])]
    steps, successes = judged(check, rollouts, least_confirming=2)
    assert steps.num_marked is not None
    assert successes.num_marked is not None
    *real, jumped = steps.num_marked.tolist()
    assert sum(real) <= 0.05 * sum(map(len, rollouts))
    assert jumped == 1
    assert successes.num_marked.tolist() == [0] * 50 + [1]


def test_the_limit_is_that_of_held_out_rollouts(tmp_path: Path) -> None:
    """A tenth of the last 40 rollouts' steps err as much or more; many steps of the chain are alike, and err alike."""
    check = load_dynamics_check(fit(tmp_path, 20, false_alarm_rate=0.1), DOMAIN)
    held_out = TransitionData(DOMAIN, RealRollouts(str(tmp_path / "real")), num_held_out=40).held_out
    errors = check.errors(*(held_out[key] for key in (names.OBSERVATION, names.ACTION, names.NEXT_OBSERVATION)))
    assert len(errors) == sum(len(rollout) for rollout in real_rollouts(200)[-40:])
    assert (
        (errors > check.error_limit + 1e-5).float().mean() <= 0.1 <= (errors > check.error_limit - 1e-5).float().mean()
    )


def test_resumed_training_equals_uninterrupted(tmp_path: Path) -> None:
    """20 updates against 12 and 8, weights and limit."""
    whole = VerifiedCheckpointIO().load_checkpoint(fit(tmp_path, 20))
    resumed = VerifiedCheckpointIO().load_checkpoint(fit(tmp_path, 20, fit(tmp_path, 12)))
    assert all(torch.equal(value, resumed["state_dict"][name]) for name, value in whole["state_dict"].items())
    assert whole["kalm_dynamics_check"] == resumed["kalm_dynamics_check"]


def test_verdicts_join_those_of_the_store(tmp_path: Path) -> None:
    """The writer asks the check; in a store whose rollouts it confirms none of, no success is plausible."""
    (tmp_path / "run").mkdir()
    checkpoint = fit(tmp_path / "check", 1)
    callbacks = [RolloutWriter(dynamics=str(checkpoint), least_confirming=4)]  # there are three members
    predict_trainer(tmp_path / "run", -1, callbacks).predict(Walker(), goal_data(tmp_path), return_predictions=False)
    store = RolloutStore(tmp_path / "run" / STORE)
    assert store.plausibility_flags == [*DOMAIN.plausibility_flags, OffLearnedDynamics.name, Unconfirmed.name]
    assert torch.equal(store.violations("unconfirmed").bool(), store.is_success)
    assert store.is_success.any()
    assert not rollout_verdicts(store)[RolloutFilter.both].any()
    assert store.manifest["made_by"]["least_confirming"] == 4
    # The same callback again, as a script may use it: what it made is recognised.
    again = Walker()
    predict_trainer(tmp_path / "run", -1, callbacks).predict(again, goal_data(tmp_path), return_predictions=False)
    assert again.num_imagined == 0


def test_other_checkpoints_and_impossible_settings_are_refused(tmp_path: Path) -> None:
    """Each with what to do."""
    torch.save({"state_dict": {}}, tmp_path / "policy.ckpt")
    with pytest.warns(UserWarning, match="no sidecar"), pytest.raises(CheckpointError, match="holds no dynamics check"):
        load_dynamics_check(tmp_path / "policy.ckpt", DOMAIN)
    with pytest.raises(ValueError, match="false_alarm_rate is 1"):
        DynamicsCheck(DOMAIN.spec, false_alarm_rate=1)
    write_store(tmp_path / "few", real_rollouts(5))
    with pytest.raises(DataError, match="5 rollouts of .*; with num_held_out 5 none is left"):
        TransitionData(DOMAIN, RealRollouts(str(tmp_path / "few")), num_held_out=5).setup("fit")


def test_transitions_under_symmetry_stay_true(tmp_path: Path) -> None:
    """Seen in the mirror or not, a step leads where it led; batches are pure functions of their index."""
    write_store(tmp_path / "real", real_rollouts(60))
    data = TransitionData(
        DOMAIN, RealRollouts(str(tmp_path / "real")), batch_size=64, symmetry=SymmetryKind.names, num_held_out=10
    )
    plain = TransitionData(DOMAIN, RealRollouts(str(tmp_path / "real")), batch_size=64, num_held_out=10)
    batch = data.batch(3)
    before, after = cells(batch, names.OBSERVATION), cells(batch, names.NEXT_OBSERVATION)
    assert np.array_equal(step(before, batch[names.ACTION].numpy()), after)
    assert torch.equal(batch[names.OBSERVATION], data.batch(3)[names.OBSERVATION])
    as_recorded = plain.batch(3)
    mirrored = cells(as_recorded, names.OBSERVATION) != before
    assert 0 < mirrored.sum() < 64


def cells(batch: dict[Any, Tensor], key: Any) -> np.ndarray:
    """Where the walker is."""
    found: Sequence[int] = batch[key].argmax(-1).tolist()
    return np.array(found)
