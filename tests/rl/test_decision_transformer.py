"""Decision Transformer: numbers worked by hand, what a prediction sees, padding, conditioning, evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from kalm.core.errors import CheckpointError, DataError, KalmError
from kalm.core.specs import Spec
from kalm.rl.decision_transformer import DecisionTransformer
from kalm.rl.training.batches import WindowBatch
from tests.rl.helpers import CONTINUOUS, DISCRETE, FixedData, chain_data, loss_batch, stacked_batch, trainer


def small(spec: Spec, **options: Any) -> DecisionTransformer:
    """Windows of four steps, one narrow layer, no dropout."""
    defaults = {"context_length": 4, "embedding_size": 16, "hidden_sizes": [16], "dropout": 0.0}
    return DecisionTransformer(spec, **{**defaults, **options})


def with_constant_output(policy: DecisionTransformer, output: list[float]) -> DecisionTransformer:
    """The policy with predictions that no input changes."""
    nn.init.zeros_(policy.action_head.weight)
    with torch.no_grad():
        policy.action_head.bias.copy_(torch.tensor(output))
    return policy


def outputs(policy: DecisionTransformer, batch: WindowBatch) -> Tensor:
    """Every step's prediction."""
    return policy._outputs(batch.observation, batch.goal_embedding, batch.action, batch.return_to_go, batch.step)


def test_discrete_loss_of_a_known_policy() -> None:
    """Probabilities (1/2, 1/4, 1/4): ln 2 = 0.693147 for action 0, ln 4 = 1.386294 for the others, 0 for padding."""
    policy = with_constant_output(small(DISCRETE), [math.log(2), 0.0, 0.0])
    batch = loss_batch(policy)
    loss = policy.losses(batch)["imitation_loss"]
    assert batch.padding_mask.sum(1).tolist() == [4, 3, 2, 1, 4, 3]
    assert len(set(batch.action[batch.padding_mask].tolist())) == 3
    expected = torch.where(batch.action == 0, 0.693147, 1.386294) * batch.padding_mask
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)


def test_continuous_loss_of_a_known_policy() -> None:
    """The policy answers tanh(0) = 0 everywhere, so the loss is the mean square of the recorded action."""
    policy = with_constant_output(small(CONTINUOUS), [0.0, 0.0, 0.0])
    batch = loss_batch(policy)
    expected = batch.action.square().mean(-1) * batch.padding_mask
    torch.testing.assert_close(policy.losses(batch)["imitation_loss"], expected)


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
@pytest.mark.parametrize(
    ("change", "first"),
    [
        (lambda b: {"observation": b.observation + _at_step_two(b.observation)}, 2),
        (lambda b: {"return_to_go": b.return_to_go + _at_step_two(b.return_to_go)}, 2),
        (lambda b: {"action": _other_action(b.action)}, 3),
        (lambda b: {"goal_embedding": b.goal_embedding + 1}, 0),
        (lambda b: {"step": b.step + 1}, 0),
    ],
    ids=["observation", "return", "action", "goal", "steps"],
)
def test_a_prediction_sees_the_past_and_not_its_own_action(
    spec: Spec, change: Callable[[WindowBatch], dict[str, Tensor]], first: int
) -> None:
    """Changing step 2 changes predictions 2 and 3; its action only prediction 3; the goal and the times change all."""
    torch.manual_seed(0)
    policy = small(spec)
    batch = loss_batch(policy)
    difference = (outputs(policy, replace(batch, **change(batch))) - outputs(policy, batch)).abs().amax(dim=(0, 2))
    assert difference[:first].tolist() == [0.0] * first
    assert (difference[first:] > 1e-5).all()


def _at_step_two(values: Tensor) -> Tensor:
    result = torch.zeros_like(values)
    result[:, 2] = 1
    return result


def _other_action(action: Tensor) -> Tensor:
    changed = action.clone()
    changed[:, 2] = (action[:, 2] + 1) % 3 if action.dtype == torch.int64 else -action[:, 2]
    return changed


def test_padding_changes_no_real_step() -> None:
    """Other numbers in the padding: the losses and their gradients stay."""
    torch.manual_seed(0)
    policy = small(DISCRETE)
    batch = loss_batch(policy)
    is_padding = ~batch.padding_mask
    other = replace(
        batch,
        observation=torch.where(is_padding.unsqueeze(-1), 9.0, batch.observation),
        return_to_go=torch.where(is_padding, 9.0, batch.return_to_go),
        action=torch.where(is_padding, (batch.action + 1) % 3, batch.action),
    )
    gradients = []
    for one in (batch, other):
        policy.zero_grad()
        policy.losses(one)["imitation_loss"].sum().backward()
        gradients.append([parameter.grad.clone() for parameter in policy.parameters() if parameter.grad is not None])
    assert torch.equal(policy.losses(batch)["imitation_loss"], policy.losses(other)["imitation_loss"])
    for one, another in zip(*gradients, strict=True):
        torch.testing.assert_close(one, another, atol=1e-6, rtol=0)


def test_the_mean_weight_of_real_steps_is_one() -> None:
    """Six windows of 4, 3, 2, 1, 4, 3 real steps of 24: 24 / 17 each, 0 for padding; given weights multiply."""
    policy = small(DISCRETE)
    stacked = stacked_batch(DISCRETE, num_updates=1, sequence_length=4)
    policy.goal_embeddings = torch.zeros(1, 4)
    (plain,) = policy.minibatches(stacked, torch.zeros(1, 6, 0), None)
    torch.testing.assert_close(plain.weight, plain.padding_mask * (24 / 17))
    given = torch.rand(1, 6, 4)
    (weighed,) = policy.minibatches(stacked, torch.zeros(1, 6, 0), given)
    torch.testing.assert_close(weighed.weight, plain.weight * given[0])


def test_policies_side_by_side_take_the_mean_over_their_own_steps() -> None:
    """Two policies with windows of 4 + 3 + 2 and 1 + 4 + 3 real steps of 12: 12 / 9 and 12 / 8."""
    policy = small(DISCRETE, num_seeds=2)
    stacked = stacked_batch(DISCRETE, num_updates=1, sequence_length=4)
    policy.goal_embeddings = torch.zeros(1, 4)
    (batch,) = policy.minibatches(stacked, torch.zeros(1, 6, 0), None)
    assert batch.weight[:3].unique().tolist() == pytest.approx([0.0, 12 / 9])
    assert batch.weight[3:].unique().tolist() == pytest.approx([0.0, 12 / 8])


def test_padding_is_not_logged(tmp_path: Path) -> None:
    """Means are over real steps: over all, over real rollouts and over imagined ones, each worked out by counting."""
    policy = with_constant_output(small(DISCRETE), [math.log(2), 0.0, 0.0])
    policy.load_state_dict(policy.state_dict())  # weights that were loaded are kept
    stacked = stacked_batch(DISCRETE, num_updates=1, sequence_length=4)
    fitted = trainer(tmp_path, max_steps=1)
    fitted.fit(policy, FixedData(DISCRETE, stacked))
    action, is_step = stacked["action"][0], stacked["padding_mask"][0]
    rows_of = {"train": slice(None), "train/real": slice(0, None, 2), "train/imaginary": slice(1, None, 2)}
    for prefix, rows in rows_of.items():
        chosen = action[rows][is_step[rows]].tolist()
        expected = sum(0.693147 if a == 0 else 1.386294 for a in chosen) / len(chosen)
        assert fitted.callback_metrics[f"{prefix}/imitation_loss"].item() == pytest.approx(expected, abs=1e-5)


class Gradients(Callback):
    """Remembers the gradients of the only update."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Copy them."""
        self.values = [parameter.grad.clone() for parameter in pl_module.parameters()]


def test_the_update_follows_the_mean_over_real_steps(tmp_path: Path) -> None:
    """A batch without its padding, cut to windows of no padding, has the same gradient.

    Twelve windows of 4 steps of which 2 are real; their halves, padded nowhere, need windows of 2 steps.
    """
    stacked = stacked_batch(DISCRETE, num_updates=1, num_rows=12, sequence_length=4)
    stacked["padding_mask"] = (torch.arange(4) < 2).expand(1, 12, 4).clone()
    halves = stacked[:, :, :2].clone()
    gradients = []
    for context_length, batch in ((4, stacked), (2, halves)):
        seen = Gradients()
        policy = small(DISCRETE, context_length=context_length, gradient_clip_norm=None)
        trainer(tmp_path, max_steps=1, callbacks=[seen]).fit(policy, FixedData(DISCRETE, batch))
        gradients.append(seen.values)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    assert max(gradient.abs().max() for gradient in gradients[0]) > 1e-2


def test_a_step_that_is_no_number_is_named(tmp_path: Path) -> None:
    """Update 1, window 4, step 2; windows have 4 steps and rollouts of helpers 3, so it is in rollout 6."""
    stacked = stacked_batch(DISCRETE, sequence_length=4)
    stacked["observation"][0, 4, 2] = float("nan")
    with pytest.raises(DataError, match=r"observation is not finite in rollout 6, step 2 \(real\)"):
        trainer(tmp_path, max_steps=2).fit(small(DISCRETE), FixedData(DISCRETE, stacked))


def test_transitions_instead_of_windows_are_refused(tmp_path: Path) -> None:
    """The error names both numbers and what to set."""
    data = chain_data(tmp_path)
    with pytest.raises(DataError, match="reads windows of 20 steps, but data.sequence_length is 1; set"):
        trainer(tmp_path, 5).fit(DecisionTransformer(data.spec), data)


def test_rollouts_beyond_the_last_time_step_are_refused(tmp_path: Path) -> None:
    """Rollouts of up to 20 steps, ten of which have an embedding."""
    policy = small(DISCRETE, max_timesteps=10)
    with pytest.raises(DataError, match="max_timesteps is 10, but a rollout has 20 steps"):
        trainer(tmp_path, 2).fit(policy, FixedData(DISCRETE, stacked_batch(DISCRETE, sequence_length=4)))


def test_a_quantile_of_the_returns_is_asked_for(tmp_path: Path) -> None:
    """Returns -1, -0.8, ..., 1: their 0.75-quantile is 0.5; it is saved with the weights, and so is what normalises."""
    policy = small(DISCRETE, target_return_quantile=0.75)
    trainer(tmp_path, 2).fit(policy, FixedData(DISCRETE, stacked_batch(DISCRETE, sequence_length=4)))
    saved = policy.state_dict()
    assert saved["target_return"].item() == pytest.approx(0.5)
    assert (saved["return_normalizer.mean"].item(), saved["return_normalizer.std"].item()) == (0.5, 2.0)
    assert saved["last_step"].item() == 19


def test_it_does_what_led_to_the_return_that_is_asked_for(tmp_path: Path) -> None:
    """Action 0 earned -1 and action 2 earned 1, equally often: asked for -1 it does 0, for 1 it does 2."""
    policy = small(DISCRETE, learning_rate=3e-3, warmup_updates=0)
    stacked = stacked_batch(DISCRETE, num_updates=50, num_rows=16, sequence_length=4)
    stacked["action"] = torch.where(torch.rand(stacked.shape, generator=torch.Generator().manual_seed(1)) < 0.5, 0, 2)
    stacked["return_to_go"] = stacked["action"] - 1.0
    trainer(tmp_path, 150).fit(policy, FixedData(DISCRETE, stacked))
    batch = loss_batch(policy)
    for wanted in (-1.0, 1.0):
        policy.target_return.fill_(wanted)
        action = policy.act(batch.observation[:, 0], batch.goal_embedding)
        assert action.tolist() == [int(wanted) + 1] * 6


def trained_on_the_chain(folder: Path) -> tuple[DecisionTransformer, Any]:
    """A few updates, so that actions vary."""
    data = chain_data(folder, sequence_length=4, evaluation__goal_splits=["train", "hard"])
    policy = small(data.spec, learning_rate=1e-3, warmup_updates=0)
    trainer(folder, 20).fit(policy, data)
    return policy, data


def test_evaluation_remembers_the_episode(tmp_path: Path) -> None:
    """Every action of every episode is the one that the whole history up to it gives, worked out afresh.

    Four steps are seen. Episodes last up to 12 steps and so do rollouts, so steps count as they are.
    """
    policy, data = trained_on_the_chain(tmp_path)
    trainer(tmp_path, -1).test(policy, data, verbose=False)
    assert int(policy.last_step) == 11
    assert max(result.num_steps for result in policy.episode_results) == 12
    for result in policy.episode_results:
        goal, observation = result.episode.instructed.goal, torch.from_numpy(result.observations).float()
        action = torch.from_numpy(result.actions)
        rewards = [
            float(goal.reward(*(o[None] for o in (a, b, c)))[0])
            for a, b, c in zip(result.observations, result.actions, result.observations[1:], strict=False)
        ]
        wanted = policy.target_return - torch.tensor([0.0, *rewards]).cumsum(0)
        embedding = data.encoder.encode([result.episode.instructed.instruction])
        for now in range(result.num_steps):
            past = slice(max(0, now - 3), now + 1)
            output = policy._outputs(
                policy.observation_normalizer(observation[past]).unsqueeze(0),
                policy.goal_normalizer(embedding),
                action[past].unsqueeze(0),
                policy.return_normalizer(wanted[past]).unsqueeze(0),
                torch.arange(past.start, past.stop).unsqueeze(0),
            )
            assert output[0, -1].argmax().item() == action[now]


def test_the_return_that_is_wanted_is_normalised_in_evaluation(tmp_path: Path) -> None:
    """Returns of mean 1/2 and deviation 1/4, 1 is wanted: the network reads 2 at the first step of each episode."""
    policy, data = trained_on_the_chain(tmp_path)
    policy.return_normalizer.set_statistics(torch.tensor([0.5]), torch.tensor([0.25]))
    policy.target_return.fill_(1.0)
    read: list[Tensor] = []
    policy.return_token.register_forward_hook(lambda module, inputs, output: read.append(inputs[0][:, 0, 0]))
    trainer(tmp_path, -1).test(policy, data, verbose=False)
    assert read[0].unique().tolist() == [2.0]


def test_evaluation_does_not_depend_on_how_many_episodes_run_side_by_side(tmp_path: Path) -> None:
    """One environment against seven."""
    policy, data = trained_on_the_chain(tmp_path)
    outcomes = []
    for num_envs in (1, 7):
        policy.num_evaluation_envs = num_envs
        trainer(tmp_path, -1).test(policy, data, verbose=False)
        outcomes.append([(r.episode, r.is_success, r.actions.tolist()) for r in policy.episode_results])
    assert len(outcomes[0]) == 40
    assert outcomes[0] == outcomes[1]


def test_no_more_steps_are_kept_than_the_longest_rollout_has(tmp_path: Path) -> None:
    """Rollouts of two steps and a context of four: at the fifth step the policy sees two, as in training."""
    policy, data = trained_on_the_chain(tmp_path)
    policy.last_step.fill_(1)
    lengths = []
    policy.transformer.register_forward_hook(lambda module, inputs, output: lengths.append(inputs[0].shape[1]))
    trainer(tmp_path, -1).test(policy, data, verbose=False)
    assert set(lengths) == {6}


def test_the_first_action_of_an_episode_is_that_of_no_history(tmp_path: Path) -> None:
    """``act`` on the first observation."""
    policy, data = trained_on_the_chain(tmp_path)
    trainer(tmp_path, -1).test(policy, data, verbose=False)
    results = policy.episode_results
    observation = torch.stack([torch.from_numpy(result.observations[0]).float() for result in results])
    embedding = data.encoder.encode([result.episode.instructed.instruction for result in results])
    assert policy(observation, embedding).tolist() == [result.actions[0] for result in results]


def test_weights_of_another_context_are_refused() -> None:
    """A policy that was trained on windows of four steps has not learned to read eight."""
    checkpoint: dict[str, Any] = {"global_step": 0}
    small(DISCRETE).on_save_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match="context_length.*4"):
        small(DISCRETE, context_length=8).on_load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "options",
    [
        {"context_length": 1},
        {"num_heads": 0},
        {"embedding_size": 15, "num_heads": 2},
        {"dropout": 1.0},
        {"max_timesteps": 3},
        {"target_return_quantile": 1.1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    """The error names the option and its value."""
    name, value = next(iter(options.items()))
    with pytest.raises(KalmError, match=f"{name} is {value}; it must be"):
        small(DISCRETE, **options)
