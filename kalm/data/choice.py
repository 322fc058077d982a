"""Ways to choose in a selection: by verdicts, by returns, by number; and what was there to choose from.

Imagined stores keep every well-formed rollout with its verdicts; the choice is made where they are read, so that one
act of imagination serves every choice (the paper uses all rollouts; which choice is best is for an experiment to say).
Each function takes a selection and returns one; only ``rollout_verdicts`` knows where verdicts lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import torch
from torch import Tensor

from kalm.core import names
from kalm.core.errors import DataError
from kalm.core.goal import Goal
from kalm.data.selection import Selection
from kalm.data.statistics import rollout_returns
from kalm.envs.base import Domain
from kalm.judging.judge import DOMAIN_RULE
from kalm.store.reader import RolloutStore


class RolloutFilter(Enum):
    """What a rollout must be to be used; the names are what a YAML file says.

    ``none``: nothing, as in the paper. ``plausible``: no transition is marked by any of the domain's flags.
    ``success``: it meets its goal, as a label says: the domain's own rule, or another judge's. ``both``: plausible and
    success.
    """

    none = "none"
    plausible = "plausible"
    success = "success"
    both = "both"


# Which rollouts may stand in where few pass a filter: all that it asks for but success.
_WITHOUT_SUCCESS = {RolloutFilter.both: RolloutFilter.plausible, RolloutFilter.success: RolloutFilter.none}
# Rollouts that are kept of a band of similar starts, about: enough to compare, few enough to be alike.
_KEPT_OF_BAND = 10
# What a rollout is that does not pass the filter of the same meaning.
_FAILS = {"implausible": RolloutFilter.plausible, "missed": RolloutFilter.success}


def rollout_verdicts(store: RolloutStore, label: str = DOMAIN_RULE) -> dict[RolloutFilter, Tensor]:
    """For each filter, which rollouts of a store pass, bool of shape (R,).

    Raises:
        DataError: If the store has no such label, or it is not about rollouts.
    """
    labels = store.labels(label)
    if labels.goal is not None or labels.is_veto:
        raise DataError(f"label {label!r} of {store.path} does not say of rollouts whether they meet their goals")
    success = labels.met
    plausible = torch.ones_like(success)
    for flag in store.plausibility_flags:
        plausible = plausible & (store.violations(flag) == 0)
    return {
        RolloutFilter.none: torch.ones_like(success),
        RolloutFilter.plausible: plausible,
        RolloutFilter.success: success.clone(),
        RolloutFilter.both: plausible & success,
    }


def verdict_counts(store: RolloutStore) -> dict[str, dict[str, int]]:
    """Counts of each goal split that the store has.

    Returns:
        Goal split -> ``num_rollouts``; ``plausible``, ``success`` and ``both``: rollouts that pass that filter;
        ``num_transitions``; and under each plausibility flag's name the transitions it marks.
    """
    verdicts = rollout_verdicts(store)
    counts = {}
    for split in dict.fromkeys(store.goal_splits.tolist()):
        chosen = torch.from_numpy(store.goal_splits == split)
        counts[split] = {
            "num_rollouts": int(chosen.sum()),
            **{f.name: int((verdicts[f] & chosen).sum()) for f in RolloutFilter if f is not RolloutFilter.none},
            "num_transitions": int(store.rollouts["length"][chosen].sum()),
            **{flag: int(store.violations(flag)[chosen].sum()) for flag in store.plausibility_flags},
        }
    return counts


def passes(selection: Selection, rollout_filter: RolloutFilter, label: str = DOMAIN_RULE) -> Tensor:
    """Which rollouts of a selection pass a filter, by what a label says of success; bool of shape (J,)."""
    if rollout_filter is RolloutFilter.none:  # asks for no verdicts, so there need not be any
        return torch.ones(len(selection), dtype=torch.bool)
    verdicts = [rollout_verdicts(store, label)[rollout_filter][rows] for store, rows in selection.by_store()]
    return torch.cat([torch.zeros(0, dtype=torch.bool), *verdicts])


def passing(selection: Selection, rollout_filter: RolloutFilter) -> Selection:
    """Those that pass a filter."""
    return selection.keep(passes(selection, rollout_filter))


def first_rollouts(selection: Selection, number: int | None) -> Selection:
    """The first so many; None takes all."""
    return selection.keep(torch.arange(len(selection)) < (len(selection) if number is None else number))


def top_returns(domain: Domain, selection: Selection, fraction: float, discount: float) -> Selection:
    """Those that earned most of what they could: what a learner that only imitates needs of data of mixed quality.

    With behaviour cloning this is "filtered BC", the %BC of Decision Transformer (Chen et al. 2021, arXiv:2106.01345,
    section 5.1). A return says as much about the start as about the behaviour: who begins beside the goal earns sooner
    than the best who begins far away, so a share of all would keep near starts and no long rollout however good. Hence
    rollouts compete within a split and task alone, in bands of starts from which the goal is about as far
    (``Goal.distance``; all are, where a goal cannot tell).

    Args:
        domain: Says which goals the rollouts have.
        selection: Its rollouts of one band compete with each other.
        fraction: Share to keep, in (0, 1], to the nearest rollout of each band but at least one; of equal returns the
            first.
        discount: Worth of a reward one step later; 1 counts all alike.
    """
    if fraction == 1 or not len(selection):
        return selection
    returns, distances = rollout_returns(selection, discount), start_distances(domain, selection)
    competing: dict[tuple[str, str], list[int]] = {}
    for place, group in enumerate(zip(selection.goal_splits, rollout_tasks(domain, selection), strict=True)):
        competing.setdefault(group, []).append(place)
    is_kept = torch.zeros(len(selection), dtype=torch.bool)
    for places in map(torch.tensor, competing.values()):
        outwards = places[distances[places].argsort(stable=True)]
        for band in outwards.tensor_split(max(1, round(len(places) * fraction / _KEPT_OF_BAND))):
            first = band.sort().values  # of equal returns
            best = returns[first].argsort(descending=True, stable=True)
            is_kept[first[best[: max(1, round(fraction * len(band)))]]] = True
    return selection.keep(is_kept)


def start_distances(domain: Domain, selection: Selection) -> Tensor:
    """How far each rollout's goal is from its first observation, float64 of shape (J,); 0 where nobody can tell."""
    found = torch.zeros(len(selection), dtype=torch.float64)
    (observation,) = selection.read((names.OBSERVATION,), selection.starts)
    places: dict[Goal, list[int]] = {}
    for place, goal in enumerate(_rollout_goals(domain, selection)):
        if goal is not None:
            places.setdefault(goal, []).append(place)
    for goal, own in places.items():
        distance = goal.distance(observation[own].numpy())
        if distance is not None:
            found[own] = torch.as_tensor(distance, dtype=torch.float64)
    return found


def verified_rollouts(
    domain: Domain,
    selection: Selection,
    rollout_filter: RolloutFilter,
    num_least: int = 0,
    label: str = DOMAIN_RULE,
) -> Selection:
    """Those that pass a filter, and for tasks with few of them the next best.

    It is rejection sampling, by default with the domain's own rule as the judge, as in STaR (Zelikman et al. 2022,
    arXiv:2203.14465) and ReST (Gulcehre et al. 2023, arXiv:2308.08998). KALM imagines once and grounds no further.

    Args:
        domain: Says which task a goal belongs to.
        selection: Its rollouts compete with each other.
        rollout_filter: What a rollout must be.
        num_least: Rollouts that each task should have. Where fewer pass, the rollouts of the highest return join
            that pass all of the filter but success; only such that earned something, and of equal ones the first.
        label: The name of the label that says which meet their goals.
    """
    chosen = passes(selection, rollout_filter, label)
    if num_least and rollout_filter in _WITHOUT_SUCCESS:
        returns = rollout_returns(selection, discount=1.0)
        may_join = passes(selection, _WITHOUT_SUCCESS[rollout_filter]) & (returns > 0)
        tasks = rollout_tasks(domain, selection)
        for task in dict.fromkeys(tasks):
            of_task = torch.tensor([other == task for other in tasks])
            num_missing = max(0, num_least - int((chosen & of_task).sum()))
            candidates = (may_join & of_task & ~chosen).nonzero().squeeze(-1)
            best = returns[candidates].argsort(descending=True, stable=True)[:num_missing]
            chosen[candidates[best]] = True
    return selection.keep(chosen)


def rollout_tasks(domain: Domain, selection: Selection) -> list[str]:
    """The task of each rollout's goal; none has the empty one."""
    return ["" if goal is None else goal.task for goal in _rollout_goals(domain, selection)]


def _rollout_goals(domain: Domain, selection: Selection) -> list[Goal | None]:
    goals: list[Goal | None] = []
    for store, rows in selection.by_store():
        of_instruction = [domain.goal_from_json(row.goal) for row in store.instructions]
        numbers = store.rollouts[names.INSTRUCTION_ID][rows].tolist()
        goals += [of_instruction[number] if number >= 0 else None for number in numbers]
    return goals


def weighed_by_verdicts(selection: Selection, weights: Mapping[str, float]) -> Selection:
    """The same rollouts, those weighed down that are ``implausible`` or ``missed``; one that is both by the product."""
    total = selection.weights
    for name, weight in weights.items():
        total = torch.where(passes(selection, _FAILS[name]), total, total * weight)
    return Selection(selection.line, selection.rollouts, total)


def check_verdict_weights(weights: Mapping[str, float], rollout_filter: RolloutFilter) -> None:
    """Refuse weights that are malformed, or of rollouts that the filter cuts anyway.

    Raises:
        DataError: The message names what is allowed.
    """
    for name, weight in weights.items():
        if name not in _FAILS:
            raise DataError(f"verdict_weights has {name!r}; a rollout can be {' or '.join(_FAILS)}")
        if not weight >= 0:
            raise DataError(f"verdict_weights: {name} is {weight}; it must be 0 or more, 1 being the weight of others")
        if rollout_filter in (_FAILS[name], RolloutFilter.both):
            raise DataError(
                f"verdict_weights weigh rollouts that are {name}, but filter: {rollout_filter.name} cuts them; use "
                "filter: none to weigh them, or leave them out of verdict_weights"
            )
