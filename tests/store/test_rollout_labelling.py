"""Labels of whole rollouts: written once, gone on with, compared with the rule, and chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kalm.core.errors import DataError
from kalm.core.goal import Goal
from kalm.core.rollout import Rollout
from kalm.data.choice import RolloutFilter
from kalm.data.rollout_sources import ImaginedRollouts
from kalm.data.selection import Selection
from kalm.judging.judge import Judge, Verdict, verdict
from kalm.store import rollout_labelling
from kalm.store.rollout_labelling import agreement_by_split, label_rollouts
from tests.chain_domain import CellGoal
from tests.data.rollouts import DOMAIN, imagined_rollouts, write_store
from tests.store.test_store import digests


class LikesShort(Judge):
    """Calls a rollout met whose first step goes right; breaks off after so many, if told to."""

    name = "right"

    def __init__(self, breaks_after: int | None = None) -> None:
        """Choose."""
        self.num_judged, self._breaks_after = 0, breaks_after

    @property
    def provenance(self) -> dict[str, Any]:
        """Who judged."""
        return {"judge": "right"}

    def judge(self, goals: Sequence[Goal | None], rollouts: Sequence[Rollout]) -> Verdict:
        """Each rollout's first action; goals are those of the rollouts."""
        if self._breaks_after is not None and self.num_judged >= self._breaks_after:
            raise KeyboardInterrupt
        assert [goal.to_json() for goal in goals if isinstance(goal, CellGoal)] == [made.goal for made in rollouts]
        self.num_judged += len(rollouts)
        return verdict([made.actions[0] == 1 for made in rollouts])


def test_each_rollout_is_judged_once_and_a_label_that_was_killed_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In shards of 10: killed after the second of three, the third is asked alone; the files are those of one go."""
    monkeypatch.setattr(rollout_labelling, "ROLLOUTS_PER_SHARD", 10)
    rollouts = imagined_rollouts(25, "easy")
    stores = [write_store(tmp_path / name, rollouts) for name in ("whole", "killed")]
    whole = label_rollouts(DOMAIN, stores[0], LikesShort(), show_progress=False)
    with pytest.raises(KeyboardInterrupt):
        label_rollouts(DOMAIN, stores[1], LikesShort(breaks_after=20), show_progress=False)
    rest = LikesShort()
    killed = label_rollouts(DOMAIN, stores[1], rest, show_progress=False)
    assert rest.num_judged == 5
    assert whole.met.tolist() == killed.met.tolist() == [bool(made.actions[0] == 1) for made in rollouts]
    assert digests(tmp_path / "whole/labels/right") == digests(tmp_path / "killed/labels/right")
    again = LikesShort()
    assert label_rollouts(DOMAIN, stores[1], again, show_progress=False).met.tolist() == killed.met.tolist()
    assert again.num_judged == 0


def test_a_name_is_given_once(tmp_path: Path) -> None:
    """Not that of the rule, nor one that another judge's label has."""
    store = write_store(tmp_path / "store", imagined_rollouts(6, "easy"))
    label_rollouts(DOMAIN, store, LikesShort(), show_progress=False)

    class Another(LikesShort):
        provenance = {"judge": "another"}  # type: ignore[assignment]

    with pytest.raises(DataError, match="made otherwise"):
        label_rollouts(DOMAIN, store, Another(), show_progress=False)
    with pytest.raises(DataError, match="came with"):
        label_rollouts(DOMAIN, store, LikesShort(), "domain_rule", show_progress=False)


def test_agreement_with_the_rule_by_hand(tmp_path: Path) -> None:
    """Counted one by one, each split for itself."""
    rollouts = [*imagined_rollouts(30, "easy"), *imagined_rollouts(30, "train", seed=1)]
    store = write_store(tmp_path / "store", rollouts)
    found = agreement_by_split(store, label_rollouts(DOMAIN, store, LikesShort(), show_progress=False))
    assert list(found) == ["easy", "train"]
    for split, row in found.items():
        own = [(bool(made.actions[0] == 1), made.is_success) for made in rollouts if made.goal_split == split]
        said, true, both = (sum(kind) for kind in zip(*((s, t, s and t) for s, t in own), strict=True))
        assert row.num_rollouts == 30
        assert (row.share_met, row.share_true) == (said / 30, true / 30)
        assert (row.precision, row.recall) == (both / said, both / true)
        assert 0 < both < said


def test_imagination_is_chosen_by_the_label_that_is_named(tmp_path: Path) -> None:
    """The same filter, other rollouts; a label that is not there is missed with the names of those that are."""
    rollouts = imagined_rollouts(30, "easy")
    store = write_store(tmp_path / "store", rollouts)
    label_rollouts(DOMAIN, store, LikesShort(), show_progress=False)
    stored = Selection.whole([store])

    def chosen(label: str) -> list[int]:
        source = ImaginedRollouts([str(store.path)], RolloutFilter.success, label=label)
        return source.choose(DOMAIN, stored).rollouts.tolist()

    assert chosen("right") == [row for row, made in enumerate(rollouts) if made.actions[0] == 1]
    assert chosen("domain_rule") == [row for row, made in enumerate(rollouts) if made.is_success]
    with pytest.raises(DataError, match="has no label 'left'; it has .*right"):
        chosen("left")
    with pytest.raises(DataError, match="does not say of rollouts"):
        chosen("jumped")


@pytest.mark.parametrize("options", [{"top_return_fraction": 0.5}, {"num_least": 3}], ids=["top returns", "least"])
def test_a_judge_without_the_rule_is_not_helped_by_its_reward(options: dict[str, Any]) -> None:
    """Returns of imagined rollouts hold the reward for success, which the rule gave."""
    ImaginedRollouts(["store"], RolloutFilter.success, **options).check()
    with pytest.raises(DataError, match="imagined.label is right, but .* hold the reward of the rule"):
        ImaginedRollouts(["store"], RolloutFilter.success, label="right", **options).check()
