"""Opens the rollout stores of a domain, and collects the real one when it is absent."""

from __future__ import annotations

import logging

from kalm.core.validation import raise_problems
from kalm.envs.base import Domain
from kalm.store.reader import RolloutStore, is_finished_store

logger = logging.getLogger(__name__)


def open_domain_store(domain: Domain, path: str) -> RolloutStore:
    """Open a store and check that its rollouts are of this domain.

    Raises:
        DataError: If there is no store, or its domain or spaces are others (all differences are listed).
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
    return store


def collect_if_absent(domain: Domain, path: str, num_rollouts: int, seed: int) -> None:
    """Collect real rollouts with the domain's expert unless they are there.

    Args:
        domain: The world.
        path: Folder of the store.
        num_rollouts: Rollouts to collect.
        seed: Seed of the collection.
    """
    if is_finished_store(path):
        return
    # Collecting needs a simulator; training on a finished store does not.
    from kalm.store.collect import collect_store

    logger.info("there is no rollout store in %s yet: collecting it", path)
    collect_store(domain, path, num_rollouts, seed)
