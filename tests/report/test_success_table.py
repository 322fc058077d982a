"""Success rates worked by hand."""

from __future__ import annotations

import pytest

from kalm.report.success_table import ReportRow, rates_by_split, success_rate, success_table, task_table

REAL, BOTH = "clevr_robot/bc/real", "clevr_robot/bc/both"
ROWS = [ReportRow(REAL, "BC"), ReportRow(BOTH, "BC, imagined", baseline=REAL)]


def test_mean_spread_and_interval_over_two_seeds(episode):
    """Seed 0 succeeds once in two, seed 1 twice in two.

    Mean (50 + 100) / 2 = 75; deviations are 25 each, so the sample deviation is sqrt((625 + 625) / 1) = 35.355. A
    resample has one seed and two episodes: seed 0 in its failure twice, 0 %, has probability 1/2 x 1/4 > 2.5 %.
    """
    rows = [
        episode(seed=0, episode_seed=1, is_success=True),
        episode(seed=0, episode_seed=2, is_success=False),
        episode(seed=1, episode_seed=1, is_success=True),
        episode(seed=1, episode_seed=2, is_success=True),
    ]
    rate = success_rate(rows)
    assert rate.mean == pytest.approx(0.75)
    assert rate.std == pytest.approx(0.353553, abs=1e-6)
    assert rate.interval == (0.0, 1.0)
    assert (rate.num_seeds, rate.num_replications, rate.num_episodes) == (2, 1, 4)
    assert str(rate) == "75.0 ± 35.4 (0.0-100.0)"
    assert rate.without_interval() == "75.0 ± 35.4"


def test_seeds_weigh_equally_even_with_unequal_episodes(episode):
    """Seed 0: 3 of 3; seed 1: 0 of 1. The mean over seeds is 50 %, not 75 %."""
    rows = [episode(seed=0, episode_seed=number) for number in range(3)] + [episode(seed=1, is_success=False)]
    assert success_rate(rows).mean == pytest.approx(0.5)


def test_one_seed_has_no_spread(episode):
    """A deviation of a single number would be a made-up zero."""
    rate = success_rate([episode()])
    assert rate.std is None
    assert "±" not in str(rate)


def test_no_episodes_have_no_rate():
    """Nothing in, nothing out."""
    assert success_rate([]) is None
    assert rates_by_split([], ROWS[0]) == {}


def test_difference_in_points_follows_the_row_with_a_baseline(episode):
    """Without imagination 1 of 2 on easy, with it 2 of 2: +50 points; hard was tried by one of them only.

    The episodes differ by 0 and 100 points; the same one is drawn twice in half of all resamples, each in a quarter.
    """
    rows = [
        episode(experiment=REAL, episode_seed=1),
        episode(experiment=REAL, episode_seed=2, is_success=False),
        episode(experiment=BOTH, episode_seed=1),
        episode(experiment=BOTH, episode_seed=2),
        episode(experiment=BOTH, goal_split="hard", is_success=False),
    ]
    table = success_table(rows, ROWS)
    assert table.header == ("policy", "seeds", "easy", "hard")
    assert [row[0] for row in table.rows] == ["BC", "BC, imagined", "  difference"]
    assert table.rows[0][2].startswith("50.0 ")
    assert table.rows[0][3] == "-"
    assert table.rows[1][2].startswith("100.0 ")
    assert table.rows[2][2:] == ("+50.0 (+0.0 to +100.0)", "-")


def test_a_difference_is_of_the_episodes_that_both_ran(episode):
    """Without imagination 1 of 2, with it 1 of 1, in the episode that both meet: no difference."""
    rows = [episode(experiment=REAL, episode_seed=1), episode(experiment=BOTH, episode_seed=1)]
    rows.append(episode(experiment=REAL, episode_seed=2, is_success=False))
    table = success_table(rows, ROWS)
    assert table.rows[2][2].startswith("+0.0 (")
    apart = [episode(experiment=REAL, episode_seed=1), episode(experiment=BOTH, episode_seed=2)]
    assert success_table(apart, ROWS).rows[2][2] == "-"


def test_replications_are_one_row(episode):
    """Grounded twice, two seeds each: 100 and 50 % by the one, 0 and 50 by the other; 75 and 25, mean 50.

    The deviation of 75 and 25 is sqrt(2 x 625 / 1) = 35.4.
    """
    of_both = [("a", 0, (True, True)), ("a", 1, (True, False)), ("b", 0, (False, False)), ("b", 1, (False, True))]
    rows = [
        episode(experiment=experiment, seed=seed, episode_seed=number, is_success=is_success)
        for experiment, seed, outcomes in of_both
        for number, is_success in enumerate(outcomes)
    ]
    table = success_table(rows, [ReportRow("a", "twice", replications=("b",))])
    assert table.rows[0][:2] == ("twice", "2 x 2")
    assert table.rows[0][2].startswith("50.0 ± 35.4 (")
    assert "replications" in table.note
    assert task_table(rows, [ReportRow("a", "twice", replications=("b",))]).rows == (("easy: move left", "50.0 (8)"),)


def test_a_loss_is_shown_as_a_loss(episode):
    """Imagination hurts: 100 % without, 0 % with."""
    rows = [episode(experiment=REAL), episode(experiment=BOTH, is_success=False)]
    assert success_table(rows, ROWS).rows[2][2] == "-100.0 (-100.0 to -20.7)"


def test_the_novel_column_is_the_mean_of_the_three_novel_splits(episode):
    """Rephrase 100, easy 50, hard 0: novel 50, whatever train is."""
    rows = [
        episode(goal_split="train", is_success=False),
        episode(goal_split="rephrase"),
        episode(goal_split="easy", episode_seed=1),
        episode(goal_split="easy", episode_seed=2, is_success=False),
        episode(goal_split="hard", is_success=False),
    ]
    table = success_table(rows, ROWS[:1])
    assert table.header[-1] == "novel"
    assert table.rows[0][-1].startswith("50.0 (")
    assert success_table(rows[1:], ROWS[:1]).rows[0][-1] == table.rows[0][-1]
    assert success_table(rows, ROWS[:1], show_interval=False).rows[0][-1] == "50.0"


def test_an_experiment_without_episodes_is_a_row_of_blanks(episode):
    """A partial study shows what it has."""
    table = success_table([episode(experiment=REAL)], ROWS)
    assert table.rows[1] == ("BC, imagined", "0", "-")
    assert table.rows[2][2] == "-"


def test_several_checkpoints_show_no_interval(episode):
    """They try the same episodes: an interval would be too narrow."""
    table = success_table([episode(update=1), episode(update=2)], ROWS[:1], "mean of two", show_interval=False)
    assert table.rows == (("BC", "1", "100.0"),)
    assert "interval" not in table.note


def test_tasks_and_their_macro_average(episode):
    """Task left 1 of 2, task right 1 of 1: mean of two tasks (50 + 100) / 2 = 75, though 2 of 3 episodes succeed."""
    rows = [
        episode(task="left", episode_seed=1),
        episode(task="left", episode_seed=2, is_success=False),
        episode(task="right", episode_seed=3),
    ]
    table = task_table(rows, ROWS[:1])
    assert table.rows == (
        ("easy: left", "50.0 (2)"),
        ("easy: right", "100.0 (1)"),
        ("easy: mean of 2 tasks", "75.0"),
    )
