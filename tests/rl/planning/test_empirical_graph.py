"""Graphs of stores: part by part, from recorded transitions alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kalm.core import names
from kalm.core.errors import DataError
from kalm.rl.planning.empirical_graph import UNKNOWN, RecordedParts
from kalm.store.writer import RolloutStoreWriter
from tests.data.rollouts import real_rollouts, write_store
from tests.rl.planning.room import Room, walk, walks


def test_every_recorded_step_is_in_the_graph_of_its_part(tmp_path: Path) -> None:
    """Grid by grid: states, actions and successors of the store, and nothing else."""
    store = walks(tmp_path / "store", num_grids=2)
    parts = RecordedParts(store)
    assert parts.names == ["000000", "000001"]
    recorded = (store.transitions[key].tolist() for key in (names.STATE, names.ACTION, names.NEXT_STATE))
    seen: set[tuple[int, int, int]] = set()
    for part in parts:
        known = np.argwhere(part.graph.successor != UNKNOWN)
        seen |= {(part.states[s], a, part.states[part.graph.successor[s, a]]) for s, a in known}
        assert np.array_equal(part.observe(np.arange(3)), store.observations(torch.from_numpy(part.states[:3])))
    assert seen == set(zip(*recorded, strict=True))
    assert np.array_equal(np.sort(np.concatenate([part.states for part in parts])), np.arange(store.num_states))


def test_without_grids_rollouts_that_share_a_state_belong_together(tmp_path: Path) -> None:
    """Grids have no state in common, so no part goes across two; and where walks never met there are more of them."""
    by_grid = RecordedParts(walks(tmp_path / "one", num_grids=2))
    found = RecordedParts(walks(tmp_path / "other", num_grids=2, with_grid=False))
    grids = [set(part.states) for part in by_grid]
    assert 2 <= len(found) < 20
    assert all(any(set(part.states) <= grid for grid in grids) for part in found)
    assert sum(len(part.states) for part in found) == sum(map(len, grids))


def test_parts_that_share_states_are_refused(tmp_path: Path) -> None:
    """A key that tells no places apart would solve one state twice, from half of what is known."""
    store = walks(tmp_path / "store", num_grids=1)
    lines = (store.path / "provenance.jsonl").read_text(encoding="utf-8").splitlines()
    changed = "".join(f'{{"grid":{number % 2}}}\n' for number in range(len(lines)))
    assert len(changed) == (store.path / "provenance.jsonl").stat().st_size
    (store.path / "provenance.jsonl").write_text(changed, encoding="utf-8")
    with pytest.raises(DataError, match=r"000000 and 000001 by 'grid' share states"):
        RecordedParts(store)


def test_vectors_have_no_graph(tmp_path: Path) -> None:
    """States that do not repeat are refused, with what is needed."""
    with pytest.raises(DataError, match="planning needs states that repeat"):
        RecordedParts(write_store(tmp_path / "store", real_rollouts(3)))


def test_a_store_can_have_a_shard_without_rollouts(tmp_path: Path) -> None:
    """As where none of a block of goals is met in a grid: the states are those of the other shard."""
    writer = RolloutStoreWriter(tmp_path / "store", "room", Room().spec, (), {}, command="walk")
    writer.append("0", [])
    writer.append("1", [walk(np.random.default_rng(0), 20)])
    store = writer.finish()
    assert store.num_rollouts == 1
    assert store.num_states > 1
