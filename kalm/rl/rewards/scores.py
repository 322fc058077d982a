"""How good a proxy reward is: thresholds at a precision, and the figures of TEDUO's table B.4.

Shape letters: M states, of one goal or of all goals of a task.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def choose_threshold(probability: NDArray[Any], met: NDArray[np.bool_], precision: float) -> float:
    """The probability from which states count as met: the best F1 of those with enough precision.

    Of thresholds that keep the precision the lowest would let through as many mistakes as it may; where the labels can
    be told apart without any, this makes none.

    Args:
        probability: Of M states, at least one.
        met: What the judge said of each.
        precision: The least share of what is called met that must be, in (0, 1].

    Returns:
        A threshold in [0, 1], or above 1 where none is precise enough: then nothing counts as met.
    """
    order = np.argsort(-probability, kind="stable")
    ranked, right = probability[order], np.cumsum(met[order])
    called = np.arange(1, len(order) + 1)
    f1 = 2 * right / (called + max(int(met.sum()), 1))
    # Only where the next one is less probable can a line be drawn.
    can_end = np.append(ranked[1:] < ranked[:-1], True)
    allowed = can_end & (right >= precision * called) & (right > 0)
    if not allowed.any():
        return 2.0
    best = int(np.where(allowed, f1, -1).argmax())
    below = float(ranked[best + 1]) if best + 1 < len(ranked) else 0.0
    return (float(ranked[best]) + below) / 2


def scores(probability: NDArray[Any], called: NDArray[np.bool_], met: NDArray[np.bool_]) -> dict[str, float | None]:
    """Area under the ROC curve in [0, 1]; accuracy, precision and recall in per cent; None where there is none.

    Args:
        probability: Of M states.
        called: Which of them the proxy calls met.
        met: Which are.
    """
    right = int((called & met).sum())
    num_met, num_called = int(met.sum()), int(called.sum())
    return {
        "num_states": len(met),
        "num_met": num_met,
        "auc": _area(probability, met),
        "accuracy": 100 * float((called == met).mean()) if len(met) else None,
        "precision": 100 * right / num_called if num_called else None,
        "recall": 100 * right / num_met if num_met else None,
    }


def _area(probability: NDArray[Any], met: NDArray[np.bool_]) -> float | None:
    """Chance that a state that is met is more probable than one that is not; equal ones count half."""
    num_met, num_unmet = int(met.sum()), int((~met).sum())
    if not num_met or not num_unmet:
        return None
    _, place, count = np.unique(probability, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2
    return float((rank[place][met].sum() - num_met * (num_met + 1) / 2) / (num_met * num_unmet))
