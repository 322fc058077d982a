"""Labels beside a store: two shapes, whole shards, the store they belong to, and verdicts of older stores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kalm.core.durable import file_sha256
from kalm.core.errors import DataError
from kalm.core.goal import Goal
from kalm.core.rollout import Rollout
from kalm.judging.judge import DomainRule, Judge, Verdict, verdict
from kalm.store.labels import LabelWriter
from kalm.store.reader import RolloutStore
from tests.data.rollouts import DOMAIN, imagined_rollouts, real_rollouts, write_store
from tests.store.test_store import digests

ROLLOUTS = [*real_rollouts(5), *imagined_rollouts(7, "easy")]
GOALS = [{"goal": goal.goal.to_json(), "instruction": goal.instruction} for goal in DOMAIN.instructed_goals("easy")]


class Coin(Judge):
    """Half sure of everything, and says of each third rollout that it does not know."""

    name = "coin"

    def __init__(self, sides: int = 2) -> None:
        """Choose a coin."""
        self._sides = sides

    @property
    def provenance(self) -> dict[str, Any]:
        """Which coin."""
        return {"judge": "coin", "sides": self._sides}

    def judge(self, goals: Sequence[Goal | None], rollouts: Sequence[Rollout]) -> Verdict:
        """Heads."""
        return toss(len(rollouts))


def toss(num_rows: int) -> Verdict:
    """Met, half sure, abstaining on each third."""
    return verdict(np.ones(num_rows, bool), np.full(num_rows, 0.5), np.arange(num_rows) % 3 == 2)


def rollout_label(store: RolloutStore, *sizes: int) -> LabelWriter:
    """A label of the coin about rollouts, in shards of some sizes."""
    writer = LabelWriter(store, Coin(), "rollout", command="toss")
    for number, size in enumerate(sizes):
        if str(number) not in writer.finished_shards:
            writer.append(str(number), toss(size))
    return writer


def state_rows(num_rows: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which goal and which state each row is about."""
    rng = np.random.default_rng(seed)
    return rng.integers(2, size=num_rows), rng.integers(20, size=num_rows)


def test_verdicts_of_a_collection_are_labels_of_the_rule(tmp_path: Path) -> None:
    """Success and each flag, equal to what the rollouts carry and to what the judge says, who is the oracle."""
    store = write_store(tmp_path / "store", ROLLOUTS, shard_size=4)
    rule = store.labels("domain_rule")
    assert store.is_success.tolist() == [rollout.is_success for rollout in ROLLOUTS]
    again = DomainRule(DOMAIN).judge([DOMAIN.goal_from_json(r.goal) for r in ROLLOUTS], ROLLOUTS)
    assert np.array_equal(rule.met, again.met)
    assert np.array_equal(rule.score, again.score)
    assert (
        rule.provenance
        == DomainRule(DOMAIN).provenance
        == {"judge": "domain_rule", "domain": "chain", "is_oracle": True}
    )
    assert store.plausibility_flags == ["jumped", "nowhere"]
    for flag in store.plausibility_flags:
        counts = [rollout.violations[flag] for rollout in ROLLOUTS]
        assert store.violations(flag).tolist() == counts
        assert store.labels(flag).met.tolist() == [not count for count in counts]
        expected = [1 - count / len(rollout) for count, rollout in zip(counts, ROLLOUTS, strict=True)]
        assert store.labels(flag).score.tolist() == pytest.approx(expected)
    assert store.violations("jumped").any()
    with pytest.raises(DataError, match="'domain_rule' .* is no veto; those are jumped, nowhere"):
        store.violations("domain_rule")


def test_another_judges_label_stands_beside_the_store_and_changes_nothing(tmp_path: Path) -> None:
    """The same store, the same fingerprint, one label more."""
    store = write_store(tmp_path / "store", ROLLOUTS)
    before = digests(tmp_path / "store")
    label = rollout_label(store, 5, 4, 3).finish()
    assert {name: digest for name, digest in digests(tmp_path / "store").items() if "coin" not in name} == before
    assert RolloutStore(tmp_path / "store", verify=True).fingerprint == store.fingerprint
    abstained = [*(toss(5).abstained), *(toss(4).abstained), *(toss(3).abstained)]
    assert label.abstained.tolist() == abstained
    assert label.met.tolist() == [not said for said in abstained]
    assert label.score.tolist() == [0.0 if said else 0.5 for said in abstained]
    assert label.provenance == {"judge": "coin", "sides": 2}
    with pytest.raises(DataError, match="label .*coin is finished; delete the folder"):
        rollout_label(store)


def test_goals_and_states_are_labelled_sparsely(tmp_path: Path) -> None:
    """Two shards that name the same goals: the table has each once, rows say goal and state."""
    store = write_store(tmp_path / "store", ROLLOUTS)
    writer = LabelWriter(store, Coin(), "goal_state", {"prompt_sha256": "ab"})
    goals = [GOALS[:2], [GOALS[2], GOALS[0]]]
    rows = [state_rows(6, seed) for seed in range(2)]
    for number in range(2):
        writer.append(str(number), toss(6), goals[number], *rows[number])
    label = writer.finish()
    assert label.goals == GOALS[:3]
    assert label.goal is not None
    assert label.state is not None
    named = [label.goals[row] for row in label.goal.tolist()]
    assert named == [goals[number][row] for number in range(2) for row in rows[number][0]]
    assert label.state.tolist() == [*rows[0][1], *rows[1][1]]
    assert len(label) == 12
    assert label.provenance["prompt_sha256"] == "ab"


def test_rows_that_name_no_goal_or_state_are_refused(tmp_path: Path) -> None:
    """Both at once, with what is allowed; also verdicts of another shape than the label's."""
    store = write_store(tmp_path / "store", ROLLOUTS)
    writer = LabelWriter(store, Coin(), "goal_state")
    with pytest.raises(DataError, match=r"(?s)goal: .*from 0 to 4; expected .* in \[0, 2\).*state: shape \(1,\)"):
        writer.append("0", toss(2), GOALS[:2], np.array([0, 4]), np.array([1]))
    with pytest.raises(DataError, match="has the shape goal_state"):
        writer.append("0", toss(12))
    with pytest.raises(DataError, match="no verdict was stored"):
        writer.finish()


def test_an_unfinished_label_goes_on_and_ends_with_equal_files(tmp_path: Path) -> None:
    """What is there is not asked again; until then readers are told the command; other coins may not go on with it."""
    store = write_store(tmp_path / "store", ROLLOUTS)
    other = write_store(tmp_path / "other", ROLLOUTS)
    rollout_label(store, 5, 4)
    with pytest.raises(DataError, match="unfinished; run this again, it goes on where it stopped: toss"):
        store.labels("coin")
    with pytest.raises(DataError, match="has 9 rows of 12 rollouts"):
        rollout_label(store).finish()
    with pytest.raises(DataError, match="(?s)begun with other settings.*sides"):
        LabelWriter(store, Coin(3), "rollout")
    assert rollout_label(store).finished_shards == {"0", "1"}
    rollout_label(store, 5, 4, 3).finish()
    rollout_label(other, 5, 4, 3).finish()
    assert digests(tmp_path / "store") == digests(tmp_path / "other")


def test_a_label_of_another_store_or_with_damage_is_refused(tmp_path: Path) -> None:
    """Named by what differs; a flipped byte is found, a missing label says which there are."""
    store = write_store(tmp_path / "store", ROLLOUTS)
    rollout_label(store, 12).finish()
    write_store(tmp_path / "other", ROLLOUTS[::-1])
    shutil.copytree(tmp_path / "store" / "labels" / "coin", tmp_path / "other" / "labels" / "coin")
    with pytest.raises(DataError, match="store_manifest_sha256"):
        RolloutStore(tmp_path / "other").labels("coin")
    with pytest.raises(DataError, match="has no label 'dice'; it has coin, domain_rule, jumped, nowhere"):
        store.labels("dice")
    with pytest.raises(DataError, match="cannot be a file name"):
        store.labels("../../etc")
    met = tmp_path / "store" / "labels" / "domain_rule" / "met.memmap"
    content = bytearray(met.read_bytes())
    content[3] ^= 1
    met.write_bytes(content)
    with pytest.raises(DataError, match="met.memmap: its content changed"):
        RolloutStore(tmp_path / "store", verify=True)
    with pytest.raises(DataError, match="met.memmap: its content changed"):
        _ = RolloutStore(tmp_path / "store").is_success
    met.write_bytes(content[:-1])
    with pytest.raises(DataError, match="met.memmap: 11 bytes, expected 12"):
        _ = RolloutStore(tmp_path / "store").is_success
    (met.parent / "label.json").write_text("[]")
    with pytest.raises(DataError, match="is no label's manifest"):
        _ = RolloutStore(tmp_path / "store").is_success


def test_verdicts_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    """What a filter reads decides what is learned from: with other verdicts a store is another one."""
    before = write_store(tmp_path / "store", ROLLOUTS).fingerprint
    label = tmp_path / "store" / "labels" / "jumped" / "label.json"
    facts = json.loads(label.read_text())
    label.write_text(json.dumps({**facts, "provenance": {"judge": "somebody else"}}))
    assert RolloutStore(tmp_path / "store").fingerprint != before


@pytest.mark.parametrize("version", [1, 2])
def test_stores_of_before_labels_present_their_verdicts_the_same_way(tmp_path: Path, version: int) -> None:
    """Success and violations among the columns of rollouts, sizes instead of a spec."""
    new = write_store(tmp_path / "store", ROLLOUTS)
    folder = as_it_was(tmp_path / "store", version)
    old = RolloutStore(folder, verify=True)
    assert old.spec == new.spec
    for name in ("domain_rule", *new.plausibility_flags):
        for field in ("met", "score", "abstained"):
            assert torch.equal(getattr(old.labels(name), field), getattr(new.labels(name), field))
    for flag in new.plausibility_flags:
        assert torch.equal(old.violations(flag), new.violations(flag))
    assert old.rollout(6).violations == ROLLOUTS[6].violations
    assert old.fingerprint == old.manifest_sha256
    with pytest.raises(DataError, match="has no label 'coin'; it has domain_rule, jumped, nowhere"):
        old.labels("coin")


def as_it_was(folder: Path, version: int) -> Path:
    """Turn a store into one of an earlier schema version, a copy of it."""
    old = Path(shutil.copytree(folder, folder.with_name("old")))
    manifest = json.loads((old / "manifest.json").read_text())
    spec = manifest.pop("spec")
    manifest["schema_version"] = version
    manifest["observation_size"] = spec["observation"]["size"]
    manifest["action"] = {"is_discrete": True, "size": spec["action"]["size"]}
    (old / "rollouts" / "violations").mkdir()
    moved = {"labels/domain_rule/met.memmap": "rollouts/is_success.memmap"}
    moved |= {
        f"labels/{f}/num_marked.memmap": f"rollouts/violations/{f}.memmap" for f in manifest["plausibility_flags"]
    }
    for source, target in moved.items():
        shutil.move(old / source, old / target)
        entry = {"bytes": (old / target).stat().st_size, "sha256": file_sha256(old / target)}
        manifest["files"][target] = entry
    shutil.rmtree(old / "labels")
    (old / "manifest.json").write_text(json.dumps(manifest))
    return old
