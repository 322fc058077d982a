"""Derives what learners are built from."""

from __future__ import annotations

from dataclasses import replace

from kalm.core.specs import TaskSpec
from kalm.envs.base import Domain
from kalm.language.encoder import SentenceEncoder


def task_spec(domain: Domain, encoder: SentenceEncoder) -> TaskSpec:
    """What a domain's observations and actions are and the size of an encoder's vectors, without data or weights."""
    return replace(domain.spec, goal_embedding_size=encoder.embedding_size)


def dynamics_spec(domain: Domain) -> TaskSpec:
    """The same for what knows no goals: their vectors have no numbers."""
    return domain.spec
