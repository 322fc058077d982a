"""Hindsight labels: each distinct question once, all or a part of them, kept or expanded, and killed in the middle."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kalm.core.errors import DataError
from kalm.core.goal import Array, Goal, InstructedGoal
from kalm.judging.judge import DomainRule, Verdict, verdict
from kalm.store import labelling
from kalm.store.labelling import AskedGoals, Keep, asked_by_task, distinct_goals, label_store, some_goals
from kalm.store.reader import RolloutStore
from tests.chain_domain import CellGoal, ChainDomain
from tests.chain_run import kalm
from tests.data.rollouts import DOMAIN, real_rollouts, write_store
from tests.store.test_store import digests


class CellsMatter(ChainDomain):
    """States of one cell are alike."""

    def goal_features(self, states: Array) -> Callable[[Goal], NDArray[np.int64]]:
        """The cell, whatever the goal."""
        return lambda goal: states.argmax(-1).astype(np.int64)


class Counting(DomainRule):
    """Counts questions; knows nothing of the state that it is told to fear, if any."""

    def __init__(self, breaks_after: int | None = None, abstains: bool = False) -> None:
        """Choose."""
        super().__init__(DOMAIN)
        self.asked: list[tuple[Goal, int]] = []
        self._breaks_after, self._abstains = breaks_after, abstains

    def judge_states(self, goal: Goal, states: NDArray[Any]) -> Verdict:
        """The rule's, unless it breaks."""
        if self._breaks_after is not None and len({asked for asked, _ in self.asked}) > self._breaks_after:
            raise KeyboardInterrupt
        self.asked += [(goal, cell) for cell in states.argmax(-1).tolist()]
        said = super().judge_states(goal, states)
        return verdict(said.met, abstained=states.argmax(-1) == 2) if self._abstains else said


@pytest.fixture
def store(tmp_path: Path) -> RolloutStore:
    """Forty walks on the chain."""
    return write_store(tmp_path / "store", real_rollouts(40))


def cells_of(store: RolloutStore) -> NDArray[np.int64]:
    """Cell of each state."""
    cells: NDArray[np.int64] = store.transitions["next", "observation"].numpy().argmax(-1)
    return cells


def test_each_distinct_question_is_asked_once(store: RolloutStore) -> None:
    """Five cells, two goals (the ends): ten questions of hundreds of states; each answer is the rule's."""
    judge = Counting()
    labels = label_store(CellsMatter(), store, judge, "ends", None, show_progress=False)
    assert sorted(cell for _, cell in judge.asked) == sorted([0, 1, 2, 3, 4] * 2)
    assert [row["instruction"] for row in labels.goals] == ["go to the left end", "go to the right end"]
    assert labels.goal is not None
    assert labels.state is not None
    cells = cells_of(store)[labels.state.numpy()]
    assert labels.met.tolist() == [
        cell == 4 * goal for cell, goal in zip(cells.tolist(), labels.goal.tolist(), strict=True)
    ]
    assert len(labels) == 10
    assert labels.provenance["keep"] == "all"
    assert labels.provenance["is_oracle"]


def test_kept_rows_that_meet_a_goal_are_all_states_like_them(store: RolloutStore) -> None:
    """Every state in an end, and no other; how often the judge was asked and kept silent stays in the goals' table."""
    labels = label_store(CellsMatter(), store, Counting(abstains=True), "ends", None, Keep.met, show_progress=False)
    cells = cells_of(store)
    for goal, end in enumerate((0, 4)):
        found = labels.state[labels.goal == goal].tolist()  # type: ignore[index]
        assert found == np.nonzero(cells == end)[0].tolist()
        assert found
    assert labels.met.all()
    assert asked_by_task(DOMAIN, labels) == {
        "left_end": AskedGoals(1, 1, num_asked=5, num_met=1, num_abstained=1),
        "right_end": AskedGoals(1, 1, num_asked=5, num_met=1, num_abstained=1),
    }


def test_states_like_those_asked_take_their_answers_while_there_is_room(store: RolloutStore) -> None:
    """Five questions and 23 rows: as many of each as there are, four or five; the judge is asked five times."""
    judge = Counting(abstains=True)
    labels = label_store(CellsMatter(), store, judge, "some", 23, Keep.alike, show_progress=False)
    assert len(judge.asked) == 10
    assert labels.state is not None
    cells, states = cells_of(store), labels.state.numpy()
    for goal, end in enumerate((0, 4)):
        own = (labels.goal == goal).numpy()
        assert len(set(states[own].tolist())) == own.sum() == 23
        assert sorted(np.bincount(cells[states[own]], minlength=5).tolist()) == [4, 4, 5, 5, 5]
        assert labels.met.numpy()[own].tolist() == (cells[states[own]] == end).tolist()
        assert labels.abstained.numpy()[own].tolist() == (cells[states[own]] == 2).tolist()
    whole = label_store(CellsMatter(), store, Counting(), "whole", None, Keep.alike, show_progress=False)
    assert len(whole) == 2 * store.num_states
    few = label_store(CellsMatter(), store, Counting(), "few", 3, Keep.alike, show_progress=False)
    assert len(few) == 6  # three questions, and no room for more


def test_any_of_like_states_may_stand_for_them(store: RolloutStore) -> None:
    """Not the first that was recorded: what else is true of those would be learned along with what matters."""
    labels = label_store(CellsMatter(), store, Counting(), "ends", None, show_progress=False)
    assert labels.state is not None
    cells = cells_of(store)
    first = [int(np.flatnonzero(cells == cell)[0]) for cell in range(5)]
    assert sorted(labels.state[labels.goal == 0].tolist()) != sorted(first)
    again = label_store(CellsMatter(), store, Counting(), "other", None, seed=1, show_progress=False)
    assert again.state is not None
    assert labels.state.tolist() != again.state.tolist()


def test_a_limit_takes_some_questions_by_the_seed(store: RolloutStore) -> None:
    """Three of five; equal seeds the same ones, and other goals beside it change nothing for a goal."""
    judges = [Counting() for _ in range(3)]
    goals = distinct_goals(DOMAIN)
    label_store(CellsMatter(), store, judges[0], "a", 3, show_progress=False)
    label_store(CellsMatter(), store, judges[1], "b", 3, goals=goals[1:], show_progress=False)
    label_store(CellsMatter(), store, judges[2], "c", 3, seed=5, show_progress=False)
    assert [len(judge.asked) for judge in judges] == [6, 3, 6]
    assert judges[0].asked[3:] == judges[1].asked
    assert judges[0].asked != judges[2].asked


def test_some_goals_are_among_those_of_a_larger_choice() -> None:
    """Of twelve, by two seeds: in their order, the smaller choice within the larger; as many as there are is all."""
    goals = [InstructedGoal(CellGoal(number), f"goal {number}", "train") for number in range(12)]
    few, more, other = some_goals(goals, 4, 0), some_goals(goals, 7, 0), some_goals(goals, 4, 1)
    assert len(few) == 4
    assert set(few) < set(more)
    assert more == sorted(more, key=goals.index)
    assert few != other
    assert some_goals(goals, len(goals), 3) == goals
    for number in (0, len(goals) + 1):
        with pytest.raises(DataError, match=f"max_goals is {number}"):
            some_goals(goals, number, 0)


def test_without_features_every_state_is_a_question(store: RolloutStore) -> None:
    """The default of a domain: no two states are alike."""
    judge = Counting()
    labels = label_store(DOMAIN, store, judge, "ends", None, Keep.met, show_progress=False)
    assert len(judge.asked) == 2 * store.num_states
    assert len(labels) == np.isin(cells_of(store), (0, 4)).sum()


def test_an_interrupted_labelling_asks_nothing_twice(
    store: RolloutStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One goal a shard; broken in the second goal, the next run asks about the second alone; files are equal."""
    monkeypatch.setattr(labelling, "GOALS_PER_SHARD", 1)
    with pytest.raises(KeyboardInterrupt):
        label_store(CellsMatter(), store, Counting(breaks_after=0), "ends", None, show_progress=False)
    judge = Counting()
    label_store(CellsMatter(), store, judge, "ends", None, show_progress=False)
    assert len(judge.asked) == 5
    whole = write_store(tmp_path / "whole", real_rollouts(40))
    label_store(CellsMatter(), whole, Counting(), "ends", None, show_progress=False)
    assert digests(store.path) == digests(tmp_path / "whole")
    again = Counting()
    label_store(CellsMatter(), store, again, "ends", None, show_progress=False)
    assert not again.asked  # it is finished, and opened
    with pytest.raises(DataError, match="'ends' .* was made by .*give this one another name"):
        label_store(CellsMatter(), store, again, "ends", 3, show_progress=False)
    with pytest.raises(DataError, match="'domain_rule', a label that .* came with"):
        label_store(CellsMatter(), store, again, "", None, show_progress=False)


_KILLED = """
import sys, time
from kalm.store import labelling
from kalm.store.reader import RolloutStore
from tests.store.test_labelling import CellsMatter, Counting
class Slow(Counting):
    def judge_states(self, goal, states):
        said = super().judge_states(goal, states)
        time.sleep(0 if goal.cell == 0 else 60)
        return said
labelling.GOALS_PER_SHARD = 1
labelling.label_store(CellsMatter(), RolloutStore(sys.argv[1]), Slow(), "ends", None, show_progress=False)
"""


def test_a_killed_labelling_repeats_and_loses_nothing(
    store: RolloutStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL after the first shard: the next process keeps it and ends with the files of an unbroken run."""
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(store.path)])
    shard = store.path / "labels" / "ends" / "shards" / "000000.safetensors"
    deadline = time.monotonic() + 120
    while not shard.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert shard.is_file()
    monkeypatch.setattr(labelling, "GOALS_PER_SHARD", 1)
    judge = Counting()
    label_store(CellsMatter(), RolloutStore(store.path), judge, "ends", None, show_progress=False)
    assert len(judge.asked) == 5
    whole = write_store(tmp_path / "whole", real_rollouts(40))
    label_store(CellsMatter(), whole, Counting(), "ends", None, show_progress=False)
    assert digests(store.path) == digests(tmp_path / "whole")


def test_the_verb_labels_and_says_what_came_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tasks with their counts, where the label lies, that its judge is the oracle, what to run next."""
    write_store(tmp_path / "store", real_rollouts(40))
    config = tmp_path / "label.yaml"
    config.write_text(
        f"""
store: {tmp_path}/store
domain:
  class_path: tests.store.test_labelling.CellsMatter
judge:
  class_path: kalm.judging.noisy_judge.NoisyJudge
  init_args:
    judge:
      class_path: kalm.judging.judge.DomainRule
      init_args:
        domain: ${{domain}}
name: noisy
keep: met
"""
    )
    assert kalm("label", "--config", config, "--show_progress", "false") == 0
    said = capsys.readouterr().out
    assert "left_end" in said
    assert "rows of 2 goals x" in said
    assert "upper bound" in said
    assert "python -m kalm solve" in said
    assert RolloutStore(tmp_path / "store").labels("noisy").provenance["judge"] == "noisy"
    assert kalm("label", "--config", config, "--max_states_per_goal", "0") == 2
    capsys.readouterr()
    assert kalm("label", "--config", config, "--name", "one", "--max_goals", "1", "--show_progress", "false") == 0
    assert "rows of 1 goals x" in capsys.readouterr().out
