"""Imagination compared between models: which grounding tasks matter (KALM, table 1), how freely to draw actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kalm.envs.evaluation import wilson_interval
from kalm.report import paper
from kalm.report.results import in_order
from kalm.report.rollout_tables import StoreVerdicts
from kalm.report.table import EMPTY, Table


@dataclass(frozen=True)
class ComparedImagination:
    """One column of the comparison.

    Attributes:
        experiment: Which stores: those of all seeds of ``<domain>/<stage>/<name>``.
        label: What the column is called.
        paper: Name of the paper's column to show beside, a key of ``paper.IMAGINED_MATCH``; None where it has none.
    """

    experiment: str
    label: str
    paper: str | None = None


@dataclass(frozen=True)
class MatchRate:
    """Imagined rollouts of one split that meet their goal, before any filter.

    Attributes:
        num_rollouts: How many were imagined, over all seeds.
        num_matches: How many meet their goal.
        in_paper: The paper's percentage, if it has one.
    """

    num_rollouts: int
    num_matches: int
    in_paper: float | None

    @property
    def percent(self) -> float:
        """Share that meets its goal."""
        return 100 * self.num_matches / self.num_rollouts

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson 95 % interval of ``percent``."""
        low, high = wilson_interval(self.num_matches, self.num_rollouts)
        return 100 * low, 100 * high

    def __str__(self) -> str:
        """The percentage, and the paper's in brackets."""
        return f"{self.percent:.1f}" + ("" if self.in_paper is None else f" ({self.in_paper:.0f})")


def match_rates(
    verdicts: Sequence[StoreVerdicts], compared: Sequence[ComparedImagination]
) -> dict[str, dict[str, MatchRate]]:
    """Rates by label and goal split; what was not imagined is left out."""
    rates: dict[str, dict[str, MatchRate]] = {}
    for column in compared:
        stores = [store for store in verdicts if store.name.startswith(f"{column.experiment}/")]
        of_split: dict[str, MatchRate] = {}
        for split in in_order(split for store in stores for split in store.counts):
            counts = [store.counts[split] for store in stores if split in store.counts]
            num_rollouts = sum(count["num_rollouts"] for count in counts)
            if num_rollouts:
                in_paper = paper.IMAGINED_MATCH.get(stores[0].domain, {}).get(column.paper or "", {}).get(split)
                of_split[split] = MatchRate(num_rollouts, sum(count["success"] for count in counts), in_paper)
        rates[column.label] = of_split
    return rates


def comparison_table(rates: Mapping[str, Mapping[str, MatchRate]]) -> Table:
    """One row a goal split, one column a model or a setting of imagination.

    Args:
        rates: What ``match_rates`` found.
    """
    splits = in_order(split for of_split in rates.values() for split in of_split)
    cells = [(split, *(str(of_split.get(split, EMPTY)) for of_split in rates.values())) for split in splits]
    most = max((rate.num_rollouts for of_split in rates.values() for rate in of_split.values()), default=0)
    note = (
        f"Percent of imagined rollouts, before any filter, up to {most} a cell; in brackets the paper's, where its "
        "table 1 has the same."
    )
    return Table("Imagined rollouts that meet their goal", ("goal split", *rates), tuple(cells), note)
