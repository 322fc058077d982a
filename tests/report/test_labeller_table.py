"""A labeller's verdicts beside the rule, by kind of goal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kalm.core.errors import DataError
from kalm.core.goal import Goal
from kalm.judging.judge import DomainRule, Verdict, verdict
from kalm.report.labeller_table import labeller_scores
from kalm.store.labelling import label_store
from kalm.store.rollout_labelling import label_rollouts
from tests.chain_run import kalm
from tests.data.rollouts import DOMAIN, real_rollouts, write_store
from tests.store.test_labelling import CellsMatter


class Erring(DomainRule):
    """Calls the cell beside the left end its end, too; of the right end it knows nothing; the centre it leaves open."""

    name = "erring"

    def __init__(self) -> None:
        """Of the chain."""
        super().__init__(DOMAIN)

    def judge_states(self, goal: Goal, states: NDArray[np.float32]) -> Verdict:
        """Cells 0 and 1 are the left end, 0.9 and 0.8 sure; nothing is the right end."""
        cell = states.argmax(-1)
        is_left = goal.task == "left_end"
        score = np.where(cell == 0, 0.9, np.where(cell == 1, 0.8, 0.1)) if is_left else np.full(len(cell), 0.2)
        return verdict(score > 0.5, score, abstained=cell == 2)

    @property
    def provenance(self) -> dict[str, str]:
        """No oracle."""
        return {"judge": "erring"}


def test_figures_are_by_kind_of_goal_and_of_what_was_answered(tmp_path: Path) -> None:
    """Five cells a goal, of which the centre is left open.

    Left end: of the cells 0, 1, 3, 4 it calls 0 and 1 met, and 0 is: 3 of 4 right, precision 1 of 2, recall 1 of 1, and
    0 is surer than all the others: area 1. Right end: nothing is called met, 4 is: 3 of 4 right, no precision, no
    recall, all equally sure: area 0.5.
    """
    store = write_store(tmp_path / "store", real_rollouts(40))
    labels = label_store(CellsMatter(), store, Erring(), "erring", None, show_progress=False)
    assert labeller_scores(DOMAIN, store, labels) == {
        "left_end": {
            "num_states": 4, "num_met": 1, "auc": 1.0, "accuracy": 75.0, "precision": 50.0, "recall": 100.0,
            "num_abstained": 1,
        },
        "right_end": {
            "num_states": 4, "num_met": 1, "auc": 0.5, "accuracy": 75.0, "precision": None, "recall": 0.0,
            "num_abstained": 1,
        },
    }  # fmt: skip


def test_labels_of_rollouts_are_refused(tmp_path: Path) -> None:
    """They are compared by split elsewhere."""
    store = write_store(tmp_path / "store", real_rollouts(4))
    labels = label_rollouts(DOMAIN, store, Erring(), "erring", show_progress=False)
    with pytest.raises(DataError, match="the label is about rollouts"):
        labeller_scores(DOMAIN, store, labels)


def test_the_verb_shows_it_unless_the_rule_was_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And says that the rule was only compared with."""
    write_store(tmp_path / "store", real_rollouts(40))
    config = tmp_path / "label.yaml"
    config.write_text(
        f"store: {tmp_path}/store\ndomain: tests.store.test_labelling.CellsMatter\n"
        "judge: tests.report.test_labeller_table.Erring\n"
    )
    assert kalm("label", "--config", config, "--show_progress", "false") == 0
    said = capsys.readouterr().out
    assert "in doubt" in said
    assert "only compared with" in said
    assert "75.0" in said
    assert kalm("label", "--config", config, "--show_progress=false", "--keep=met", "--name=met") == 0
    assert "in doubt" not in capsys.readouterr().out
