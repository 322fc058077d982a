"""The rollout store: what goes in comes out, equal input gives equal files, damage and kills are noticed."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from kalm.core import names
from kalm.core.errors import DataError
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.core.specs import vector_spec
from kalm.store.reader import RolloutStore, is_finished_store
from kalm.store.writer import RolloutStoreWriter
from tests.data.rollouts import DOMAIN, broken, imagined_rollouts, real_rollouts, write_store, writer


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("[!.]*") if path.is_file())  # what was looked at is noted with times
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def same(first: Rollout, second: Rollout) -> bool:
    """Whether two rollouts agree in every field."""
    for name in vars(first):
        one, other = getattr(first, name), getattr(second, name)
        if not (np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other):
            return False
    return True


def test_rollouts_come_back_as_they_went_in(tmp_path: Path) -> None:
    """Every field of every rollout, real and imagined, over several shards."""
    rollouts = [*real_rollouts(23), *imagined_rollouts(17, "easy")]
    store = write_store(tmp_path / "store", rollouts, shard_size=7)
    assert store.num_rollouts == 40
    assert len(store) == sum(map(len, rollouts))
    for index, rollout in enumerate(rollouts):
        assert same(store.rollout(index), rollout)


def test_transitions_are_flat_contiguous_and_typed(tmp_path: Path) -> None:
    """Rollout r owns rows start to start + length; steps count from 0; types are the contract's."""
    rollouts = real_rollouts(9)
    store = write_store(tmp_path / "store", rollouts, shard_size=4)
    expected = {
        names.OBSERVATION: torch.float32,
        names.ACTION: torch.int64,
        names.NEXT_OBSERVATION: torch.float32,
        names.REWARD: torch.float32,
        names.TERMINATED: torch.bool,
        names.TRUNCATED: torch.bool,
        names.ROLLOUT_ID: torch.int32,
        names.STEP: torch.int16,
        names.INSTRUCTION_ID: torch.int32,
        names.SOURCE: torch.uint8,
    }
    assert {key: store.transitions[key].dtype for key in store.transitions.keys(True, True)} == expected
    lengths = [len(rollout) for rollout in rollouts]
    assert store.rollouts["length"].tolist() == lengths
    assert store.rollouts["start"].tolist() == [sum(lengths[:index]) for index in range(9)]
    assert store.transitions["rollout_id"].tolist() == [r for r, length in enumerate(lengths) for _ in range(length)]
    assert store.transitions["step"].tolist() == [step for length in lengths for step in range(length)]
    assert store.transitions[names.TERMINATED].sum() == sum(rollout.is_success for rollout in rollouts)
    assert store.transitions[names.TRUNCATED].sum() == sum(not rollout.is_success for rollout in rollouts)


def test_instructions_are_one_row_each(tmp_path: Path) -> None:
    """The table has each (goal, instruction, split) once, and no embedding is stored anywhere."""
    rollouts = real_rollouts(50)
    store = write_store(tmp_path / "store", rollouts, shard_size=20)
    rows = [(json.dumps(r.goal, sort_keys=True), r.instruction, r.goal_split) for r in rollouts]
    table = [(json.dumps(r.goal, sort_keys=True), r.instruction, r.goal_split) for r in store.instructions]
    assert table == list(dict.fromkeys(rows))
    assert [table[row] for row in store.rollouts["instruction_id"].tolist()] == rows


def test_bytes_a_transition_are_those_on_the_disk(tmp_path: Path) -> None:
    """O = 5: twice 20 for observations, 8 action, 4 reward, 2 endings, 4 + 2 + 4 ids, 1 provenance: 65."""
    store = write_store(tmp_path / "store", real_rollouts(30))
    columns = list((tmp_path / "store" / "transitions").rglob("*.memmap"))
    assert store.manifest["bytes_per_transition"] == 65
    assert sum(path.stat().st_size for path in columns) == 65 * len(store)


def test_continuous_actions_are_kept_as_floats(tmp_path: Path) -> None:
    """A box of two numbers an action."""
    spec = vector_spec(observation_size=5, action_size=2, is_discrete=False)
    store_writer = RolloutStoreWriter(tmp_path / "store", "chain", spec, DOMAIN.plausibility_flags, {})
    rollout = real_rollouts(1)[0]
    actions = np.linspace(-1, 1, 2 * len(rollout), dtype=np.float32).reshape(-1, 2)
    store_writer.append("0", [broken(rollout, actions=actions)])
    store = store_writer.finish()
    assert store.transitions[names.ACTION].dtype == torch.float32
    assert np.array_equal(store.rollout(0).actions, actions)


def test_equal_rollouts_give_equal_files(tmp_path: Path) -> None:
    """However they were cut into shards."""
    rollouts = [*real_rollouts(20), *imagined_rollouts(20, "hard")]
    first = write_store(tmp_path / "first", rollouts, shard_size=40)
    second = write_store(tmp_path / "second", rollouts, shard_size=3)
    assert digests(tmp_path / "first") == digests(tmp_path / "second")
    assert first.fingerprint == second.fingerprint
    other = write_store(tmp_path / "other", [*rollouts[1:], rollouts[0]])
    assert other.fingerprint != first.fingerprint


def test_tensordict_opens_the_same_files(tmp_path: Path) -> None:
    """The columns are TensorDict's own memory-mapped format."""
    store = write_store(tmp_path / "store", real_rollouts(5))
    loaded = TensorDict.load_memmap(tmp_path / "store" / "transitions")
    for key in store.transitions.keys(True, True):
        assert torch.equal(loaded[key], store.transitions[key])


def test_writing_into_a_column_does_not_reach_the_disk(tmp_path: Path) -> None:
    """The maps are private to the process."""
    store = write_store(tmp_path / "store", real_rollouts(5))
    before = digests(tmp_path / "store")
    store.transitions[names.OBSERVATION].fill_(7.0)
    assert digests(tmp_path / "store") == before
    assert RolloutStore(tmp_path / "store", verify=True).transitions[names.OBSERVATION].max() <= 1.0


def test_opening_and_reading_rows_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    """A store of 16 MiB: opened and read all over, the process's own (anonymous) memory grows by less than 3 MiB."""
    rollout = real_rollouts(1)[0]
    size = 2**11
    wide = vector_spec(observation_size=size, action_size=2, is_discrete=True)
    store_writer = RolloutStoreWriter(tmp_path / "store", "chain", wide, (), {})
    steps = 250
    long = broken(
        rollout,
        observations=np.random.default_rng(0).random((steps + 1, size), dtype=np.float32),
        actions=np.zeros(steps, dtype=np.int64),
        rewards=np.zeros(steps, dtype=np.float32),
        terminated=np.zeros(steps, dtype=np.bool_),
        truncated=np.arange(steps) == steps - 1,
        violations={},
    )
    for shard in range(4):
        store_writer.append(str(shard), [long])
    store_writer.finish()
    program = f"""
from kalm.store.reader import RolloutStore, is_finished_store
import torch
def own(): return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon"))
torch.zeros(4, 4).sum(0)
before = own()
store = RolloutStore({str(tmp_path / "store")!r})
for key in ("observation", ("next", "observation")):
    for column in range(0, {size}, 256):
        assert store.transitions[key][:, column].sum() > 0
print(own() - before, sum(f["bytes"] for f in store.manifest["files"].values()))
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    grown_kib, total = map(int, output.split())
    assert total > 15 * 2**20
    assert grown_kib < 3 * 1024


@pytest.mark.parametrize("name", ["transitions/next/observation.memmap", "provenance.jsonl", "rollouts/meta.json"])
def test_a_flipped_byte_is_found(tmp_path: Path, name: str) -> None:
    """The sizes still fit; it names the file."""
    write_store(tmp_path / "store", real_rollouts(10))
    content = bytearray((tmp_path / "store" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "store" / name).write_bytes(content)
    for verify in (False, True):
        with pytest.raises(DataError, match=f"{name}: its content changed"):
            RolloutStore(tmp_path / "store", verify)


def test_truncated_and_missing_files_are_all_named_at_once(tmp_path: Path) -> None:
    """Without reading any of them."""
    folder = tmp_path / "store"
    store = write_store(folder, real_rollouts(10))
    (folder / "transitions/action.memmap").write_bytes(b"1234")
    (folder / "rollouts/start.memmap").unlink()
    with pytest.raises(DataError) as caught:
        RolloutStore(folder)
    assert f"transitions/action.memmap: 4 bytes, expected {8 * len(store)}" in str(caught.value)
    assert "rollouts/start.memmap: missing, expected 80" in str(caught.value)


def edit_manifest(folder: Path, **changes: Any) -> None:
    """Replace entries of a manifest; None removes one."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    (folder / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 99}, "schema_version: 99, this kalm reads 1"),
        ({"num_transitions": 10**15}, "would fit the counts"),
        ({"num_rollouts": -1}, "num_rollouts: -1, expected a positive integer"),
        ({"domain": None}, "lacks the key 'domain'"),
        ({"files": {"../../etc/passwd": {"bytes": 1, "sha256": ""}}}, "leads out of the store"),
        ({"plausibility_flags": ["../../etc"]}, "plausibility flag '../../etc' cannot be a file name"),
        ({"spec": 3}, "is not a manifest"),
        ({"spec": {"observation": {"kind": "smell"}}}, "expected the fields of one of the kinds vector, grid, text"),
    ],
)
def test_a_malformed_manifest_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Whatever it says, nothing outside the store is read and nothing is mapped beyond a file's end."""
    write_store(tmp_path / "store", real_rollouts(3))
    edit_manifest(tmp_path / "store", **changes)
    with pytest.raises(DataError, match=message):
        RolloutStore(tmp_path / "store")


def test_a_missing_store_says_what_is_there_and_what_makes_one(tmp_path: Path) -> None:
    """The message lists the neighbours."""
    (tmp_path / "reel").mkdir()
    with pytest.raises(DataError, match=r"holds reel\. .*python -m kalm collect"):
        RolloutStore(tmp_path / "real")
    with pytest.raises(DataError, match="it holds nothing"):
        RolloutStore(tmp_path / "reel")


def test_an_unfinished_store_names_the_command_that_goes_on(tmp_path: Path) -> None:
    """Shards so far are counted."""
    writer(tmp_path / "store").append("0", real_rollouts(3))
    with pytest.raises(DataError, match="unfinished: 1 shards are written.*make chains"):
        RolloutStore(tmp_path / "store")


def test_the_command_is_this_process_by_default(tmp_path: Path) -> None:
    """Whoever writes a store need not know how it was started."""
    RolloutStoreWriter(tmp_path / "store", "chain", DOMAIN.spec, (), {})
    with pytest.raises(DataError) as caught:
        RolloutStore(tmp_path / "store")
    assert shlex.join(sys.orig_argv) in str(caught.value)


def test_other_settings_cannot_go_on_with_an_unfinished_store(tmp_path: Path) -> None:
    """The difference is told as old -> new."""
    writer(tmp_path / "store", seed=1).append("0", real_rollouts(3))
    with pytest.raises(DataError, match=r"made_by: \{'seed': 1\} -> \{'seed': 2\}"):
        writer(tmp_path / "store", seed=2)
    assert writer(tmp_path / "store", seed=1).finished_shards == {"0"}


def test_a_finished_store_is_not_written_over(tmp_path: Path) -> None:
    """Delete it to make it anew."""
    write_store(tmp_path / "store", real_rollouts(3))
    with pytest.raises(DataError, match="is finished; delete the folder"):
        writer(tmp_path / "store")


def test_empty_shards_count_as_done_and_an_empty_store_is_refused(tmp_path: Path) -> None:
    """A shard whose every rollout was rejected is not made again; a store needs a rollout."""
    store_writer = writer(tmp_path / "store")
    store_writer.append("0", [])
    assert store_writer.finished_shards == {"0"}
    with pytest.raises(DataError, match="no rollout was stored"):
        store_writer.finish()
    store_writer.append("1", real_rollouts(2))
    assert store_writer.finish().num_rollouts == 2


@pytest.mark.parametrize("name", ["../../etc", "a/b", "", ".hidden", "a\n"])
def test_shard_names_with_path_parts_are_refused(tmp_path: Path, name: str) -> None:
    """They could lead out of the store's folder, or hide in it."""
    with pytest.raises(DataError, match="cannot be a file name"):
        writer(tmp_path / "store").append(name, real_rollouts(1))


def test_a_rollout_split_between_sources_keeps_both(tmp_path: Path) -> None:
    """The source survives from rollout to transition, the split to the rollout."""
    store = write_store(tmp_path / "store", [*real_rollouts(4), *imagined_rollouts(5, "hard")])
    rollout_id = store.transitions["rollout_id"]
    is_imagined = store.transitions[names.SOURCE] == Source.IMAGINARY
    assert torch.equal(is_imagined, rollout_id >= 4)
    assert store.goal_splits.tolist() == ["train"] * 4 + ["hard"] * 5


KILLED_AT_EVERY_FLUSH = """
import os, signal, sys
from pathlib import Path
from tests.data.rollouts import real_rollouts, writer
def write(folder):
    store = writer(folder)
    for shard in range(3):
        if str(shard) not in store.finished_shards:
            store.append(str(shard), real_rollouts(4, seed=shard))
    store.finish()
def dying(function, state):
    def call(*arguments, **options):
        state["calls"] += 1
        if state["calls"] == state["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
for kill_at in range(1, 200, 3):
    child = os.fork()
    if child == 0:
        state = {"calls": 0, "kill_at": kill_at}
        os.replace, os.fsync = dying(os.replace, state), dying(os.fsync, state)
        write(Path(sys.argv[1]) / str(kill_at))
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
        break
    print(kill_at)
"""


def test_a_writer_killed_at_any_flush_goes_on_and_ends_with_equal_files(tmp_path: Path) -> None:
    """SIGKILL at every third flush or rename, from the first byte to the last; then run again."""
    expected = write_store(tmp_path / "expected", [r for seed in range(3) for r in real_rollouts(4, seed)])
    command = [sys.executable, "-c", KILLED_AT_EVERY_FLUSH, str(tmp_path)]
    output = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True, text=True
    ).stdout
    killed = [tmp_path / kill_at for kill_at in output.split()]
    assert len(killed) > 12
    num_finished = 0
    for folder in killed:
        if is_finished_store(folder):  # killed after the last byte that matters
            num_finished += RolloutStore(folder).fingerprint == expected.fingerprint
            continue
        with pytest.raises(DataError, match="no rollout store|unfinished"):
            RolloutStore(folder)
        store_writer = writer(folder)
        for shard in range(3):
            if str(shard) not in store_writer.finished_shards:
                store_writer.append(str(shard), real_rollouts(4, seed=shard))
        assert store_writer.finish().fingerprint == expected.fingerprint
        assert digests(folder) == digests(tmp_path / "expected")
    assert num_finished <= 1
