"""Sentences that are kept for the test: they ask for known goals in words that share little with all others."""

from __future__ import annotations

import hashlib
import json

import pytest

from kalm.envs.base import Domain
from kalm.envs.clevr_robot import ClevrRobot
from kalm.envs.evaluation import evaluation_episodes
from kalm.envs.metaworld import MetaWorld
from tests.envs.word_runs import runs

DOMAINS = [ClevrRobot(), MetaWorld()]


def sentences(domain: Domain, *splits: str) -> list[str]:
    """All of some splits."""
    return [row.instruction for split in splits for row in domain.instructed_goals(split)]


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
def test_unseen_sentences_share_no_five_words_in_a_row_with_others(domain: Domain) -> None:
    """So no pattern either, whatever fills its gaps; nor is a sentence written twice."""
    known = {run for sentence in sentences(domain, *domain.learning_splits) for run in runs(sentence)}
    unseen = sentences(domain, *domain.unseen_splits)
    assert [sentence for sentence in unseen if known & set(runs(sentence))] == []
    assert len({sentence.casefold() for sentence in unseen}) == len(unseen) >= 300


def test_the_measure_of_shared_words_sees_a_pattern() -> None:
    """Two fillings of one pattern share runs; a short sentence is one run."""
    one, other = "Move the red ball close to the blue ball.", "Move the cyan ball close to the red ball."
    assert set(runs(one)) == set(runs(other))
    assert list(runs("Stop the gush.")) == [("stop", "the", "gush")]


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
def test_each_of_the_papers_novel_splits_has_its_unseen_one(domain: Domain) -> None:
    """They come last, so that episodes of the others stay what they were."""
    assert domain.goal_splits == ("train", "rephrase", "easy", "hard", "rephrase_unseen", "easy_unseen", "hard_unseen")
    assert domain.learning_splits == ("train", "rephrase", "easy", "hard")
    assert domain.told_splits == ("train",)


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        (DOMAINS[0], ["b821cda0dcf3e77a", "f4ab554f90e7b4a8", "ce734818a57f0780", "95f8dab8952138e9"]),
        (DOMAINS[1], ["df7c6e6da1edf32e", "94bd13e88b0ec47d", "e70b10067e41d202", "a7b4d2443f4fd2f1"]),
    ],
    ids=lambda value: value.name if isinstance(value, Domain) else "",
)
def test_episodes_of_the_papers_splits_are_those_of_all_published_results(domain: Domain, expected: list[str]) -> None:
    """Digests of 200 test episodes and 40 validation episodes a split, taken before there were unseen sentences."""
    found = []
    for split in domain.learning_splits:
        digest = hashlib.sha256()
        for num_episodes, seed in ((200, 1), (40, 0)):
            for episode in evaluation_episodes(domain, [split], num_episodes, seed):
                digest.update(json.dumps([episode.seed, episode.instructed.to_json()], sort_keys=True).encode())
        found.append(digest.hexdigest()[:16])
    assert found == expected
