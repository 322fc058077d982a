"""Continuous actions, and observations most of whose numbers stand still: from the codec to imagined rollouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch

from kalm.core.validation import validate_rollout
from kalm.data.choice import RolloutFilter
from kalm.data.grounding_data import GroundingData, GroundingTasks
from kalm.data.language_batches import WorkItem
from kalm.data.rollout_sources import RealRollouts
from kalm.llm.grounding.grounded_llm import GroundedLLM
from kalm.llm.grounding.rollout_codec import RolloutCodec
from kalm.llm.imagination.generation import Reader
from kalm.llm.imagination.rollout_engine import ImaginationSettings, RolloutEngine
from kalm.store.writer import RolloutStoreWriter
from tests.llm.grounding.test_grounded_llm import LOSSES, trainer
from tests.llm.imagination.test_generation import made_of, work_item
from tests.llm.models import CONTINUOUS, grounded_llm, hand_made_batch, tiny_backbone
from tests.llm.parked_line import ABSENT, CONSTANT, PARKED, TREMBLING, ParkedLineDomain, where_actions_lead
from tests.llm.token_encoder import TokenEncoder

STILL = [ABSENT, CONSTANT, PARKED]


def parked_data(folder: Path) -> GroundingData:
    """300 rollouts of the line among resting things."""
    domain = ParkedLineDomain()
    writer = RolloutStoreWriter(folder / "real", domain.name, domain.spec, domain.plausibility_flags, {}, command="")
    writer.append("0", list(domain.collect(300, seed=0)))
    writer.finish()
    real = RealRollouts(str(folder / "real"), RolloutFilter.success)
    tasks = GroundingTasks(16, 8, 4, num_explanation_prompts=1)  # few rollouts, few updates
    return GroundingData(domain, TokenEncoder(), real, tasks=tasks, num_held_out=40, num_imagined=12)


@pytest.fixture(scope="module")
def grounded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny model grounded in them for a few seconds, with noise on what it reads."""
    folder = tmp_path_factory.mktemp("line")
    data = parked_data(folder)
    lightning.seed_everything(0, verbose=False)
    options = {"learning_rate": 5e-3, "warmup_updates": 20, "schedule_updates": 250, "observation_noise": 0.05}
    model = GroundedLLM(data.spec, tiny_backbone(), inner_size=32, **options)
    trainer(folder, max_steps=250).fit(model, datamodule=data)
    return model.eval(), data


def test_numbers_that_never_vary_neither_divide_by_zero_nor_explode(grounded: Any) -> None:
    """Statistics are finite, every loss small and finite, and the trembling of a thing at rest is no change."""
    model, data = grounded
    assert data.change_std[STILL].tolist() == [0, 0, 0]
    assert data.observation_std[[ABSENT, CONSTANT]].tolist() == [1, 1]
    assert data.observation_std[PARKED] > 0.3
    batch = data.batch(500)
    change = model.codec.change(batch.observation, batch.next_observation)
    assert (change[:, STILL] == 0).all()
    assert change[:, TREMBLING].abs().max() < 10
    losses = model.losses(batch)
    assert losses.keys() == LOSSES
    assert all(torch.isfinite(values).all() for values in losses.values())
    assert losses["next_observation_loss"].mean() < 0.3


def test_imagined_rollouts_leave_what_never_moves_where_it_is(grounded: Any) -> None:
    """To the last bit, however long the rollout; the walker moves about as its actions say, and meets its goals."""
    model, data = grounded
    items = [item for item in data.val_dataloader()[1].dataset if item.instructed.goal_split == "train"]
    rollouts = model.imagine(items)
    assert len(rollouts) == 12
    for rollout in rollouts:
        assert (rollout.observations[:, STILL] == rollout.observations[0, STILL]).all()
        np.testing.assert_allclose(rollout.observations[:, TREMBLING], 0.5, atol=0.01)
        assert validate_rollout(rollout, data.domain.spec) == []
    assert np.mean([rollout.is_success for rollout in rollouts]) >= 0.75
    errors = np.concatenate([r.observations[1:, :1] - where_actions_lead(r.observations, r.actions) for r in rollouts])
    assert np.abs(errors).mean() < 0.1


def test_a_world_unlike_the_data_is_read_without_exploding(grounded: Any) -> None:
    """A constant that is another, a thing at rest that is elsewhere: inputs stay within ten deviations."""
    model, data = grounded
    observation = data.batch(0).observation[:4].clone()
    observation[:, CONSTANT], observation[:, TREMBLING] = -1.0, -1.0
    # The trembling number is 150,000 standard deviations away.
    assert ((observation - data.observation_mean) / data.observation_std).abs().max() > 1e4
    moved = model.codec.encode_observation(observation)
    usual = model.codec.encode_observation(data.batch(0).observation[:4])
    assert moved.norm() < 20 * usual.norm()


def test_actions_are_learned_by_regression(grounded: Any) -> None:
    """Towards the end that the instruction names; the mean of the squared error is below that of always the mean."""
    model, data = grounded
    batch = data.batch(300)
    loss = model.losses(batch)["action_loss"]
    assert loss.mean() < 0.8 * batch.action.square().mean()


@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_noise_is_gaussian_of_the_temperature_and_clipped_to_the_space(temperature: float) -> None:
    """A head that always says (0.5, -0.95): the first number varies by the temperature, the second piles up at -1."""
    model = grounded_llm(CONTINUOUS)
    with torch.no_grad():
        model.codec.action_head.weight.zero_()
        model.codec.action_head.bias.copy_(torch.tensor([0.5, -0.95]))
    items = [work_item("go", np.zeros(5, dtype=np.float32), 10, seed) for seed in range(200)]
    made = made_of(Reader(model.backbone, 64), model, items, 64, temperature=temperature)
    actions = np.concatenate([entry.actions for entry in made])
    assert actions.dtype == np.float32
    assert np.abs(actions).max() <= 1
    inner = actions[:, 0][np.abs(actions[:, 0]) < 1]
    if temperature:
        # 0.5 / 0.3 deviations below the bound: the mean of what is not clipped is 0.469, its deviation 0.271
        assert inner.mean() == pytest.approx(0.469, abs=0.02)
        assert inner.std() == pytest.approx(0.271, abs=0.02)
        assert np.mean(actions[:, 1] == -1) == pytest.approx(0.434, abs=0.04)
    else:
        np.testing.assert_allclose(actions, np.tile([0.5, -0.95], (2000, 1)), atol=1e-6)


def test_an_out_of_reach_prediction_is_clipped_in_what_follows_too() -> None:
    """The model reads the action that was taken, not the one that it wished for."""
    model = grounded_llm(CONTINUOUS)
    domain, read = ParkedLineDomain(), []
    encode = model.codec.encode_action
    model.codec.encode_action = lambda action: (read.append(action), encode(action))[1]  # type: ignore[method-assign]
    with torch.no_grad():
        model.codec.action_head.bias.fill_(7.0)
        model.codec.action_head.weight.zero_()
    goal = domain.instructed_goals("train")[0]
    items = [WorkItem(goal, np.zeros(5, dtype=np.float32), 3, 0)]
    (rollout,) = RolloutEngine(model.backbone, model.codec, domain, ImaginationSettings(end_threshold=0.5)).imagine(
        items
    )
    assert (rollout.actions == 1).all()
    assert all((action == 1).all() for action in read)


def test_each_number_of_an_action_counts() -> None:
    """A change of either number of a continuous action changes what is read at it."""
    codec = RolloutCodec(CONTINUOUS, hidden_sizes=[8], inner_size=8)
    action = hand_made_batch(is_discrete=False).action[:1]
    for number in (0, 1):
        other = action.clone()
        other[0, number] += 0.1
        assert not torch.allclose(codec.encode_action(other), codec.encode_action(action))
