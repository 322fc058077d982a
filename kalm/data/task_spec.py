"""Derives the sizes that learners are built from."""

from __future__ import annotations

from dataclasses import replace

from kalm.core.names import TaskSpec
from kalm.envs.base import Domain
from kalm.language.encoder import SentenceEncoder
from kalm.store.layout import describe_spaces


def task_spec(domain: Domain, encoder: SentenceEncoder) -> TaskSpec:
    """Sizes of a domain's spaces and an encoder's vectors, without reading data or weights."""
    return replace(dynamics_spec(domain), goal_embedding_size=encoder.embedding_size)


def dynamics_spec(domain: Domain) -> TaskSpec:
    """The same for what knows no goals: their vectors have no numbers."""
    spaces = describe_spaces(domain.observation_space, domain.action_space)
    return TaskSpec(
        observation_size=spaces["observation_size"],
        action_size=spaces["action"]["size"],
        is_discrete=spaces["action"]["is_discrete"],
        goal_embedding_size=0,
        entities=tuple((entity.start, entity.stop) for entity in domain.entities),
    )
