"""Decision Transformer on a language model: numbers worked by hand, what a prediction sees, returns, acting."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch

from kalm.core.errors import CheckpointError, DataError, KalmError
from kalm.core.names import Source
from kalm.core.specs import Spec, vector_spec
from kalm.data.evaluation_episodes import EvaluationEpisodes
from kalm.data.language_batches import GroundingBatch, GroundingTask, batch_rollouts
from kalm.data.return_conditioned_data import ReturnConditionedData
from kalm.data.rollout_sources import RealRollouts
from kalm.envs.base import Domain
from kalm.envs.evaluation import evaluation_episodes
from kalm.envs.simulation import EpisodeResult
from kalm.language.prompts import generation_prompt
from kalm.llm.acting.llm_decision_transformer import LLMDecisionTransformer
from tests.chain_domain import RIGHT, CellGoal, ChainDomain
from tests.data.rollouts import write_store
from tests.line_domain import LineDomain, SpotGoal
from tests.llm.acting.test_llm_policy import assert_same
from tests.llm.backbones.test_two_backbones import two_backbones
from tests.llm.grounding.test_grounded_llm import trainer
from tests.llm.models import CONTINUOUS, DISCRETE, chain_grounding_data, grounded_llm, hand_made_batch, tiny_backbone
from tests.llm.small_models import unloaded_backbone
from tests.llm.token_encoder import TokenEncoder

SPLITS = ("train", "easy")
LINE = vector_spec(observation_size=1, action_size=1, is_discrete=False, goal_embedding_size=16)


class PaidCell(CellGoal):
    """A cell with a reward of 1 for every step to the right, beside that for arriving."""

    def reward(self, observation, action, next_observation):  # type: ignore[no-untyped-def]
        """By action and the observation after it."""
        return 1.0 * (action == RIGHT) + super().reward(observation, action, next_observation)


class PaidSpot(SpotGoal):
    """A spot with a reward for every step to the right, beside that for arriving."""

    def reward(self, observation, action, next_observation):  # type: ignore[no-untyped-def]
        """By action and the observation after it."""
        return action[..., 0] + super().reward(observation, action, next_observation)


class PaidChain(ChainDomain):
    """The chain with such rewards."""

    goal_class = PaidCell


class PaidLine(LineDomain):
    """The line with such rewards."""

    goal_class = PaidSpot


WORLDS = [(PaidChain(), DISCRETE), (PaidLine(), LINE)]
IN_BOTH_WORLDS = pytest.mark.parametrize(("domain", "spec"), WORLDS, ids=["discrete", "continuous"])


def untrained(spec: Spec, **options: Any) -> LLMDecisionTransformer:
    """A model whose output layers are loud enough for it to do different things; it asks for a return of 3."""
    model = LLMDecisionTransformer(spec, tiny_backbone(), inner_size=16, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    model.target_return.fill_(3.0)
    return model.eval()


def with_constant_action(model: LLMDecisionTransformer, output: list[float]) -> LLMDecisionTransformer:
    """The model with predictions that no input changes."""
    with torch.no_grad():
        model.codec.action_head.weight.zero_()
        model.codec.action_head.bias.copy_(torch.tensor(output))
    return model


def good_and_bad(domain: Domain, folder: Path, **options: Any) -> ReturnConditionedData:
    """150 rollouts that walk to their goal and 150 that walk away from it, in turn; a reward only for arriving."""
    if not (folder / "real").exists():
        kinds = [list(domain.collect(150, seed=seed, mistake_rate=rate)) for seed, rate in ((0, 0.0), (1, 1.0))]  # type: ignore[call-arg]
        write_store(folder / "real", [rollout for pair in zip(*kinds, strict=True) for rollout in pair], domain=domain)
    real, evaluation = RealRollouts(str(folder / "real")), EvaluationEpisodes(6, 12, ["train"])
    sizes = {"batch_size": 16, "num_held_out": 20}
    return ReturnConditionedData(domain, TokenEncoder(), real, evaluation=evaluation, **{**sizes, **options})


def test_discrete_loss_of_a_known_model() -> None:
    """Probabilities 3/4 and 1/4: ln 4/3 = 0.287682 for action 0 and ln 4 = 1.386294 for action 1, at every step."""
    batch = hand_made_batch()
    losses = with_constant_action(untrained(DISCRETE), [math.log(3), 0.0]).losses(batch)
    assert losses.keys() == {"action_loss"}
    assert set(batch.action.tolist()) == {0, 1}
    torch.testing.assert_close(
        losses["action_loss"], torch.where(batch.action == 0, 0.287682, 1.386294), atol=1e-5, rtol=0
    )


def test_continuous_loss_of_a_known_model() -> None:
    """It always says (0.5, -0.5): the mean of the two squared distances from what was done."""
    batch = hand_made_batch(is_discrete=False)
    loss = with_constant_action(untrained(CONTINUOUS), [0.5, -0.5]).losses(batch)["action_loss"]
    first, second = batch.action.unbind(-1)
    torch.testing.assert_close(loss, ((first - 0.5) ** 2 + (second + 0.5) ** 2) / 2)


def changed_at(batch: GroundingBatch, name: str, step: int) -> GroundingBatch:
    """The batch with another value at one step."""
    values = getattr(batch, name).clone()
    values[step] = 1 - values[step]
    return batch._replace(**{name: values})


@pytest.mark.parametrize(("name", "first"), [("return_to_go", 1), ("observation", 1), ("action", 2)])
@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_a_prediction_sees_the_past_its_state_and_its_return(spec: Spec, name: str, first: int) -> None:
    """Step 1 of a rollout of three: its return and state count from there on, its action from step 2 on.

    Nothing counts in other rollouts, though the second one shares the first one's prompt and row.
    """
    model, batch = untrained(spec), hand_made_batch(spec.is_discrete)
    with torch.no_grad():
        difference = (model.predict(changed_at(batch, name, 1)) - model.predict(batch)).abs().amax(-1)
    is_seen = torch.arange(8) >= first
    is_seen[3:] = False
    assert (difference[is_seen] > 1e-4).all()
    assert (difference[~is_seen] < 1e-5).all()


def test_every_part_that_is_used_learns_and_no_other() -> None:
    """Encoders, action head and backbone get gradients; what would predict states and ends is frozen."""
    model = untrained(DISCRETE)
    model.losses(hand_made_batch())["action_loss"].sum().backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    for part in ("observation_encoder", "action_encoder", "action_head", "backbone.decoder", "prompt_projection"):
        assert any(part in name for name in touched), part
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name.split(".")[1] for name in frozen} == {"change_head", "end_head"}


def test_what_evaluation_needs_travels_with_the_weights(tmp_path: Path) -> None:
    """Half of 280 rollouts return 1, half 0: the 0.4-quantile is 0, the 0.9-quantile 1; one more number is scaled."""
    for quantile, expected in ((0.4, 0.0), (0.9, 1.0)):
        data = good_and_bad(ChainDomain(), tmp_path)
        model = LLMDecisionTransformer(
            data.spec, tiny_backbone(), inner_size=8, target_return_quantile=quantile, schedule_updates=60
        )
        trainer(tmp_path, max_steps=1).fit(model, datamodule=data)
        saved = model.state_dict()
        assert saved["target_return"].item() == expected
    statistics = data.rollout_statistics
    assert saved["codec.observation_mean"].tolist() == [*data.observation_mean, statistics.return_to_go_mean]
    assert saved["codec.observation_std"].tolist() == [*data.observation_std, statistics.return_to_go_std]


@pytest.fixture(scope="module", params=[ChainDomain(), LineDomain()], ids=["discrete", "continuous"])
def trained(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model that learned from good and bad rollouts for a few seconds, with its data and its loss before."""
    folder = tmp_path_factory.mktemp("trained")
    data = good_and_bad(request.param, folder)
    lightning.seed_everything(0, verbose=False)
    options = {"learning_rate": 5e-3, "warmup_updates": 20, "schedule_updates": 150}
    model = LLMDecisionTransformer(data.spec, tiny_backbone(), inner_size=32, **options)
    run = trainer(folder, max_steps=150, limit_val_batches=1.0, val_check_interval=150, check_val_every_n_epoch=None)
    before = float(model.losses(data.batch(1000))["action_loss"].detach().mean())
    run.fit(model, datamodule=data)
    return model.eval(), data, run, before


def test_training_lowers_the_loss(trained: Any) -> None:
    """Goal and return say which way was walked, so little is left but how far a step of the line was (0.03)."""
    model, data, run, before = trained
    after = float(model.losses(data.batch(1000))["action_loss"].detach().mean())
    assert after < 0.2 * before
    assert float(run.callback_metrics["eval/held_out_action_loss"]) < 0.2 * before
    if data.spec.is_discrete:
        assert float(run.callback_metrics["eval/held_out_action_match"]) > 0.9


def test_it_does_what_led_to_the_return_that_is_asked_for(trained: Any) -> None:
    """Asked for 1 it arrives, asked for 0 it walks away: of twelve episodes, eleven at least either way."""
    model, data, run, _ = trained
    successes = []
    for wanted in (1.0, 0.0):
        model.target_return.fill_(wanted)
        run.test(model, datamodule=data, verbose=False)
        successes.append(sum(result.is_success for result in model.episode_results))
    model.target_return.fill_(1.0)
    assert len(model.episode_results) == 12
    assert successes[0] >= 11
    assert successes[1] <= 1


def test_validation_runs_episodes_too(trained: Any) -> None:
    """Six for the one split, after the held-out rollouts."""
    model, data, run, _ = trained
    run.validate(model, datamodule=data, verbose=False)
    assert len(model.episode_results) == 6


@IN_BOTH_WORLDS
def test_every_action_is_that_of_reading_the_episode_so_far_without_a_cache(domain: Domain, spec: Spec) -> None:
    """Read as one rollout with what was still wanted at each step, 3 less the rewards, the model says the same."""
    model, episodes = untrained(spec, num_evaluation_envs=3), evaluation_episodes(domain, SPLITS, 7, seed=0)
    earned = 0.0
    for result in model.run_episodes(domain, episodes):
        instructed = result.episode.instructed
        rollout = domain.label_rollout(instructed, result.observations, result.actions, Source.REAL)
        batch = batch_rollouts([rollout], [generation_prompt(instructed.instruction)], GroundingTask.GENERATION)
        before = np.cumsum([0.0, *rollout.rewards[:-1]])
        earned += np.abs(before).sum()
        with torch.inference_mode():
            said = model.predict(batch._replace(return_to_go=torch.from_numpy(3.0 - before).float()))
        expected = said.argmax(-1) if spec.is_discrete else said.clamp(-1, 1)
        np.testing.assert_allclose(result.actions, expected.numpy(), atol=1e-4)
    assert earned > 0


@IN_BOTH_WORLDS
def test_an_episode_does_not_depend_on_those_beside_it(domain: Domain, spec: Spec) -> None:
    """All fourteen at once, two at a time, or one alone."""
    episodes = evaluation_episodes(domain, SPLITS, 7, seed=0)
    runs: list[list[EpisodeResult]] = [
        untrained(spec, num_evaluation_envs=num_envs).run_episodes(domain, chosen)
        for num_envs, chosen in ((64, episodes), (2, episodes), (64, episodes[3:4]))
    ]
    at_once, in_pairs, alone = runs
    for one, other in [*zip(at_once, in_pairs, strict=True), (at_once[3], alone[0])]:
        assert_same(one, other)


def test_resumed_training_equals_uninterrupted(tmp_path: Path) -> None:
    """12 updates in one go against 7, a checkpoint and 5: weights, statistics, moments and learning rate."""
    states = []
    for stops in ([12], [7, 12]):
        path: Path | None = None
        for stop in stops:
            data = good_and_bad(ChainDomain(), tmp_path)
            model = LLMDecisionTransformer(
                data.spec, tiny_backbone(), inner_size=16, warmup_updates=3, schedule_updates=12
            )
            run = trainer(tmp_path, max_steps=stop)
            run.fit(model, datamodule=data, ckpt_path=path, weights_only=True)
            path = tmp_path / f"{len(stops)}-{stop}.ckpt"
            run.save_checkpoint(path)
        assert model.num_updates == 12
        states.append(torch.load(path, weights_only=True))
    whole, resumed = states
    assert whole["state_dict"].keys() == resumed["state_dict"].keys()
    assert all(torch.equal(value, resumed["state_dict"][name]) for name, value in whole["state_dict"].items())
    moments = [state["optimizer_states"][0]["state"] for state in states]
    assert all(torch.equal(moments[0][key]["exp_avg"], moments[1][key]["exp_avg"]) for key in moments[0])
    assert whole["lr_schedulers"] == resumed["lr_schedulers"]


def test_the_checkpoint_says_how_long_it_was_trained(tmp_path: Path) -> None:
    """A test files its results under the updates of training."""
    data = good_and_bad(ChainDomain(), tmp_path)
    checkpoint: dict[str, Any] = {"global_step": 123}
    model = untrained(DISCRETE)
    model.on_save_checkpoint(checkpoint)
    model.on_load_checkpoint(checkpoint)
    trainer(tmp_path).test(model, datamodule=data, verbose=False)
    assert model.num_updates == 123


def test_weights_of_something_else_are_refused() -> None:
    """A grounded model's, another domain's, and those on top of another language model; the difference is named."""
    grounded: dict[str, Any] = {"global_step": 1}
    grounded_llm().on_save_checkpoint(grounded)
    with pytest.raises(CheckpointError, match="holds no policy of kalm"):
        untrained(DISCRETE).on_load_checkpoint(grounded)
    own: dict[str, Any] = {"global_step": 1}
    untrained(DISCRETE).on_save_checkpoint(own)
    with pytest.raises(CheckpointError, match="action: .*'kind': 'discrete'.* -> .*'kind': 'vector'"):
        untrained(CONTINUOUS).on_load_checkpoint(own)
    own["backbone"]["frozen"] = "another"
    with pytest.raises(CheckpointError, match="another backbone: frozen: 'another'"):
        untrained(DISCRETE).on_load_checkpoint(own)


def test_data_without_returns_are_refused(tmp_path: Path) -> None:
    """The error names the data module that has them."""
    with pytest.raises(KalmError, match="got GroundingData; .*ReturnConditionedData"):
        trainer(tmp_path, max_steps=1).fit(untrained(DISCRETE), datamodule=chain_grounding_data(tmp_path))


@pytest.mark.parametrize(
    "options",
    [{"target_return_quantile": 1.1}, {"num_evaluation_envs": 0}, {"warmup_updates": 5, "schedule_updates": 5}],
    ids=lambda options: next(iter(options)),
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    """The error names the option and its value."""
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        untrained(DISCRETE, **options)


def test_separate_models_for_states_and_actions_are_refused() -> None:
    """Next states are not predicted, so the second model would be weights that nothing reads."""
    with pytest.raises(KalmError, match="backbone is TwoBackbones; it must be one language model"):
        LLMDecisionTransformer(DISCRETE, two_backbones())


def test_a_number_that_is_not_finite_stops_training(tmp_path: Path) -> None:
    """The loss is named, with the update."""
    data = good_and_bad(ChainDomain(), tmp_path)
    data.batch = lambda index: hand_made_batch()._replace(return_to_go=torch.full((8,), torch.nan))  # type: ignore[method-assign]
    model = LLMDecisionTransformer(data.spec, tiny_backbone(), inner_size=8)
    with pytest.raises(DataError, match="train/action_loss is nan at update 0"):
        trainer(tmp_path, max_steps=2).fit(model, datamodule=data)


def test_a_pretrained_language_model_with_adapters_learns_and_acts(small_models: Any, tmp_path: Path) -> None:
    """The loss falls to a tenth; its checkpoint lacks what is frozen, and on a fresh base acts as before."""
    data = good_and_bad(ChainDomain(), tmp_path)

    def on_llama() -> LLMDecisionTransformer:
        lightning.seed_everything(0, verbose=False)
        options = {"learning_rate": 5e-3, "warmup_updates": 3, "schedule_updates": 120}
        made = unloaded_backbone(small_models["llama"], tuning="lora")
        return LLMDecisionTransformer(data.spec, made, inner_size=32, **options)

    model, run = on_llama(), trainer(tmp_path, max_steps=120)
    model.configure_model()
    before = float(model.losses(data.batch(1000))["action_loss"].detach().mean())
    run.fit(model, datamodule=data)
    assert float(model.eval().losses(data.batch(1000))["action_loss"].detach().mean()) < before / 10
    run.save_checkpoint(tmp_path / "it.ckpt")
    held = torch.load(tmp_path / "it.ckpt", weights_only=True)["state_dict"]
    trained_parts = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in held if name.startswith("backbone.")} == {
        name for name in trained_parts if name.startswith("backbone.")
    }
    fresh, episodes = on_llama(), evaluation_episodes(data.domain, SPLITS, 3, seed=0)
    trainer(tmp_path).test(fresh, datamodule=data, ckpt_path=tmp_path / "it.ckpt", weights_only=True, verbose=False)
    results = [each.eval().run_episodes(data.domain, episodes) for each in (model, fresh)]
    for one, other in zip(*results, strict=True):
        assert_same(one, other)
    assert np.mean([result.is_success for result in fresh.episode_results]) >= 0.9
