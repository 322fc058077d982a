"""The language model as policy: what it reads in the environment, whatever runs beside an episode."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kalm.core.errors import CheckpointError, KalmError
from kalm.core.names import Source
from kalm.core.specs import Spec, vector_spec
from kalm.data.language_batches import GroundingTask, batch_rollouts
from kalm.envs.base import Domain
from kalm.envs.evaluation import evaluation_episodes
from kalm.envs.simulation import Episode, EpisodeResult
from kalm.language.prompts import generation_prompt
from kalm.llm.acting.llm_policy import LLMPolicy
from kalm.llm.grounding.reading import read_rollouts
from kalm.runs.acting import Acting
from tests.chain_domain import ChainDomain
from tests.line_domain import LineDomain
from tests.llm.models import DISCRETE, grounded_llm, tiny_backbone

LINE = vector_spec(observation_size=1, action_size=1, is_discrete=False, goal_embedding_size=16)
SPLITS = ("train", "easy")


def make_policy(spec: Spec, num_evaluation_envs: int = 64) -> LLMPolicy:
    """An untrained model whose output layers are loud enough for it to do different things."""
    model = LLMPolicy(spec, tiny_backbone(), inner_size=16, num_evaluation_envs=num_evaluation_envs)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    return model.eval()


def worlds() -> list[tuple[Domain, Spec]]:
    """One with discrete and one with continuous actions."""
    line = LineDomain()
    return [(ChainDomain(), DISCRETE), (line, dataclasses.replace(line.spec, goal_embedding_size=16))]


def episodes_of(domain: Domain) -> list[Episode]:
    """Seven of each of two splits, with lengths of their own."""
    return evaluation_episodes(domain, SPLITS, 7, seed=0)


def test_actions_that_are_drawn_do_not_depend_on_what_runs_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are drawn by seeds, and the model reads on what was drawn; the best is something else."""
    domain = ChainDomain()
    outcomes = []
    for acting, num_envs in ((Acting("sample"), 3), (Acting("sample"), 14), (Acting("no_repeat"), 3), (Acting(), 3)):
        model = make_policy(DISCRETE, num_envs)
        model.acting = acting
        monkeypatch.setattr(LLMPolicy, "trainer", SimpleNamespace(datamodule=SimpleNamespace(seed=0)))
        outcomes.append([result.actions.tolist() for result in model.run_episodes(domain, episodes_of(domain))])
    assert outcomes[0] == outcomes[1]
    assert outcomes[0] != outcomes[2] != outcomes[3] != outcomes[0]


@pytest.mark.parametrize(("domain", "spec"), worlds(), ids=["discrete", "continuous"])
def test_every_action_is_that_of_reading_the_episode_so_far_without_a_cache(domain: Domain, spec: Spec) -> None:
    """Read as one rollout behind the prompt of generation, as in grounding, the model says the same at every step."""
    model, episodes = make_policy(spec, num_evaluation_envs=3), episodes_of(domain)
    results = model.run_episodes(domain, episodes)
    assert len({result.num_steps for result in results}) > 1  # some end earlier than others
    for result in results:
        instructed = result.episode.instructed
        rollout = domain.label_rollout(instructed, result.observations, result.actions, Source.REAL)
        batch = batch_rollouts([rollout], [generation_prompt(instructed.instruction)], GroundingTask.GENERATION)
        with torch.inference_mode():
            scores = model.codec.predict_action(read_rollouts(model.backbone, model.codec, batch).observation)
        expected = scores.argmax(-1) if spec.is_discrete else scores.clamp(-1, 1)
        np.testing.assert_allclose(result.actions, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize(("domain", "spec"), worlds(), ids=["discrete", "continuous"])
def test_an_episode_does_not_depend_on_those_beside_it(domain: Domain, spec: Spec) -> None:
    """All fourteen at once, two at a time, or one alone."""
    episodes = episodes_of(domain)
    at_once = make_policy(spec).run_episodes(domain, episodes)
    in_pairs = make_policy(spec, num_evaluation_envs=2).run_episodes(domain, episodes)
    alone = make_policy(spec).run_episodes(domain, episodes[3:4])
    for one, other in [*zip(at_once, in_pairs, strict=True), (at_once[3], alone[0])]:
        assert_same(one, other)


def test_it_takes_what_a_grounding_checkpoint_holds_and_says_how_long_that_was_trained() -> None:
    """Every weight by its name; results are filed under the updates of grounding; another backbone is refused."""
    model, grounded = make_policy(DISCRETE), grounded_llm(seed=1)
    checkpoint = {"global_step": 123}
    grounded.on_save_checkpoint(checkpoint)
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(grounded.state_dict())
    assert model.num_updates == 123
    assert torch.equal(model.codec.action_head.weight, grounded.codec.action_head.weight)
    checkpoint["backbone"]["frozen"] = "other weights"
    with pytest.raises(CheckpointError, match="the checkpoint is of another backbone: frozen"):
        model.on_load_checkpoint(checkpoint)


def test_at_least_one_episode_must_run() -> None:
    """The error names the option."""
    with pytest.raises(KalmError, match="num_evaluation_envs is 0"):
        make_policy(DISCRETE, num_evaluation_envs=0)


def assert_same(one: EpisodeResult, other: EpisodeResult) -> None:
    """The same steps, up to rounding."""
    assert one.num_steps == other.num_steps
    np.testing.assert_allclose(one.observations, other.observations, atol=1e-4)
    np.testing.assert_allclose(one.actions, other.actions, atol=1e-4)
