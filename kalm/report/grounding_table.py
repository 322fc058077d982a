"""How well the grounded LLM explains, acts and predicts at the end of training (KALM, figures 7 and 12)."""

from __future__ import annotations

from collections.abc import Sequence

from kalm.report import paper
from kalm.report.metrics import MetricLog
from kalm.report.results import in_order
from kalm.report.success_table import EMPTY
from kalm.report.table import Table

GROUNDING_PREFIXES = ("explain/", "imagine/")
EXPLANATION_METRICS = {
    "explain/seen_prompt_accuracy": "explanation, seen prompt",
    "explain/unseen_prompt_accuracy": "explanation, unseen prompt",
}
STEP_METRICS = ("action_match", "state_match")
_PAPER = {
    "explain/seen_prompt_accuracy": f"> {paper.EXPLANATION_ACCURACY:.0f}",
    "explain/unseen_prompt_accuracy": f"> {paper.EXPLANATION_ACCURACY:.0f}",
    "imagine/easy/action_match": f"about {paper.EASY_ACTION_MATCH:.0f}",
    "imagine/easy/state_match": f"about {paper.EASY_STATE_MATCH:.0f}",
}


def grounding_table(logs: Sequence[MetricLog]) -> Table:
    """The last logged value of every grounding metric: one row a metric, one column a run."""
    named = dict(EXPLANATION_METRICS)
    for split in imagined_splits(logs):
        for metric in ("success_rate", "plausible_rate", *STEP_METRICS):
            words = metric.removesuffix("_rate").replace("_", " ")
            named[f"imagine/{split}/{metric}"] = f"imagined {split}: {words}"
    cells = []
    for metric, label in named.items():
        values = [log.last(metric) for log in logs]
        if any(value is not None for value in values):
            shown = (EMPTY if value is None else f"{100 * value:.1f}" for value in values)
            cells.append((label, *shown, _PAPER.get(metric, EMPTY)))
    header = ("metric", *(log.name for log in logs), "paper")
    note = "Percent, at the last update at which it was measured, on the few rollouts that the callbacks imagine."
    return Table("Grounding", header, tuple(cells), note)


def imagined_splits(logs: Sequence[MetricLog]) -> list[str]:
    """Goal splits that any run imagined rollouts for, in the order of a table."""
    names = (name.split("/") for log in logs for name in log.names)
    return in_order(name[1] for name in names if name[0] == "imagine" and len(name) == 3)
