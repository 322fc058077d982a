"""Intervals that count seeds and episodes each once: a crossed bootstrap of success rates and of their differences.

All seeds of a row run the same episodes, so 3 seeds x 200 episodes are not 600 independent trials: an easy episode is
easy for every seed, and a bad seed is bad in every episode. The bootstrap therefore draws seeds and episodes each on
their own and reads the outcomes where they cross (Owen 2007, "The pigeonhole bootstrap", arXiv:0712.1111), with SciPy's
resampling. Of U units it reads U - 1: so few, drawn as often as there are, would vary less than they do (Rao and Wu
1988). Where a row has replications of what came before its policies, these are its units and not their seeds: of a
hierarchy the top level alone is drawn (Davison and Hinkley 1997, section 3.8).

Two rows are compared by episode: both are read in the same drawn episodes, each with drawn units of its own.

Shape letters: U units of a row, E episodes of a goal split, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from kalm.envs.evaluation import wilson_interval
from kalm.report.results import EpisodeRow

Interval = tuple[float, float]
_NUM_RESAMPLES = 4000
_SEED = 0  # the same results give the same report


@dataclass(frozen=True)
class Outcomes:
    """What the units of a row made of the episodes of one goal split.

    Attributes:
        units: Experiments if there are several, else seeds; U of them, sorted.
        episodes: What tells an episode from another, that is task, sentence and seed; E of them, sorted.
        success: Share of a unit's runs that succeeded in an episode, shape (U, E), in [0, 1]. An episode that a unit
            did not run counts as the mean of those that it did.
    """

    units: tuple[Any, ...]
    episodes: tuple[tuple[str, str, int], ...]
    success: NDArray[np.float64]

    @classmethod
    def of(cls, rows: Sequence[EpisodeRow]) -> Outcomes:
        """Those of one row of a report on one goal split; at least one episode."""
        has_replications = len({row.experiment for row in rows}) > 1
        cells: dict[tuple[Any, Any], list[bool]] = {}
        for row in rows:
            unit = row.experiment if has_replications else row.seed
            cells.setdefault((unit, (row.task, row.instruction, row.episode_seed)), []).append(row.is_success)
        units, episodes = (tuple(sorted({cell[axis] for cell in cells})) for axis in (0, 1))
        unit_number, episode_number = ({name: at for at, name in enumerate(names)} for names in (units, episodes))
        success = np.full((len(units), len(episodes)), np.nan)
        for (unit, episode), own in cells.items():
            success[unit_number[unit], episode_number[episode]] = np.mean(own)
        return cls(units, episodes, np.where(np.isnan(success), np.nanmean(success, axis=1, keepdims=True), success))

    @property
    def rates(self) -> NDArray[np.float64]:
        """Success of each unit, shape (U,)."""
        return self.success.mean(axis=1)

    def in_common(self, other: Outcomes) -> tuple[Outcomes, Outcomes] | None:
        """Both in the episodes that both ran; None if there are none."""
        both = set(self.episodes) & set(other.episodes)
        kept = [np.array([episode in both for episode in each.episodes]) for each in (self, other)]
        first, second = (
            Outcomes(each.units, tuple(sorted(both)), each.success[:, columns])
            for each, columns in zip((self, other), kept, strict=True)
        )
        return (first, second) if both else None


def success_interval(splits: Sequence[Outcomes]) -> Interval:
    """95 % interval of a row's success on one goal split, or of its mean over several, in [0, 1]."""
    low, high = _interval([_of_shared_units(splits)])
    return max(0.0, low), min(1.0, high)


def difference_interval(pairs: Sequence[tuple[Outcomes, Outcomes]]) -> Interval:
    """95 % interval of a row's success less another's on one goal split, or of the mean over several, in [-1, 1].

    Args:
        pairs: The row and the other, in the episodes that both ran, of each split.
    """
    low, high = _interval([_of_shared_units(row) for row in zip(*pairs, strict=True)])
    return max(-1.0, low), min(1.0, high)


def _of_shared_units(splits: Sequence[Outcomes]) -> list[NDArray[np.float64]]:
    """Success on each split of the units that ran all of them."""
    shared = set.intersection(*(set(split.units) for split in splits))
    return [split.success[[unit in shared for unit in split.units]] for split in splits]


def _interval(rows: Sequence[Sequence[NDArray[np.float64]]]) -> Interval:
    """Percentile interval of the mean over splits; of one row, or of the first less the second.

    Where nothing varies there is nothing to resample. That none of E episodes was otherwise then bounds how many are,
    by Wilson's interval of 0 in E: the episodes of one unit, for the others tried no new ones.
    """
    num_units, num_episodes = [len(row[0]) for row in rows], [split.shape[1] for split in rows[0]]

    def mean(*drawn: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
        assert axis == -1
        units, episodes = drawn[: len(rows)], drawn[len(rows) :]
        of_split = []
        for number, own_episodes in enumerate(episodes):
            counts = _counts(own_episodes, num_episodes[number])
            of_row = [_crossed_mean(row[number], own, counts) for row, own in zip(rows, units, strict=True)]
            of_split.append(of_row[0] - sum(of_row[1:]))
        return np.mean(of_split, axis=0)

    # SciPy draws of two or more; one alone is drawn as two that are the same.
    samples = [np.arange(size) if size > 1 else np.zeros(2, dtype=np.int64) for size in [*num_units, *num_episodes]]
    found = bootstrap(
        samples,
        mean,
        n_resamples=_NUM_RESAMPLES,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    low, high = float(found.low), float(found.high)
    if low < high:
        return low, high
    reach = wilson_interval(0, min(num_episodes))[1]
    return low - reach, high + reach


def _counts(episodes: NDArray[np.int64], num_episodes: int) -> NDArray[np.int64]:
    """How often each episode was drawn, shape (R, E)."""
    resample = np.arange(len(episodes))[:, None]
    counts = np.bincount((num_episodes * resample + episodes).ravel(), minlength=len(episodes) * num_episodes)
    return counts.reshape(len(episodes), num_episodes)


def _crossed_mean(
    success: NDArray[np.float64], units: NDArray[np.int64], counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean success of all but one of the drawn units in the drawn episodes, shape (R,)."""
    rates = counts @ success.T / counts.sum(axis=1, keepdims=True)
    return np.take_along_axis(rates, units[:, :-1], axis=1).mean(axis=1)
