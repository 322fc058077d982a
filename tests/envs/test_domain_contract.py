"""Every domain under kalm/envs keeps the contract that learning relies on. Domains are found by looking, not listed."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import warnings
from itertools import islice
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import kalm.envs
from kalm.core.errors import DataError
from kalm.core.names import Source
from kalm.core.validation import validate_rollout
from kalm.envs.base import Domain, InstructedGoal


def domains() -> list[type[Domain]]:
    """Every concrete domain in a package under kalm/envs."""
    found = set()
    for module in pkgutil.iter_modules(kalm.envs.__path__):
        if module.ispkg:
            package = importlib.import_module(f"kalm.envs.{module.name}")
            members = (member for _, member in inspect.getmembers(package, inspect.isclass))
            found |= {m for m in members if issubclass(m, Domain) and not inspect.isabstract(m)}
    return sorted(found, key=lambda domain: domain.name)


@pytest.fixture(params=domains(), ids=lambda domain: domain.name, scope="module")
def domain(request: pytest.FixtureRequest) -> Domain:
    """Each domain with its defaults."""
    return request.param()


def some_of_each_task(domain: Domain, goal_split: str) -> list[InstructedGoal]:
    """The first instruction of every task of a split."""
    first: dict[str, InstructedGoal] = {}
    for instructed in domain.instructed_goals(goal_split):
        first.setdefault(domain.task(instructed.goal), instructed)
    return list(first.values())


def test_every_package_under_envs_has_a_domain() -> None:
    """The search finds one domain for each package, KALM's two among them."""
    packages = [module.name for module in pkgutil.iter_modules(kalm.envs.__path__) if module.ispkg]
    assert [domain.name for domain in domains()] == sorted(packages)
    assert {"clevr_robot", "metaworld"} <= set(packages)


def test_environment_passes_gymnasiums_checker(domain: Domain) -> None:
    """``check_env`` raises nothing."""
    env = gym.make(domain.env_id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # gymnasium advises on choices, such as non-symmetric boxes
        check_env(env.unwrapped, skip_render_check=True)
    env.close()


def test_spaces_of_environment_and_domain_agree(domain: Domain) -> None:
    """The environment acts and observes in the domain's spaces, which are flat."""
    env = gym.make(domain.env_id)
    assert env.observation_space == domain.observation_space
    assert env.action_space == domain.action_space
    assert domain.observation_space.shape is not None
    assert len(domain.observation_space.shape) == 1


def test_every_split_has_goals_that_round_trip_through_json(domain: Domain) -> None:
    """Goals are hashable and survive JSON; instructions are distinct sentences of the split asked for."""
    for goal_split in domain.goal_splits:
        _check_split(domain, goal_split)


def _check_split(domain: Domain, goal_split: str) -> None:
    instructed = domain.instructed_goals(goal_split)
    assert instructed == domain.instructed_goals(goal_split)
    assert {row.goal_split for row in instructed} == {goal_split}
    assert len({row.instruction for row in instructed}) == len(instructed) > 0
    for goal in {row.goal for row in instructed}:
        data = json.loads(json.dumps(goal.to_json()))
        assert domain.goal_from_json(data) == goal
        assert domain.task(goal)
        assert domain.max_steps(goal) >= 1


def test_no_instruction_is_in_two_splits(domain: Domain) -> None:
    """What a learner is tested on was not in its training sentences."""
    instructions = [
        row.instruction.casefold() for split in domain.goal_splits for row in domain.instructed_goals(split)
    ]
    assert len(set(instructions)) == len(instructions)


def test_reset_honours_its_options_and_starts_unsolved(domain: Domain) -> None:
    """``goal`` and ``instruction`` are taken, ``info`` says so, and success is yet to come."""
    env = gym.make(domain.env_id)
    rows = [row for split in domain.goal_splits for row in some_of_each_task(domain, split)]
    for instructed in rows:
        for goal in (instructed.goal, instructed.goal.to_json()):
            first, info = env.reset(seed=3, options={"goal": goal, "instruction": instructed.instruction})
            assert info["instruction"] == instructed.instruction
            assert not info["is_success"]
            assert not domain.success(instructed.goal, first)
        again, _ = env.reset(seed=4, options={"goal": instructed.goal, "observation": first})
        np.testing.assert_array_equal(again, first)


def test_goal_rules_are_batched(domain: Domain) -> None:
    """Success, reward and plausibility of a batch are those of its rows."""
    instructed = domain.instructed_goals(domain.training_split)[0]
    rollout = next(domain.collect(1, seed=0))
    before, after, action = rollout.observations[:-1], rollout.observations[1:], rollout.actions
    success = domain.success(instructed.goal, after, before, action)
    reward = domain.reward(instructed.goal, before, action, after)
    flags = domain.plausibility(before, action, after)
    assert success.shape == reward.shape == (len(rollout),)
    assert success.dtype == np.bool_
    assert set(flags) == set(domain.plausibility_flags)
    for step in range(len(rollout)):
        row = slice(step, step + 1)
        assert domain.success(instructed.goal, after[row], before[row], action[row])[0] == success[step]
        assert domain.reward(instructed.goal, before[row], action[row], after[row])[0] == reward[step]
        for name, flag in domain.plausibility(before[row], action[row], after[row]).items():
            assert flag[0] == flags[name][step]


def test_same_seed_gives_the_same_episode(domain: Domain) -> None:
    """Two environments under one seed agree in every observation, and another seed differs (R1, R2)."""
    seen = []
    for seed in (11, 11, 12):
        env = gym.make(domain.env_id)
        env.action_space.seed(5)
        observation, info = env.reset(seed=seed)
        observations = [observation]
        for _ in range(5):
            observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
            observations.append(observation)
            if terminated or truncated:
                break
        seen.append((info["instruction"], np.stack(observations)))
    assert seen[0][0] == seen[1][0]
    np.testing.assert_array_equal(seen[0][1], seen[1][1])
    assert not np.array_equal(seen[0][1][0], seen[2][1][0])


@pytest.mark.parametrize(("num_envs", "num_threads"), [(1, 1), (3, 1), (5, 2)])
def test_vector_environment_equals_single_ones(domain: Domain, num_envs: int, num_threads: int) -> None:
    """Each episode is that of the single environment, for any number of environments and threads."""
    seeds = [21 + row for row in range(num_envs)]
    chosen = [some_of_each_task(domain, split)[0] for split in domain.goal_splits]
    instructed = [chosen[row % len(chosen)] for row in range(num_envs)]
    goals, instructions = [i.goal for i in instructed], [i.instruction for i in instructed]
    env = domain.make_vector_env(num_envs, num_threads)
    assert env.metadata["autoreset_mode"] == gym.vector.AutoresetMode.DISABLED
    observations, info = env.reset(seed=seeds, options={"goals": goals, "instructions": instructions})
    assert list(info["instruction"]) == instructions
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(4)]
    steps = [env.step(action) for action in actions]
    for row in range(num_envs):
        single = gym.make(domain.env_id)
        first, _ = single.reset(seed=seeds[row], options={"goal": goals[row]})
        np.testing.assert_array_equal(observations[row], first)
        for action, (after, reward, terminated, truncated, info) in zip(actions, steps, strict=True):
            expected = single.step(action[row])
            np.testing.assert_array_equal(after[row], expected[0])
            assert (reward[row], terminated[row], truncated[row]) == expected[1:4]
            assert info["is_success"][row] == expected[4]["is_success"]
            if terminated[row] or truncated[row]:
                break


def test_collection_gives_valid_rollouts_that_depend_on_seed_and_number_alone(domain: Domain) -> None:
    """A later start or a smaller collection changes no rollout; all pass the store's validation."""
    rollouts = list(domain.collect(6, seed=9))
    assert len(rollouts) == 6
    for rollout in rollouts:
        assert rollout.source == Source.REAL
        assert rollout.goal_split == "train"
        assert validate_rollout(rollout, domain.spec) == []
    for part, expected in ((domain.collect(6, 9, first=4), rollouts[4:]), (domain.collect(2, 9), rollouts[:2])):
        for rollout, same in zip(part, expected, strict=True):
            assert rollout.instruction == same.instruction
            np.testing.assert_array_equal(rollout.observations, same.observations)
            np.testing.assert_array_equal(rollout.actions, same.actions)
    other = next(domain.collect(1, seed=10))
    assert not np.array_equal(other.observations[0], rollouts[0].observations[0])


def test_reset_seeds_of_a_collection_stay_clear_of_evaluation(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    """No rollout begins from a seed at or above the offset from which evaluation takes its own."""
    from kalm.envs.evaluation import EVALUATION_SEED_OFFSET

    used: list[int] = []
    real_make = type(domain).make_vector_env
    vector_class = type(real_make(domain, 1, 1))
    real_reset = vector_class.reset

    def reset(self: gym.vector.VectorEnv, *, seed: list[int], options: dict) -> tuple:
        used.extend(seed)
        return real_reset(self, seed=seed, options=options)

    monkeypatch.setattr(vector_class, "reset", reset)
    assert len(list(islice(domain.collect(20, seed=123), 20))) == 20
    assert len(used) == 20
    assert max(used) < EVALUATION_SEED_OFFSET


def test_draws_a_picture_without_gl(domain: Domain) -> None:
    """``draw`` gives an RGB picture that changes with the observation and with the instruction."""
    first, second = (rollout.observations[0] for rollout in domain.collect(2, seed=0))
    plain = domain.draw(first, size=96)
    assert plain.shape == (96, 96, 3)
    assert plain.dtype == np.uint8
    assert (plain != domain.draw(second, size=96)).any()
    assert (plain != domain.draw(first, "some words", size=96)).any()


def test_reads_a_users_goals(domain: Domain, tmp_path: Path) -> None:
    """A JSON-lines file of a user gives the goals it names, in order."""
    path = tmp_path / "goals.jsonl"
    wanted = [InstructedGoal(i.goal, "in my words", i.goal_split) for i in some_of_each_task(domain, "hard")]
    path.write_text("\n\n".join(json.dumps(row.to_json()) for row in wanted), encoding="utf-8")
    assert domain.load_instructed_goals(path) == wanted


def test_names_every_bad_line_of_a_users_goals(domain: Domain, tmp_path: Path) -> None:
    """One error lists each malformed line with its number."""
    path = tmp_path / "goals.jsonl"
    good = json.dumps(domain.instructed_goals(domain.training_split)[0].to_json())
    no_goal = json.dumps({"instruction": "x", "goal_split": "train"})
    bad_split = json.dumps({**json.loads(good), "goal_split": "tough"})
    bad_goal = json.dumps({**json.loads(good), "goal": {"goal": "nonsense"}})
    path.write_text("\n".join([good, "{", no_goal, bad_split, bad_goal]), encoding="utf-8")
    with pytest.raises(DataError) as error:
        domain.load_instructed_goals(path)
    message = str(error.value)
    assert "line 1:" not in message
    assert all(f"line {number}:" in message for number in (2, 3, 4, 5))
    assert "rephrase" in message, "an unknown split is answered with the known ones"


def test_a_relabelled_rollout_is_what_the_simulator_does(domain: Domain) -> None:
    """Replayed from its relabelled start, a rollout passes through its relabelled observations and meets its goal."""
    relabellings = domain.relabellings
    goal_of = {row.instruction: row.goal for row in domain.instructed_goals(domain.training_split)}
    env = gym.make(domain.env_id)
    for index, rollout in enumerate(rollout for rollout in domain.collect(10, seed=5) if rollout.is_success):
        if not relabellings:
            break
        relabelling = relabellings[(index * 37 + 1) % len(relabellings)]
        instruction = relabelling.text(rollout.instruction)
        expected = rollout.observations[:, relabelling.observation_order]
        start = {"observation": expected[0], "goal": goal_of[instruction], "instruction": instruction}
        seen, info = [env.reset(seed=0, options=start)[0]], {}
        for action in relabelling.action_of[rollout.actions]:
            observation, _, _, _, info = env.step(action)
            seen.append(observation)
        np.testing.assert_allclose(np.stack(seen), expected, atol=1e-3)
        assert info["is_success"]
    env.close()


def test_relabellings_are_permutations_of_instructions_too(domain: Domain) -> None:
    """No entry and no action gets lost, and every training instruction becomes a training instruction."""
    instructions = {row.instruction for row in domain.instructed_goals(domain.training_split)}
    for relabelling in domain.relabellings:
        assert sorted(relabelling.observation_order) == list(range(domain.observation_space.shape[0]))
        assert sorted(relabelling.action_of) == list(range(domain.action_space.n))
    for relabelling in list(domain.relabellings)[::17]:
        assert {relabelling.text(instruction) for instruction in instructions} == instructions
