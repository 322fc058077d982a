"""What a judge said, goal by goal; and which states are learned from, choose thresholds, or are tested on.

Shape letters: S states of the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from kalm.core import names
from kalm.core.errors import DataError
from kalm.core.goal import Goal
from kalm.data.selection import Selection
from kalm.envs.base import Domain
from kalm.store.labels import Labels

Rows = NDArray[np.int64]


class Part(Enum):
    """What a state is for: to learn from, to choose thresholds by, or to be tested on."""

    training = 0
    calibration = 1
    test = 2


@dataclass(frozen=True, eq=False)
class LabelledGoal:
    """A goal, its sentence, and the states that its judge spoke of.

    Attributes:
        number: Row of the label's table of goals.
        goal: What should be true.
        instruction: The sentence that the network reads.
        met: States of which the judge said that they meet it.
        unmet: States of which it said that they do not; None for all others, where only those that do were kept.
    """

    number: int
    goal: Goal
    instruction: str
    met: Rows
    unmet: Rows | None


def labelled_goals(domain: Domain, labels: Labels) -> list[LabelledGoal]:
    """Every goal that was asked about, in the order of the label's table; where the judge abstained it said nothing."""
    assert labels.goal is not None
    assert labels.state is not None
    keeps_unmet = labels.provenance.get("keep") != "met"
    answered = ~labels.abstained.numpy()
    goal, state, met = (column.numpy()[answered] for column in (labels.goal, labels.state, labels.met))
    order = np.argsort(goal, kind="stable")
    ends = np.searchsorted(goal[order], np.arange(len(labels.goals) + 1))
    found = []
    for number, row in enumerate(labels.goals):
        own = order[ends[number] : ends[number + 1]]
        states, is_met = state[own].astype(np.int64), met[own]
        unmet = np.sort(states[~is_met]) if keeps_unmet else None
        goal_of = domain.goal_from_json(row["goal"])
        found.append(LabelledGoal(number, goal_of, row["instruction"], np.sort(states[is_met]), unmet))
    return found


def parts_of_states(chosen: Selection, held_out: float, seed: int) -> NDArray[np.int8]:
    """What each state of a store is for, by the rollouts that it occurs in: a ``Part``'s value or -1, shape (S,).

    Whole rollouts are held out, for the states of one are much alike. A state of several is for the first of their
    parts, so that nothing that occurs in a rollout that is learned from is tested on.

    Args:
        chosen: Rollouts of one store; states of no others are used.
        held_out: Share of the rollouts that nothing is learned from; half of them are for each of the other parts.
        seed: Decides which.

    Raises:
        DataError: If there are too few rollouts for three parts.
    """
    (store,) = chosen.line.stores
    number = len(chosen)
    num_each = max(round(number * held_out / 2), 1)
    if number < 3 or 2 * num_each >= number:
        raise DataError(
            f"{number} rollouts of {store.path} are in use; held_out_states {held_out} needs more, so that some choose "
            "thresholds and some are tested on. Collect more, or let real.filter and real.max_rollouts pass more"
        )
    of_chosen = np.full(number, Part.training.value, dtype=np.int8)
    luck = np.random.default_rng([seed, 1]).permutation(number)
    of_chosen[luck[:num_each]], of_chosen[luck[num_each : 2 * num_each]] = Part.calibration.value, Part.test.value
    of_rollout = np.full(store.num_rollouts, -1, dtype=np.int8)
    of_rollout[chosen.rollouts.numpy()] = of_chosen
    of_transition = of_rollout[store.transitions[names.ROLLOUT_ID].numpy()]
    if store.transitions.get(names.STATE, None) is None:
        return of_transition  # of vectors, state n is the next observation of transition n
    found = np.full(store.num_states, -1, dtype=np.int8)
    for part in reversed(Part):
        for key in (names.STATE, names.NEXT_STATE):
            found[store.transitions[key].numpy()[of_transition == part.value]] = part.value
    return found
