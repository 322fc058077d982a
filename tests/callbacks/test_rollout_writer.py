"""Streaming imagined rollouts to a store: killed and restarted, rejected, told apart from another model's."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from kalm.callbacks.rollout_writer import RolloutWriter
from kalm.core.errors import DataError, KalmError
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.data.goal_data import GoalData
from kalm.data.language_batches import WorkItem, WorkShard
from kalm.judging.judge import DomainRule
from kalm.runs.folder import REJECTED_FILE, STORE
from kalm.store.reader import RolloutStore, is_finished_store
from kalm.store.writer import RolloutStoreWriter
from tests.chain_domain import MAX_STEPS, ChainDomain, one_hot, step
from tests.data.test_goal_data import goal_data
from tests.llm.models import grounded_llm
from tests.rl.helpers import chain_data, trainer
from tests.store.test_labels import Coin

NUM_ROLLOUTS = 12  # in shards of 4, 3 (rephrase), 4, 1 (easy)

Spoil = Callable[[int, Rollout], Rollout]


class Killed(BaseException):
    """Stands for a signal: nothing of ours catches it."""


class Walker(lightning.LightningModule):
    """Imagines random walks out of each item's seed; ``spoil`` may damage the rollout with a given place."""

    def __init__(self, model: str = "walker", spoil: Spoil | None = None, kill_at: int | None = None) -> None:
        """Take a name, which stands for the weights, and at which batch to be killed."""
        super().__init__()
        self.model, self.spoil, self.kill_at = model, spoil, kill_at
        self.items_seen: list[WorkItem] = []
        self.num_imagined = 0

    def provenance(self) -> dict[str, Any]:
        """What a grounded model says of itself."""
        return {"model_sha256": self.model, "temperature": 0.5}

    def predict_step(self, batch: WorkShard, batch_index: int) -> list[Rollout]:
        """Six steps left or right."""
        if batch_index == self.kill_at:
            raise Killed
        self.items_seen += batch.items
        rollouts = [self._walk(item) for item in batch.items]
        self.num_imagined += len(batch.items)
        return rollouts

    def _walk(self, item: WorkItem) -> Rollout:
        actions = np.random.default_rng(item.seed).integers(2, size=6)
        cells = [np.array(item.start.argmax())]
        for action in actions:
            cells.append(step(cells[-1], action))
        rollout = ChainDomain().label_rollout(
            item.instructed, one_hot(np.array(cells)), actions, Source.IMAGINARY, {"seed": item.seed}
        )
        place = self.items_seen.index(item)
        return self.spoil(place, rollout) if self.spoil else rollout


def predict(folder: Path, module: lightning.LightningModule, rate: float = 0.1, **options: Any) -> GoalData:
    """One start of ``predict`` in the run folder ``folder/run``."""
    (folder / "run").mkdir(exist_ok=True)
    data_options = options.pop("data", {})
    writer = RolloutWriter(rate, judges=options.pop("judges", ()))
    data = goal_data(folder, **data_options)
    trainer(folder / "run", -1, [writer], **options).predict(module, data, return_predictions=False)
    return data


def predict_killed_in(method: str, folder: Path, module: Walker, patch: pytest.MonkeyPatch, **options: Any) -> None:
    """Be killed at the beginning of a method of the store's writer."""
    goal_data(folder)  # the real store is there before

    def kill(*arguments: Any) -> None:
        raise Killed

    with patch.context() as only_here:
        only_here.setattr(RolloutStoreWriter, method, kill)
        predict(folder, module, **options)


def content(folder: Path) -> dict[str, bytes]:
    """Every file of the run folder, by its path."""
    run = folder / "run"
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("[!.]*") if path.is_file()}


def spoil(*places: int, **fields: Any) -> Spoil:
    """Replace fields of the rollouts at these places."""
    return lambda place, rollout: replace(rollout, **fields) if place in places else rollout


def without_numbers(place: int, rollout: Rollout) -> Rollout:
    """Rollout 1 holds a NaN."""
    observations = rollout.observations.copy()
    observations[-1, 0] = np.nan
    return replace(rollout, observations=observations) if place == 1 else rollout


def test_every_rollout_is_stored_with_its_provenance(tmp_path: Path) -> None:
    """In the order of the work; ids differ; each names its model, its seed and how it was drawn."""
    walker = Walker()
    data = predict(tmp_path, walker)
    store = RolloutStore(tmp_path / "run" / STORE, verify=True)
    rollouts = [store.rollout(row) for row in range(NUM_ROLLOUTS)]
    assert store.num_rollouts == NUM_ROLLOUTS
    items = [item for shard in data.all_shards for item in shard.items]
    assert [rollout.instruction for rollout in rollouts] == [item.instructed.instruction for item in items]
    assert [rollout.provenance["seed"] for rollout in rollouts] == [item.seed for item in items]
    assert {rollout.provenance["model_sha256"] for rollout in rollouts} == {"walker"}
    assert {rollout.provenance["temperature"] for rollout in rollouts} == {0.5}
    assert len({rollout.provenance["id"] for rollout in rollouts}) == NUM_ROLLOUTS
    assert {rollout.source for rollout in rollouts} == {Source.IMAGINARY}
    assert {rollout.is_success for rollout in rollouts} == {True, False}  # verdicts are kept, nothing is filtered


def test_whoever_else_judges_writes_a_label_beside_the_store(tmp_path: Path) -> None:
    """A coin: its label has a verdict a rollout and changes none of the rule's; another coin is not taken for it."""
    for number in range(2):
        (tmp_path / str(number)).mkdir()
    predict(tmp_path / "0", Walker())
    predict(tmp_path / "1", Walker(), judges=[Coin()])
    plain, judged = (RolloutStore(tmp_path / str(number) / "run" / STORE) for number in range(2))
    assert judged.labels("coin").provenance == {"judge": "coin", "sides": 2}
    assert len(judged.labels("coin")) == NUM_ROLLOUTS
    assert torch.equal(judged.is_success, plain.is_success)
    assert judged.plausibility_flags == plain.plausibility_flags
    with pytest.raises(DataError, match="(?s)other settings.*judges"):
        predict(tmp_path / "1", Walker(), judges=[Coin(3)])
    with pytest.raises(DataError, match="domain_rule would stand in for the domain's own"):
        predict(tmp_path, Walker(), judges=[DomainRule(ChainDomain())])


@pytest.mark.parametrize("kill_at", [0, 1, 3])
def test_killed_between_shards_and_restarted_gives_equal_bytes(tmp_path: Path, kill_at: int) -> None:
    """The second start imagines what is missing and no more; rejections of both starts are counted."""
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    settings = {"spoil": without_numbers}
    predict(one, Walker(**settings), rate=0.5)
    with pytest.raises(Killed):
        predict(other, Walker(**settings, kill_at=kill_at), rate=0.5)
    assert not is_finished_store(other / "run" / STORE)
    second = Walker(spoil=without_numbers if kill_at == 0 else None)
    predict(other, second, rate=0.5)
    assert second.num_imagined == NUM_ROLLOUTS - [0, 4, 7, 11][kill_at]
    assert content(one) == content(other)


def test_killed_before_sealing_is_sealed_by_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left to imagine, so Lightning predicts nothing; the store is finished all the same."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    predict(tmp_path / "one", Walker())
    with pytest.raises(Killed):
        predict_killed_in("_seal", tmp_path / "other", Walker(), monkeypatch)
    second = Walker()
    predict(tmp_path / "other", second)
    assert second.num_imagined == 0
    assert content(tmp_path / "one") == content(tmp_path / "other")


def test_a_shard_that_was_counted_but_not_stored_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the count and the shard: the restart makes the shard anew and counts it anew."""
    with pytest.raises(Killed):
        predict_killed_in("append", tmp_path, Walker(spoil=without_numbers), monkeypatch, rate=0.5)
    predict(tmp_path, Walker())
    counted = json.loads((tmp_path / "run" / REJECTED_FILE).read_text())
    assert not any(counted.values())
    assert RolloutStore(tmp_path / "run" / STORE).num_rollouts == NUM_ROLLOUTS


def test_stopped_by_a_limit_leaves_the_store_unfinished(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two of four shards: no store that lacks rollouts passes for the whole, and the next start goes on."""
    with caplog.at_level(logging.WARNING, "kalm"):
        predict(tmp_path, Walker(), limit_predict_batches=2)
    assert "2 shards are left to imagine" in caplog.text
    assert not is_finished_store(tmp_path / "run" / STORE)
    second = Walker()
    predict(tmp_path, second)
    assert second.num_imagined == 5
    assert RolloutStore(tmp_path / "run" / STORE).num_rollouts == NUM_ROLLOUTS


def test_a_termination_is_heeded_after_the_shard_at_hand(tmp_path: Path) -> None:
    """SIGTERM in the second of four shards: that one is stored, no other is begun, and the next start goes on."""

    def terminate(place: int, rollout: Rollout) -> Rollout:
        if place == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return rollout

    first, second = Walker(spoil=terminate), Walker()
    with pytest.raises(SIGTERMException):
        predict(tmp_path, first)
    assert first.num_imagined == 7
    predict(tmp_path, second)
    assert second.num_imagined == 5
    assert RolloutStore(tmp_path / "run" / STORE).num_rollouts == NUM_ROLLOUTS


def test_a_finished_store_is_not_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same command says so and leaves every file alone."""
    predict(tmp_path, Walker())
    before = content(tmp_path)
    again = Walker()
    with caplog.at_level(logging.INFO, "kalm"):
        predict(tmp_path, again)
    assert again.num_imagined == 0
    assert content(tmp_path) == before
    assert "had been imagined before" in caplog.text


@pytest.mark.parametrize("kill_at", [None, 2])
def test_rollouts_of_another_model_are_not_taken_for_this_ones(tmp_path: Path, kill_at: int | None) -> None:
    """Finished or not: the error shows what differs and what to do; nothing is deleted or mixed."""
    if kill_at is None:
        predict(tmp_path, Walker("first"))
    else:
        with pytest.raises(Killed):
            predict(tmp_path, Walker("first", kill_at=kill_at))
    before = content(tmp_path)
    with pytest.raises(DataError, match=r"(?s)other settings.*first.*second.*delete the folder"):
        predict(tmp_path, Walker("second"))
    assert content(tmp_path) == before


def test_other_goals_are_not_taken_for_these(tmp_path: Path) -> None:
    """More rollouts than the finished store holds."""
    predict(tmp_path, Walker())
    with pytest.raises(DataError, match="num_rollouts: .*'easy': 5.* -> .*'easy': 6"):
        predict(tmp_path, Walker(), data={"num_rollouts": {"rephrase": 7, "easy": 6}})


def test_broken_rollouts_are_rejected_and_counted_by_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One of each kind among twelve: eight are stored, and what was rejected is on disk and in the log."""

    def spoil_one_of_each(place: int, rollout: Rollout) -> Rollout:
        if place == 0:
            return replace(rollout, observations=rollout.observations[:1], actions=rollout.actions[:0])
        if place == 4:
            actions = np.zeros(MAX_STEPS + 1, dtype=np.int64)
            return replace(rollout, observations=one_hot(np.zeros(MAX_STEPS + 2, dtype=np.int64)), actions=actions)
        if place == 5:
            return replace(rollout, observations=rollout.observations * 1.5)
        return without_numbers(place, rollout)

    with caplog.at_level(logging.WARNING, "kalm"):
        data = predict(tmp_path, Walker(spoil=spoil_one_of_each), rate=0.6)
    assert RolloutStore(tmp_path / "run" / STORE).num_rollouts == 8
    first, second, *others = (shard.name for shard in data.all_shards)
    assert json.loads((tmp_path / "run" / REJECTED_FILE).read_text()) == {
        first: {"empty": 1, "not finite": 1},
        second: {"too long": 1, "off the world": 1},
        **{name: {} for name in others},
    }
    for reason in ("1 empty", "1 not finite", "1 too long", "1 off the world"):
        assert reason in caplog.text


def test_a_shard_whose_every_rollout_is_rejected_is_done(tmp_path: Path) -> None:
    """The four of the third shard are off the world; the restart does not ask for them again."""
    far = spoil(7, 8, 9, 10, observations=np.full((7, 5), 2.0, dtype=np.float32), actions=np.zeros(6, dtype=np.int64))
    with pytest.raises(Killed):
        predict(tmp_path, Walker(spoil=far, kill_at=3), rate=0.5)
    second = Walker()
    predict(tmp_path, second, rate=0.5)
    assert second.num_imagined == 1
    assert RolloutStore(tmp_path / "run" / STORE).num_rollouts == 8


def test_too_many_rejections_stop_the_run_and_a_higher_limit_lets_it_go_on(tmp_path: Path) -> None:
    """1 of the first 4 is more than 10 %; the shard in which it happened is not stored, the counts are right after."""
    with pytest.raises(DataError, match=r"1 of 4 imagined rollouts were rejected \(1 not finite\).*0\.1"):
        predict(tmp_path, Walker(spoil=without_numbers))
    predict(tmp_path, Walker(spoil=without_numbers), rate=0.25)
    assert RolloutStore(tmp_path / "run" / STORE).num_rollouts == NUM_ROLLOUTS - 1


def test_the_limit_counts_what_was_rejected_before_a_restart(tmp_path: Path) -> None:
    """1 of 4, then a kill, then 1 of the next 3: 2 of 7 is above 26 %, 1 of 3 would be as well, 1 of 7 would not."""
    with pytest.raises(Killed):
        predict(tmp_path, Walker(spoil=without_numbers, kill_at=1), rate=0.26)
    with pytest.raises(DataError, match="2 of 7 imagined rollouts were rejected"):
        predict(tmp_path, Walker(spoil=without_numbers), rate=0.26)


@pytest.mark.parametrize("rate", [-0.1, 1.1])
def test_rate_must_be_a_share(rate: float) -> None:
    """The message names the option and its range."""
    with pytest.raises(KalmError, match="max_rejection_rate"):
        RolloutWriter(rate)


def test_another_data_module_is_refused(tmp_path: Path) -> None:
    """The message names the one to use."""
    with pytest.raises(KalmError, match=r"got PolicyData.*kalm\.data\.goal_data\.GoalData"):
        trainer(tmp_path, -1, [RolloutWriter()]).predict(Walker(), chain_data(tmp_path))


def test_a_language_model_streams_to_the_store(tmp_path: Path) -> None:
    """An untrained one that predicts no change: rollouts name the hashes of model and prompts and how they stopped."""
    model = grounded_llm()
    with torch.no_grad():
        for parameter in model.codec.change_head.parameters():
            parameter.zero_()
    predict(tmp_path, model, data={"num_rollouts": {"easy": 6}})
    store = RolloutStore(tmp_path / "run" / STORE, verify=True)
    assert store.num_rollouts == 6
    facts = store.rollout(0).provenance
    assert facts.items() >= model.provenance().items()
    assert facts["prompts_sha256"]
    assert {store.rollout(row).provenance["stopped_by"] for row in range(6)} <= {"end", "limit"}
