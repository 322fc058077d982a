"""Intervals worked by hand: binomial quantiles, and what pooling would have made of the same outcomes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kalm.envs.evaluation import wilson_interval
from kalm.report.intervals import Outcomes, difference_interval, success_interval


def outcomes(success: np.ndarray) -> Outcomes:
    """Of a table (U, E) of what each unit made of each episode."""
    units, episodes = success.shape
    return Outcomes(tuple(range(units)), tuple(("task", "sentence", seed) for seed in range(episodes)), success)


def test_seeds_that_fail_in_the_same_episodes_are_one_seed() -> None:
    """Four seeds meet the same 50 of 100 episodes: that is 50 of 100, not 200 of 400.

    The number met in 100 drawn episodes is binomial(100, 1/2), whose 2.5 and 97.5 % quantiles are 40 and 60. Pooled
    as 400 trials the interval is half as wide, 45 to 55.
    """
    low, high = success_interval([outcomes(np.tile(np.arange(100) < 50, (4, 1)).astype(float))])
    assert (low, high) == pytest.approx((0.40, 0.60), abs=0.011)
    assert wilson_interval(200, 400) == pytest.approx((0.451, 0.549), abs=0.001)


def test_seeds_that_differ_in_every_episode_count_as_seeds() -> None:
    """One seed meets all of 100 episodes, another none: the next may do either, where pooling says 43 to 57."""
    assert success_interval([outcomes(np.repeat([[1.0], [0.0]], 100, axis=1))]) == (0.0, 1.0)
    assert wilson_interval(100, 200) == pytest.approx((0.431, 0.569), abs=0.001)


def test_a_paired_difference_is_sharper_than_its_two_intervals() -> None:
    """60 of 100 episodes against 50 that are among them: +10, in 10 episodes and no other.

    The difference is binomial(100, 1/10) / 100, with quantiles 0.05 and 0.16, and leaves out 0; the two intervals, 50
    to 69 and 40 to 60, overlap.
    """
    more, less = (outcomes((np.arange(100) < number)[None].astype(float)) for number in (60, 50))
    assert difference_interval([(more, less)]) == pytest.approx((0.05, 0.16), abs=0.011)
    assert difference_interval([(less, more)]) == pytest.approx((-0.16, -0.05), abs=0.011)
    assert success_interval([less])[1] > success_interval([more])[0] + 0.05


def test_a_difference_may_be_of_the_units_alone() -> None:
    """Each row has a seed of 100 % and one of 0 %: the difference is -1, 0 or 1 with probability 1/4, 1/2, 1/4."""
    both = outcomes(np.repeat([[1.0], [0.0]], 20, axis=1))
    assert difference_interval([(both, both)]) == (-1.0, 1.0)


def test_where_nothing_varies_the_episodes_of_one_seed_bound_what_was_not_seen() -> None:
    """None of 200 episodes failed, by three seeds: Wilson's of 0 in 200 is 0 to 1.9 %, of 0 in 600 0 to 0.6 %."""
    never = outcomes(np.zeros((3, 200)))
    reach = wilson_interval(0, 200)[1]
    assert reach == pytest.approx(0.0188, abs=1e-4)
    assert success_interval([never]) == (0.0, reach)
    assert success_interval([replace(never, success=never.success + 1)]) == pytest.approx((1 - reach, 1.0))
    assert difference_interval([(never, never)]) == (-reach, reach)


def test_a_mean_over_splits_draws_seeds_for_all_and_episodes_for_each() -> None:
    """A seed that meets everything and one that meets nothing do so in both splits; the mean is 0 or 1, never 1/2.

    Of splits that vary apart, 50 of 100 each, the mean is binomial(200, 1/2) / 200: 0.43 to 0.57.
    """
    seeds = outcomes(np.repeat([[1.0], [0.0]], 20, axis=1))
    assert success_interval([seeds, seeds]) == (0.0, 1.0)
    half = outcomes((np.arange(100) < 50)[None].astype(float))
    assert success_interval([half, half]) == pytest.approx((0.43, 0.57), abs=0.006)


def test_an_episode_that_a_seed_did_not_run_counts_as_its_mean(episode) -> None:
    """Seed 0 met 1 of 2; seed 1 ran the first only, and met it."""
    rows = [episode(episode_seed=1), episode(episode_seed=2, is_success=False), episode(seed=1, episode_seed=1)]
    found = Outcomes.of(rows)
    assert found.units == (0, 1)
    assert found.success.tolist() == [[1.0, 0.0], [1.0, 1.0]]


def test_replications_are_the_units_where_there_are_any(episode) -> None:
    """One experiment with seeds that meet the episode and fail it, another that meets it: 1/2 and 1."""
    rows = [episode(experiment="a"), episode(experiment="a", seed=1, is_success=False), episode(experiment="b")]
    found = Outcomes.of(rows)
    assert found.units == ("a", "b")
    assert found.success.tolist() == [[0.5], [1.0]]


def test_rows_are_compared_in_the_episodes_that_both_ran(episode) -> None:
    """Episodes 1 and 2 against 2 and 3: the outcomes of 2."""
    first = Outcomes.of([episode(episode_seed=1), episode(episode_seed=2, is_success=False)])
    second = Outcomes.of([episode(episode_seed=3), episode(episode_seed=2)])
    pair = first.in_common(second)
    assert pair is not None
    assert [one.success.tolist() for one in pair] == [[[0.0]], [[1.0]]]
    assert first.in_common(Outcomes.of([episode(episode_seed=3)])) is None


def test_the_same_outcomes_have_the_same_interval() -> None:
    """No chance is left in a report."""
    some = outcomes(np.random.default_rng(0).random((3, 50)).round())
    assert success_interval([some]) == success_interval([some])
