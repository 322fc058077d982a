"""Stores of a domain: opened and checked, or collected by its expert when they are absent (KALM's offline data)."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kalm.core.errors import DataError
from kalm.core.names import INSTRUCTION_ID
from kalm.core.validation import raise_problems
from kalm.envs.base import Domain
from kalm.store.reader import RolloutStore, is_finished_store
from kalm.store.writer import RolloutStoreWriter

ROLLOUTS_PER_SHARD = 500


def collect_store(
    domain: Domain, path: str | Path, num_rollouts: int, seed: int, show_progress: bool = True
) -> RolloutStore:
    """Collect a store, or go on with one that was interrupted, or open one that is there.

    The expert of the domain acts; equal domain settings, number and seed give equal files.

    Raises:
        DataError: If the folder holds a finished or begun store that was made otherwise.
    """
    made_by = {"verb": "collect", "num_rollouts": num_rollouts, "seed": seed, **domain.collection_settings}
    if is_finished_store(path):
        store = RolloutStore(path)
        if store.manifest["made_by"] == made_by:
            return store
        raise DataError(
            f"rollout store {path} was made by {store.manifest['made_by']}, not by {made_by}; name another folder, "
            "or delete this one to collect it anew"
        )
    writer = RolloutStoreWriter(path, domain.name, domain.spec, domain.plausibility_flags, made_by)
    names = [f"{first:09d}" for first in range(0, num_rollouts, ROLLOUTS_PER_SHARD)]
    missing = [name for name in names if name not in writer.finished_shards]
    columns = (TextColumn("collect"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not show_progress) as progress:
        # Shards are written in order, so what is missing is one run of them up to the end.
        first = int(missing[0]) if missing else num_rollouts
        bar = progress.add_task("collect", total=num_rollouts, completed=first)
        rollouts = domain.collect(num_rollouts, seed, first)
        for name in missing:
            shard = list(islice(rollouts, ROLLOUTS_PER_SHARD))
            writer.append(name, shard)
            progress.advance(bar, len(shard))
    return writer.finish()


def open_domain_store(domain: Domain, path: str) -> RolloutStore:
    """Open a store and check that its rollouts are of this domain, and that learning may see their sentences.

    Raises:
        DataError: If there is no store, if its domain or spaces are others (all differences are listed), or if it holds
            sentences that are kept for the test.
    """
    store = RolloutStore(path)
    found = {"domain": store.domain, **store.spec.to_json()}
    expected = {"domain": domain.name, **domain.spec.to_json()}
    problems = [f"{key}: {found[key]!r}, expected {expected[key]!r}" for key in found if found[key] != expected[key]]
    raise_problems(
        f"rollout store {path} is not of the domain {domain.name}",
        problems,
        f"Name a store of {domain.name}, or another domain.",
    )
    raise_problems(
        f"rollout store {path} tells what only a test may show",
        domain.kept_for_the_test((row.instruction, row.goal_split) for row in store.instructions),
        "Leave these rollouts out.",
    )
    return store


def success_by_task(domain: Domain, store: RolloutStore) -> dict[str, tuple[int, int]]:
    """Successful rollouts and all rollouts of each task, sorted by its name; rollouts without a goal are of none."""
    goals = [row.goal for row in store.instructions]
    counts: dict[str, tuple[int, int]] = {}
    columns = store.rollouts[INSTRUCTION_ID].tolist(), store.is_success.tolist()
    for instruction_id, is_success in zip(*columns, strict=True):
        if instruction_id < 0:
            continue
        task = domain.goal_from_json(goals[instruction_id]).task
        num_successes, num_rollouts = counts.get(task, (0, 0))
        counts[task] = num_successes + int(is_success), num_rollouts + 1
    return dict(sorted(counts.items()))
