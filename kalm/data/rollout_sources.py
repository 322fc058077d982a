"""Where rollouts come from and which of them are used, as YAML describes it; and what such words decide of the data.

A resumed run is refused other data than it began with. Every argument of a data module's constructor counts, and every
field of the objects among them, unless it is declared not to; so a new option cannot be forgotten.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from kalm.core.durable import file_sha256
from kalm.core.errors import DataError
from kalm.data.choice import RolloutFilter, first_rollouts, passing, top_returns, verdict_counts, verified_rollouts
from kalm.data.selection import Selection
from kalm.envs.base import Domain
from kalm.judging.judge import DOMAIN_RULE
from kalm.language.encoder import SentenceEncoder
from kalm.store.collect import collect_store
from kalm.store.reader import RolloutStore, is_finished_store

logger = logging.getLogger(__name__)

# Metadata of a field: what a path leads to counts, not where it lies; or the field decides nothing that is learned.
BY_CONTENT = {"by_content": True}
UNDECIDED = {"undecided": True}


@dataclass(frozen=True)
class RealRollouts:
    """Real rollouts: a store, collected there when absent, and which of its rollouts to use.

    Args:
        path: Folder of the store.
        filter: What a rollout must be to be used: none (paper), plausible, success or both.
        max_rollouts: Use the first so many of those that pass; null uses all (paper: 6400 for policies on CLEVR-Robot,
            100000 on Meta-World and for grounding).
        top_return_fraction: Share of these to use of each task, in (0, 1]: those of the highest return among the
            rollouts that began about as far from their goal. With BC it makes filtered BC.
        return_discount: Worth of a reward one step later in that return, in [0, 1]; 1 adds all rewards up. Below, of
            two rollouts that meet their goal the shorter one has the higher return.
        num_collected: Rollouts to collect when there is no store in ``path``.
        collect_seed: Seed of that collection.
    """

    path: str = field(metadata=BY_CONTENT)
    filter: RolloutFilter = RolloutFilter.none
    max_rollouts: int | None = None
    top_return_fraction: float = 1.0
    return_discount: float = 1.0
    num_collected: int = field(default=10000, metadata=UNDECIDED)  # the store's content says what came of it
    collect_seed: int = field(default=0, metadata=UNDECIDED)

    def check(self) -> None:
        """Refuse numbers that are out of range, with a ``DataError`` that names what is allowed."""
        if self.max_rollouts is not None and self.max_rollouts < 1:
            raise DataError(f"real.max_rollouts is {self.max_rollouts}; give 1 or more, or null for all rollouts")
        _check_top_returns("real", self.top_return_fraction, self.return_discount)

    def collect_if_absent(self, domain: Domain) -> None:
        """Collect the store with the domain's expert unless it is there."""
        if not is_finished_store(self.path):
            logger.info("there is no rollout store in %s yet: collecting it", self.path)
            collect_store(domain, self.path, self.num_collected, self.collect_seed)

    def choose(self, domain: Domain, stored: Selection) -> Selection:
        """Those to use of the rollouts that are stored."""
        chosen = first_rollouts(passing(stored, self.filter), self.max_rollouts)
        return top_returns(domain, chosen, self.top_return_fraction, self.return_discount)


@dataclass(frozen=True)
class ImaginedRollouts:
    """Imagined rollouts: stores, which of their rollouts to use, and how many beside real ones.

    Args:
        stores: Folders of the stores.
        filter: What a rollout must be to be used: none (paper), plausible, success or both.
        label: Name of the label, beside each store, that says which rollouts meet their goals. ``domain_rule``, which
            every store has, knows what policies are judged by: what is learned by it is an upper bound. Returns hold
            the rule's reward, so with another judge nothing may be chosen by returns.
        fraction: Part of what is learned in an update that is imagined, in (0, 1], to the nearest row (paper: 0.5).
        top_return_fraction: Share of those that pass to use of each task, in (0, 1]: those of the highest return among
            the rollouts that began about as far from their goal.
        return_discount: Worth of a reward one step later in that return, in [0, 1].
        num_least: Rollouts that each task should have; where fewer pass the filter, those of the highest return join
            that pass all of it but success.
    """

    stores: list[str] = field(metadata=BY_CONTENT)
    filter: RolloutFilter = RolloutFilter.both
    label: str = DOMAIN_RULE
    fraction: float = 0.5
    top_return_fraction: float = 1.0
    return_discount: float = 1.0
    num_least: int = 0

    def check(self) -> None:
        """Refuse numbers that are out of range, with a ``DataError`` that names what is allowed."""
        if not self.stores:
            raise DataError("imagined.stores names none; to train on real rollouts only, set imagined to null")
        if self.num_least < 0:
            raise DataError(f"imagined.num_least is {self.num_least}; it must be 0 or more")
        _check_top_returns("imagined", self.top_return_fraction, self.return_discount)
        if self.label != DOMAIN_RULE and (self.top_return_fraction < 1 or self.num_least):
            raise DataError(
                f"imagined.label is {self.label}, but top_return_fraction {self.top_return_fraction} and num_least "
                f"{self.num_least} choose by returns, which hold the reward of the rule; set them to 1 and 0, or label "
                f"to {DOMAIN_RULE}"
            )

    def num_rows(self, total: int, name: str) -> int:
        """How many of an update's ``total`` rows, rollouts or transitions, called ``name`` in YAML, are imagined.

        Raises:
            DataError: If it makes none, or more than there are.
        """
        number = round(total * self.fraction)
        if not 0 < number <= total:
            raise DataError(
                f"imagined.fraction {self.fraction} of {name} {total} makes {number} imagined ones; it must make 1 to "
                f"{total}. To train on real rollouts only, set imagined to null"
            )
        return number

    def choose(self, domain: Domain, stored: Selection) -> Selection:
        """Those to use of the rollouts that are stored.

        Raises:
            DataError: If none passes, with what there is: that must not become training on real rollouts in silence.
        """
        chosen = verified_rollouts(domain, stored, self.filter, self.num_least, self.label)
        if not len(chosen):
            counts = "\n  ".join(f"{store.path}: {verdict_counts(store)}" for store, _ in stored.by_store())
            raise DataError(
                f"no imagined rollout passes filter: {self.filter.name} by the label {self.label}; what there is, by "
                f"the rule:\n  {counts}\n"
                f"Allowed filters are {', '.join(f.name for f in RolloutFilter)}; or ground the model longer, imagine "
                "more, raise imagined.num_least, or set imagined to null to train on real rollouts only"
            )
        return top_returns(domain, chosen, self.top_return_fraction, self.return_discount)


def data_decisions(arguments: Mapping[str, Any], undecided: Collection[str]) -> dict[str, Any]:
    """What a constructor's arguments say about the data, as plain JSON types; fields of objects are ``name.field``.

    Args:
        arguments: Every argument by its name.
        undecided: Names of those that decide nothing that is learned, such as what a run is evaluated on.
    """
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in undecided:
            continue
        if is_dataclass(value) and not isinstance(value, type):
            for part in fields(value):
                if "undecided" not in part.metadata:
                    own = getattr(value, part.name)
                    found[f"{name}.{part.name}"] = _content(own) if "by_content" in part.metadata else _plain(own)
        else:
            found[name] = _plain(value)
    return found


def _check_top_returns(source: str, fraction: float, discount: float) -> None:
    if not (0 < fraction <= 1 and 0 <= discount <= 1):
        raise DataError(
            f"{source}.top_return_fraction is {fraction} and {source}.return_discount is {discount}; the first must be "
            "in (0, 1], the second in [0, 1]"
        )


def _content(paths: str | Sequence[str]) -> Any:
    """Identity of what lies there: of a rollout store its fingerprint, of a file its SHA-256."""
    if not isinstance(paths, str):
        return [_content(path) for path in paths]
    return (RolloutStore(paths).fingerprint if is_finished_store(paths) else file_sha256(Path(paths)))[:12]


def _plain(value: Any) -> Any:
    if isinstance(value, Domain):
        return value.name
    if isinstance(value, SentenceEncoder):
        return value.fingerprint
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
