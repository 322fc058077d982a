"""What the base owns: counting, target networks, finite numbers, logging per source, normalisation, evaluation."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from kalm.core.errors import DataError, KalmError
from kalm.envs.agent_grid import AgentGrid
from kalm.envs.base import Domain
from kalm.rl.bc import BC
from kalm.rl.cql import CQL
from kalm.runs.acting import Acting
from kalm.runs.loggers import MetricsFileLogger
from tests.corridor_domain import CorridorDomain
from tests.rl.constant_networks import make_constant
from tests.rl.helpers import CONTINUOUS, DISCRETE, GRID, FixedData, chain_data, stacked_batch, trainer


def fit_fixed(policy: Any, folder: Path, batch: Any = None, num_steps: int = 1, **options: Any) -> Any:
    """Train on the same minibatches at every step."""
    batch = stacked_batch(DISCRETE) if batch is None else batch
    fitted = trainer(folder, num_steps * batch.shape[0], **options)
    fitted.fit(policy, FixedData(DISCRETE, batch))
    return fitted


class Start(Callback):
    """Remembers the parameters with which training begins."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Copy them."""
        self.parameters = {name: value.detach().clone() for name, value in pl_module.named_parameters()}


def copies(module: torch.nn.Module) -> list[Tensor]:
    """All parameters as they are now."""
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_the_trainer_counts_updates(tmp_path: Path) -> None:
    """Three training steps of two updates each are six."""
    fitted = fit_fixed(BC(DISCRETE), tmp_path, num_steps=3)
    assert fitted.global_step == 6
    assert fitted.fit_loop.epoch_loop.total_batch_idx == 2


def test_updates_that_training_steps_cannot_hit_are_refused_at_the_start(tmp_path: Path) -> None:
    """Five updates in steps of two: the error names a number that works."""
    with pytest.raises(KalmError, match=r"max_steps is 5, .*updates_per_step 2; use 4 updates"):
        trainer(tmp_path, 5).fit(BC(DISCRETE), FixedData(DISCRETE, stacked_batch(DISCRETE)))


def test_targets_follow_at_their_rate_and_interval(tmp_path: Path) -> None:
    """Rate 1/2, every second update: after two updates half of the way from the start to the critic of update two."""
    policy = CQL(DISCRETE, target_update_rate=0.5, target_update_interval=2, learning_rate=1e-2)
    start = Start()
    fit_fixed(policy, tmp_path, callbacks=[start])
    before_all = [value for name, value in start.parameters.items() if name.startswith("target_critic.")]
    for before, target, critic in zip(before_all, copies(policy.target_critic), copies(policy.critic), strict=True):
        assert not torch.equal(before, critic)
        torch.testing.assert_close(target, 0.5 * before + 0.5 * critic)


def test_targets_stand_still_between_their_updates(tmp_path: Path) -> None:
    """Every third update, and two are made."""
    policy = CQL(DISCRETE, target_update_interval=3, learning_rate=1e-2)
    start = Start()
    fit_fixed(policy, tmp_path, callbacks=[start])
    assert all(torch.equal(start.parameters[f"critic.{n}"], p) for n, p in policy.target_critic.named_parameters())


def starts(folder: Path, data_seed: int, global_seed: int) -> dict[str, Tensor]:
    """The parameters with which a run begins, whatever random numbers were drawn before."""
    torch.manual_seed(global_seed)
    start, data = Start(), FixedData(DISCRETE, stacked_batch(DISCRETE))
    data.seed = data_seed
    trainer(folder, 2, [start]).fit(CQL(DISCRETE), data)
    return start.parameters


def test_the_first_weights_are_a_function_of_the_datas_seed(tmp_path: Path) -> None:
    """Not of what else drew random numbers; another seed gives others; targets begin as copies of their networks."""
    one, same, other = starts(tmp_path, 5, 0), starts(tmp_path, 5, 1), starts(tmp_path, 6, 0)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
    critic = [name for name in one if name.startswith("critic.")]
    assert len(critic) == 6
    assert all(torch.equal(one[name], one[f"target_{name}"]) for name in critic)


def test_weights_that_were_loaded_are_kept(tmp_path: Path) -> None:
    """Training begins with them, and a second fit with those of the first."""
    policy, start = BC(DISCRETE), Start()
    chosen = {name: torch.full_like(value, 0.01) for name, value in policy.policy.state_dict().items()}
    policy.load_state_dict({**policy.state_dict(), **{f"policy.{name}": value for name, value in chosen.items()}})
    fit_fixed(policy, tmp_path, callbacks=[start])
    assert all((value == 0.01).all() for value in start.parameters.values())
    before = copies(policy)
    fit_fixed(policy, tmp_path, callbacks=[start])
    assert all(torch.equal(*pair) for pair in zip(start.parameters.values(), before, strict=True))


def test_a_value_that_is_no_number_is_named_with_its_rollout(tmp_path: Path) -> None:
    """Update 2, row 4 is transition 10, which is step 1 of rollout 3."""
    batch = stacked_batch(DISCRETE)
    batch["next", "reward"][1, 4] = float("nan")
    with pytest.raises(DataError, match=r"next reward is not finite in rollout 3, step 1 \(real\)"):
        fit_fixed(CQL(DISCRETE), tmp_path, batch)


def test_a_loss_that_is_no_number_is_named_with_its_update(tmp_path: Path) -> None:
    """Finite data, a loss that is not: the second step's first update is number 3; nothing earlier stopped the run."""
    policy = CQL(DISCRETE)

    class Overflow(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                torch.nn.init.constant_(policy.critic.output.bias, float("inf"))

    with pytest.raises(
        DataError, match=r"(td|conservative)_loss is (inf|nan) at update 3, first for rollout 0, step 0"
    ):
        fit_fixed(policy, tmp_path, num_steps=2, callbacks=[Overflow()])


def test_a_gradient_that_is_no_number_is_named(tmp_path: Path) -> None:
    """Finite data and losses, a gradient that is not: what the gradient spoilt is the parameter it belongs to."""
    policy = BC(DISCRETE)
    policy.policy.output.bias.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(DataError, match=r"the gradient of policy\.output\.bias was not finite"):
        fit_fixed(policy, tmp_path, stacked_batch(DISCRETE, num_updates=1))


def test_losses_are_logged_overall_and_for_each_source(tmp_path: Path) -> None:
    """The logged means are those of the losses before the only update; rows alternate between real and imagined."""
    policy, batch = BC(DISCRETE), stacked_batch(DISCRETE, num_updates=1)
    seen: dict[str, Tensor] = {}

    class Before(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            output = policy.policy(batch["observation"][0], policy.goal_embeddings.expand(6, -1))
            seen["loss"] = -output.log_softmax(-1)[torch.arange(6), batch["action"][0]].detach()

    metrics = fit_fixed(policy, tmp_path, batch, callbacks=[Before()]).callback_metrics
    loss = seen["loss"]
    assert metrics["train/imitation_loss"] == pytest.approx(float(loss.mean()), abs=1e-6)
    assert metrics["train/real/imitation_loss"] == pytest.approx(float(loss[::2].mean()), abs=1e-6)
    assert metrics["train/imaginary/imitation_loss"] == pytest.approx(float(loss[1::2].mean()), abs=1e-6)


def test_a_source_that_is_absent_is_not_logged(tmp_path: Path) -> None:
    """A mean over nothing would be no number."""
    batch = stacked_batch(DISCRETE)
    batch["source"].fill_(0)
    metrics = fit_fixed(BC(DISCRETE), tmp_path, batch).callback_metrics
    assert "train/real/imitation_loss" in metrics
    assert not [name for name in metrics if name.startswith("train/imaginary")]


def test_the_x_axis_of_logged_values_is_the_update_counter(tmp_path: Path) -> None:
    """Six steps of two updates, logged at every third step: at updates 6 and 12."""
    logger = MetricsFileLogger(tmp_path / "metrics.csv")
    fit_fixed(BC(DISCRETE), tmp_path, num_steps=6, logger=logger, log_every_n_steps=3)
    with (tmp_path / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["6", "12"]
    assert float(rows[1]["train/imitation_loss"]) < float(rows[0]["train/imitation_loss"])


class CountSteps(Callback):
    """A callback that hooks into every update."""

    def __init__(self) -> None:
        """Start at zero."""
        self.norms: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Remember the norm of the gradient that is about to be used."""
        self.norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in pl_module.policy.parameters()])))


def test_hooks_around_an_update_are_called_and_change_nothing(tmp_path: Path) -> None:
    """The direct way and Lightning's own way make the same updates; only the latter calls hooks, and is taken then."""
    direct, hooked, count = BC(DISCRETE), BC(DISCRETE), CountSteps()
    fit_fixed(direct, tmp_path, num_steps=3)
    fitted = fit_fixed(hooked, tmp_path, num_steps=3, callbacks=[count])
    assert len(count.norms) == fitted.global_step == 6
    assert all(torch.equal(*pair) for pair in zip(copies(direct), copies(hooked), strict=True))


def test_the_gradient_is_clipped_to_its_norm(tmp_path: Path) -> None:
    """Unclipped it is longer than 1e-3 here; clipped never."""
    for clip_norm, is_clipped in ((None, False), (1e-3, True)):
        count = CountSteps()
        fit_fixed(BC(DISCRETE, gradient_clip_norm=clip_norm), tmp_path, callbacks=[count])
        assert all((norm <= 1e-3 * 1.0001) == is_clipped for norm in count.norms)


def test_inputs_are_normalised_with_the_datas_statistics(tmp_path: Path) -> None:
    """A policy that normalises acts on (x, g) as one that does not acts on ((x - mean) / std, (g - mean) / std)."""
    data = chain_data(tmp_path)
    policy = BC(data.spec)
    bare = BC(data.spec, normalize_observation=False, normalize_goal_embedding=False)
    trainer(tmp_path, 5).fit(policy, data)
    trainer(tmp_path, 5).fit(bare, data)
    assert bare.observation_normalizer.mean.tolist() == [0.0] * 5
    assert torch.equal(bare.goal_embeddings, data.goal_embeddings)
    assert torch.equal(policy.observation_normalizer.mean, data.observation_mean)
    torch.testing.assert_close(policy.goal_embeddings.mean(0), torch.zeros(16), atol=1e-6, rtol=0)
    assert policy.goal_embeddings.square().mean().sqrt() == pytest.approx(1.0)
    assert [float(one.observation_normalizer.limit) for one in (policy, bare)] == [10.0, float("inf")]
    bare.policy.load_state_dict(policy.policy.state_dict())
    observation, goal = torch.rand(8, 5), data.goal_embeddings[torch.arange(8) % 6]
    normalised = (observation - data.observation_mean) / data.observation_std
    assert torch.equal(policy(observation, goal), bare(normalised, policy.goal_embeddings[torch.arange(8) % 6]))


def test_a_policy_for_other_sizes_than_the_datas_is_refused(tmp_path: Path) -> None:
    """The error shows both."""
    with pytest.raises(DataError, match=r"built for Spec\(.*but the data have Spec"):
        trainer(tmp_path, 5).fit(BC(DISCRETE), chain_data(tmp_path))


def test_a_grid_without_an_agent_is_refused(tmp_path: Path) -> None:
    """It has the right shape, but the world does not say that its planes are tiles and an agent."""

    class Picture(CorridorDomain):
        @property
        def agent_grid(self) -> AgentGrid:
            return Domain.agent_grid.__get__(self)  # type: ignore[no-any-return]

    data = FixedData(GRID, stacked_batch(GRID))
    data.domain = Picture()
    with pytest.raises(DataError, match="corridor is no grid that one agent walks on"):
        trainer(tmp_path, 2).fit(BC(GRID), data)


def test_bare_data_loaders_are_refused(tmp_path: Path) -> None:
    """Goal embeddings and statistics come from the data module."""
    loader = FixedData(DISCRETE, stacked_batch(DISCRETE)).train_dataloader()
    with pytest.raises(KalmError, match="got no data module"):
        trainer(tmp_path, 2).fit(BC(DISCRETE), train_dataloaders=loader)


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_sizes": []},
        {"learning_rate": 0.0},
        {"discount": 1.1},
        {"target_update_rate": 0.0},
        {"target_update_interval": 0},
        {"gradient_clip_norm": 0.0},
        {"observation_limit": 0.0},
        {"ema_rate": 0.0},
        {"num_seeds": 0},
        {"num_evaluation_envs": 0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_out_of_range_are_refused_at_construction(options: dict[str, Any]) -> None:
    """The error names the option and its value."""
    name, value = next(iter(options.items()))
    with pytest.raises(KalmError, match=re.escape(f"{name} is {value}; it must be")):
        BC(DISCRETE, **options)


def test_continuous_actions_are_not_drawn() -> None:
    """They have no softmax."""
    with pytest.raises(KalmError, match="acting.rule is sample; it must be argmax where actions are continuous"):
        BC(CONTINUOUS, acting=Acting("sample"))


def test_actions_are_drawn_from_the_softmax_over_the_temperature(tmp_path: Path) -> None:
    """Logits 0 and ln 3: one in four goes left at temperature 1, one in ten at 1/2 (1 to 3^2), none at 0.

    Drawn anew the same are drawn, by another seed of the run others; outside of episodes the best is taken.
    """

    def actions(temperature: float, seed: int = 0) -> list[int]:
        data = chain_data(tmp_path, evaluation__num_test_episodes=100, seed=seed)
        acting = Acting("sample", temperature=temperature) if temperature else Acting()
        policy = BC(data.spec, acting=acting)
        make_constant(policy.policy, [0.0, math.log(3)])
        trainer(tmp_path, -1).test(policy, data, verbose=False)
        assert policy.act(torch.eye(5), torch.zeros(5, data.spec.goal_embedding_size)).tolist() == [1] * 5
        return [action for result in policy.episode_results for action in result.actions.tolist()]

    for temperature, share in ((1.0, 0.25), (0.5, 0.1), (0.0, 0.0)):
        found = actions(temperature)
        assert len(found) > 1000
        assert found.count(0) / len(found) == pytest.approx(share, abs=0.03)
    assert actions(1.0) == actions(1.0) != actions(1.0, seed=1)


@pytest.mark.parametrize("rule", ["argmax", "sample", "no_repeat"])
def test_evaluation_does_not_depend_on_how_many_episodes_run_side_by_side(rule: Any, tmp_path: Path) -> None:
    """Through the trainer: one environment against seven."""
    data = chain_data(tmp_path)
    policy = BC(data.spec, acting=Acting(rule))
    trainer(tmp_path, 20).fit(policy, data)
    outcomes = []
    for num_envs in (1, 7):
        policy.num_evaluation_envs = num_envs
        trainer(tmp_path, -1).test(policy, data, verbose=False)
        outcomes.append([(r.episode, r.is_success, r.actions.tolist()) for r in policy.episode_results])
    assert len(outcomes[0]) == 80
    assert outcomes[0] == outcomes[1]


def test_validation_leaves_training_as_it_is(tmp_path: Path) -> None:
    """With a validation every second step, and without any."""
    outcomes = []
    for options in ({"limit_val_batches": 0}, {"limit_val_batches": 1, "val_check_interval": 2}):
        lightning.seed_everything(0)
        data = chain_data(tmp_path)
        policy = CQL(data.spec, hidden_sizes=[32])
        trainer(tmp_path, 20, **options).fit(policy, data)
        outcomes.append(copies(policy))
    assert policy.episode_results
    assert all(torch.equal(*pair) for pair in zip(*outcomes, strict=True))


def gradient_of(folder: Path, batch: Any, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The first update's gradient of BC's output bias, and what was logged."""
    seen: list[Tensor] = []

    class Gradient(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            seen.append(pl_module.policy.output.bias.grad.clone())

    lightning.seed_everything(0)
    fitted = fit_fixed(BC(DISCRETE, **options), folder, batch, callbacks=[Gradient()])
    return seen[0], fitted.callback_metrics


def test_losses_are_weighed_by_source_and_by_transition(tmp_path: Path) -> None:
    """Rows alternate between real and imagined. Weights w make the gradient the mean of w times each row's own.

    Counting real rows 1/2 and imagined rows 0, and row 2, which is real, 4 times as much, is the same as weights
    1/2, 0, 2, 0, 1/2, 0. The gradient is linear in the weights, so it is a sum of gradients with one weight each.
    What is logged does not change.
    """
    batch = stacked_batch(DISCRETE, num_updates=1)
    plain, metrics = gradient_of(tmp_path, batch)
    rows = []
    for row in range(6):
        batch["weight"] = torch.zeros(1, 6)
        batch["weight"][0, row] = 1.0
        rows.append(gradient_of(tmp_path, batch)[0])
    torch.testing.assert_close(torch.stack(rows).sum(0), plain)
    batch["weight"] = torch.tensor([[1.0, 1.0, 4.0, 1.0, 1.0, 1.0]])
    weighed, weighed_metrics = gradient_of(tmp_path, batch, source_weights={"real": 0.5, "imaginary": 0.0})
    torch.testing.assert_close(weighed, 0.5 * rows[0] + 2.0 * rows[2] + 0.5 * rows[4])
    losses = [name for name in metrics if name.endswith("loss")]
    assert len(losses) == 6
    assert all(metrics[name] == weighed_metrics[name] for name in losses)


@pytest.mark.parametrize("weights", [{"dreamt": 1.0}, {"real": -1.0}], ids=str)
def test_source_weights_out_of_range_are_refused(weights: dict[str, float]) -> None:
    """Unknown sources and negative weights."""
    with pytest.raises(KalmError, match="source_weights is .*; it must be numbers of 0 or more for real and imaginary"):
        BC(DISCRETE, source_weights=weights)


def test_mixed_precision_updates_the_weights_it_computes_with(tmp_path: Path) -> None:
    """Two updates in one training step equal two in two steps, so no copy in half precision outlives its update.

    The direct way is taken; weights stay in full precision; the result is near that of full precision, not equal.
    """
    outcomes, last_loss = {}, {}
    for name, updates_per_step, precision in (("one", 2, "bf16-mixed"), ("two", 1, "bf16-mixed"), ("full", 2, 32)):
        lightning.seed_everything(0)
        policy = BC(DISCRETE, learning_rate=0.05)
        batch = torch.cat([stacked_batch(DISCRETE, num_updates=1)] * updates_per_step)
        fitted = fit_fixed(policy, tmp_path, batch, num_steps=4 // updates_per_step, precision=precision)
        last_loss[name] = fitted.callback_metrics["train/imitation_loss"].item()
        assert policy.gradient_step.is_direct
        outcomes[name] = copies(policy)
    assert {weight.dtype for weight in outcomes["one"]} == {torch.float32}
    assert all(torch.equal(*pair) for pair in zip(outcomes["one"], outcomes["two"], strict=True))
    assert not all(torch.equal(*pair) for pair in zip(outcomes["one"], outcomes["full"], strict=True))
    assert last_loss["one"] == pytest.approx(last_loss["full"], rel=0.05)
