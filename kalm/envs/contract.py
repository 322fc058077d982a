"""Whether a world keeps the contract that learning relies on: each problem a sentence, for tests and for ``doctor``."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env

from kalm.core.goal import Goal, InstructedGoal
from kalm.core.validation import validate_rollout
from kalm.envs.base import Domain
from kalm.envs.vector_env import SingleEnv

Problems = Iterator[str]

_NUM_STEPS = 5  # of a random walk
_NUM_SEEDS = 12  # some of which must differ
_NUM_ROLLOUTS = 6  # collected
_SYMMETRY_TOLERANCE = 1e-3  # of an observation's numbers


def check_domain(domain: Domain) -> list[str]:
    """What is wrong with a world, of any spaces: goals, environments, expert, drawing, symmetries, paraphrases."""
    problems: list[str] = []
    for check in (
        _check_goals,
        _check_environment,
        _check_resets,
        _check_seeds,
        _check_episodes,
        _check_rows,
        _check_copies,
        _check_rules,
        _check_collection,
        _check_drawing,
        _check_symmetries,
        _check_paraphrases,
    ):
        try:
            problems.extend(check(domain))
        except Exception as error:  # a world can fail in every way; each is a finding, and the other checks go on
            about = check.__name__.removeprefix("_check_")
            problems.append(f"{about}: {type(error).__name__}: {' '.join(str(error).split())}")
    return problems


def _check_goals(domain: Domain) -> Problems:
    split_of: dict[str, str] = {}
    for split in domain.goal_splits:
        rows = domain.instructed_goals(split)
        if not rows:
            yield f"goals: the split {split!r} has no instruction"
        if rows != domain.instructed_goals(split):
            yield f"goals: instructed_goals({split!r}) is not the same when it is asked again"
        for row in rows:
            told = f"goals: {row.instruction!r} of {split!r}"
            if row.goal_split != split:
                yield f"{told} says that it is of the split {row.goal_split!r}"
            if not row.instruction.strip():
                yield f"{told} is blank"
            source = domain.sentences_from.get(split, split)
            if (other := split_of.setdefault(row.instruction.casefold(), source)) != source:
                yield f"{told} is in the split {other!r} too; what a learner is tested on must not be told in training"
        if len({row.instruction for row in rows}) < len(rows):
            yield f"goals: the split {split!r} has an instruction twice"
        for goal in dict.fromkeys(row.goal for row in rows):
            if not isinstance(goal, domain.goal_class):
                yield f"goals: {goal!r} is no {domain.goal_class.__name__}, which is the domain's goal_class"
            if domain.goal_from_json(json.loads(json.dumps(goal.to_json()))) != goal:
                yield f"goals: {goal!r} is another goal after to_json and goal_from_json"
            if not goal.task or goal.max_steps < 1:
                yield f"goals: {goal!r} has the task {goal.task!r} and max_steps {goal.max_steps}"
            if goal.explained_by(""):
                yield f"goals: {goal!r} is explained by an empty text"
    for split, source in domain.unseen_splits.items():
        if split not in domain.goal_splits or source not in domain.learning_splits:
            yield f"goals: unseen_splits has {split!r} for {source!r}; these must be a split and one for learning"
        elif _goals_of(domain, split) != _goals_of(domain, source):
            yield f"goals: the split {split!r} has not the goals of {source!r}, which it shall ask for in other words"


def _goals_of(domain: Domain, split: str) -> set[Goal]:
    return {row.goal for row in domain.instructed_goals(split)}


def _check_environment(domain: Domain) -> Problems:
    env = SingleEnv(domain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # gymnasium advises on choices, such as non-symmetric boxes
        check_env(env, skip_render_check=True)
    env.close()
    with closing(domain.make_vector_env(1)) as envs:
        if envs.metadata.get("autoreset_mode") != gym.vector.AutoresetMode.DISABLED:
            yield "environment: the vectorised one resets ended episodes by itself"


def _check_resets(domain: Domain) -> Problems:
    env = SingleEnv(domain)
    for row in (row for split in domain.goal_splits for row in _one_of_each_task(domain, split)):
        for goal in (row.goal, row.goal.to_json()):
            told = {"goal": goal, "goal_split": row.goal_split}
            first, info = env.reset(seed=3, options={**told, "instruction": row.instruction})
            if info["instruction"] != row.instruction:
                yield f"resets: the instruction given was {row.instruction!r}, and info says {info['instruction']!r}"
            if info["is_success"] or row.goal.success(first):
                yield f"resets: an episode for {row.goal!r} begins with the goal met"
        again, _ = env.reset(seed=4, options={"goal": row.goal, "observation": first})
        if not _same(again, first):
            yield f"resets: an episode for {row.goal!r} that shall begin from an observation shows another one"
    env.close()


def _check_seeds(domain: Domain) -> Problems:
    env = SingleEnv(domain)
    if not _equal_steps(_walk(env, 11), _walk(env, 11)):
        yield "seeds: two episodes under one seed and the same actions differ"
    if _are_alike([env.reset(seed=seed)[0] for seed in range(_NUM_SEEDS)]):
        yield f"seeds: episodes under {_NUM_SEEDS} seeds all begin alike"
    env.close()


def _check_episodes(domain: Domain) -> Problems:
    """Ends, rewards and verdicts of whole episodes are those of the goal."""
    env = SingleEnv(domain)
    for row in (domain.instructed_goals(split)[0] for split in domain.goal_splits):
        goal, told = row.goal, f"episodes: of {row.goal!r}"
        before, _ = env.reset(seed=5, options={"goal": goal, "goal_split": row.goal_split})
        env.action_space.seed(5)
        for number in range(1, goal.max_steps + 1):
            action = env.action_space.sample()
            after, reward, terminated, truncated, info = env.step(action)
            step = [np.asarray(part)[None] for part in (before, action, after)]
            if not np.isclose(reward, goal.reward(*step)[0], rtol=1e-6):
                yield f"{told}, step {number} earns {reward}, and the goal says {goal.reward(*step)[0]}"
            is_success = bool(goal.success(step[2], step[0], step[1])[0])
            if (terminated, info["is_success"]) != (is_success, is_success):
                yield f"{told}, step {number} is terminated {terminated}, and the goal says {is_success}"
            if truncated != (number == goal.max_steps and not terminated):
                yield f"{told}, step {number} of {goal.max_steps} is truncated {truncated}, terminated {terminated}"
            before = after
            if terminated or truncated:
                break
    env.close()


def _check_rows(domain: Domain) -> Problems:
    """An episode is the same alone and beside others."""
    chosen = [_one_of_each_task(domain, split)[0] for split in domain.goal_splits]
    for num_envs, num_threads in ((1, 1), (3, 1), (5, 2)):
        seeds, rows = range(21, 21 + num_envs), [chosen[row % len(chosen)] for row in range(num_envs)]
        envs = domain.make_vector_env(num_envs, num_threads)
        options = {"goals": [row.goal for row in rows], "goal_splits": [row.goal_split for row in rows]}
        seen, info = envs.reset(seed=seeds, options=options)
        envs.action_space.seed(0)
        actions = [envs.action_space.sample() for _ in range(_NUM_STEPS)]
        steps = [(seen, np.zeros(num_envs), *np.zeros((2, num_envs), np.bool_), info), *map(envs.step, actions)]
        for row, (seed, instructed) in enumerate(zip(seeds, rows, strict=True)):
            single = SingleEnv(domain)
            told = {"goal": instructed.goal, "goal_split": instructed.goal_split}
            alone = _walk(single, seed, told, [action[row] for action in actions])
            single.close()
            together = [(o[row], r[row], t[row], u[row], i["is_success"][row]) for o, r, t, u, i in steps]
            if not _equal_steps(alone, together[: len(alone)]):
                yield f"rows: the episode in row {row} of {num_envs} is not what it is alone"
        envs.close()


def _check_copies(domain: Domain) -> Problems:
    """Copied environments go on where they were."""
    env, envs = SingleEnv(domain), domain.make_vector_env(2)
    env.reset(seed=1)
    envs.reset(seed=1)
    env.action_space.seed(1)
    envs.action_space.seed(1)
    for original in (env, envs):
        original.step(original.action_space.sample())
        other = copy.deepcopy(original)  # by what pickle goes by too
        action = original.action_space.sample()
        expected = original.step(action)
        if not all(_same(*pair) for pair in zip(other.step(action)[:4], expected[:4], strict=True)):
            yield f"copies: a deep copy of {type(original).__name__} goes on otherwise than the original"
        other.close()
        original.close()


def _check_rules(domain: Domain) -> Problems:
    """What a batch is told is what each of its rows is told."""
    goal = domain.instructed_goals(domain.training_split)[0].goal
    env = SingleEnv(domain)
    env.action_space.seed(2)
    actions = [env.action_space.sample() for _ in range(_NUM_STEPS)]
    seen = [step[0] for step in _walk(env, 2, {"goal": goal}, actions)]
    env.close()
    before, after, action = np.array(seen[:-1]), np.array(seen[1:]), np.array(actions[: len(seen) - 1])

    def told(rows: slice) -> dict[str, Any]:
        marked = domain.invalid(before[rows], action[rows], after[rows])
        return {
            "success": goal.success(after[rows], before[rows], action[rows]),
            "reward": goal.reward(before[rows], action[rows], after[rows]),
            **domain.plausibility(before[rows], action[rows], after[rows]),
            **({} if marked is None else {"invalid": marked}),
        }

    batch, rows = told(slice(None)), [told(slice(row, row + 1)) for row in range(len(action))]
    flags = sorted(batch.keys() - {"success", "reward", "invalid"})
    if flags != sorted(domain.plausibility_flags):
        yield f"rules: plausibility marks {flags}, and plausibility_flags are {domain.plausibility_flags}"
    for name, values in batch.items():
        if np.shape(values) != (len(action),) or (name != "reward" and values.dtype != np.bool_):
            yield f"rules: {name} of {len(action)} steps has shape {np.shape(values)}, type {np.asarray(values).dtype}"
        elif not _same(values, np.concatenate([row[name] for row in rows])):
            yield f"rules: {name} of a batch is not that of its rows"


def _check_collection(domain: Domain) -> Problems:
    if type(domain).expert is Domain.expert and type(domain).collect is Domain.collect:
        return
    rollouts = list(domain.collect(_NUM_ROLLOUTS, seed=9))
    if len(rollouts) != _NUM_ROLLOUTS:
        yield f"collection: {_NUM_ROLLOUTS} rollouts were asked for, and {len(rollouts)} came"
    for number, rollout in enumerate(rollouts):
        if rollout.goal and rollout.goal_split != domain.training_split:
            yield f"collection: rollout {number} is of the split {rollout.goal_split!r}"
        for problem in validate_rollout(rollout, domain.spec):
            yield f"collection: rollout {number}: {problem}"
    later, fewer = list(domain.collect(_NUM_ROLLOUTS, 9, first=4)), list(domain.collect(2, 9))
    for rollout, same in zip(later + fewer, rollouts[4:] + rollouts[:2], strict=True):
        if not (_same(rollout.observations, same.observations) and _same(rollout.actions, same.actions)):
            yield "collection: a rollout depends on more than the seed and its number"
    if _are_alike([np.concatenate([own.observations for own in domain.collect(2, seed)]) for seed in range(3)]):
        yield "collection: three seeds give the same rollouts"


def _check_drawing(domain: Domain) -> Problems:
    env = SingleEnv(domain)
    seen = [env.reset(seed=seed)[0] for seed in range(_NUM_SEEDS)]
    env.close()
    pictures = [domain.draw(observation, size=96) for observation in seen]
    if pictures[0].shape != (96, 96, 3) or pictures[0].dtype != np.uint8:
        yield f"drawing: a picture of 96 pixels has shape {pictures[0].shape}, type {pictures[0].dtype}"
    if _are_alike(pictures) or _same(pictures[0], domain.draw(seen[0], "some words", size=96)):
        yield "drawing: pictures do not change with the observation and the instruction"


def _check_symmetries(domain: Domain) -> Problems:
    """A rollout under a symmetry is what the simulator does; sentences stay sentences of the training split."""
    goal_of = {row.instruction: row.goal for row in domain.instructed_goals(domain.training_split)}
    symmetries = list(domain.symmetries)
    for number, symmetry in enumerate(symmetries):
        places = sorted(symmetry.observation_order.tolist())
        if places != list(range(len(places))):
            yield f"symmetries: number {number} loses numbers of an observation"
        is_discrete = isinstance(domain.action_space, gym.spaces.Discrete)
        if is_discrete and sorted(symmetry.action_of.tolist()) != list(range(len(symmetry.action_of))):
            yield f"symmetries: number {number} loses actions"
        if number % 17 == 0 and {symmetry.text(text) for text in goal_of} != set(goal_of):
            yield f"symmetries: number {number} makes sentences that are not of the training split"
    env = SingleEnv(domain)
    for number, rollout in enumerate(domain.collect(10, seed=5) if symmetries else ()):
        chosen = (number * 37 + 1) % len(symmetries)
        symmetry, actions = symmetries[chosen], rollout.actions
        instruction = symmetry.text(rollout.instruction)
        expected = rollout.observations[:, symmetry.observation_order] * symmetry.signs
        taken = symmetry.action_of[actions] if is_discrete else symmetry.action_of * actions
        options = {"observation": expected[0], "goal": goal_of[instruction], "instruction": instruction}
        steps = _walk(env, 0, options, list(taken))
        seen = np.stack([step[0] for step in steps])
        if len(seen) != len(expected) or np.abs(seen - expected).max() > _SYMMETRY_TOLERANCE:
            yield f"symmetries: number {chosen} of a rollout is not what the simulator does"
        elif steps[-1][4] != rollout.is_success:
            yield f"symmetries: number {chosen} of a rollout meets its goal {steps[-1][4]}, before {rollout.is_success}"
    env.close()


def _check_paraphrases(domain: Domain) -> Problems:
    """Other words for a goal are the same every time, and none of them are those that the test keeps."""
    kept = {
        row.instruction.casefold(): split for split in domain.unseen_splits for row in domain.instructed_goals(split)
    }
    for split in domain.learning_splits:
        for row in {row.goal: row for row in domain.instructed_goals(split)}.values():
            told = list(domain.paraphrases(row))
            if told != list(domain.paraphrases(row)):
                yield f"paraphrases: those of {row.instruction!r} are not the same when they are asked for again"
            for text in told:
                if (other := kept.get(text.casefold())) is not None:
                    yield f"paraphrases: {text!r} is in the split {other!r}, whose words the test keeps"


def _one_of_each_task(domain: Domain, goal_split: str) -> list[InstructedGoal]:
    rows = domain.instructed_goals(goal_split)
    tasks = dict.fromkeys(row.goal.task for row in rows)
    return [next(row for row in rows if row.goal.task == task) for task in tasks]


def _walk(
    env: SingleEnv, seed: int, options: dict[str, Any] | None = None, actions: list[Any] | None = None
) -> list[tuple[Any, ...]]:
    """Observation, reward, both ends and success of a reset and of each step to the end, random ones by default."""
    observation, info = env.reset(seed=seed, options=options)
    steps: list[tuple[Any, ...]] = [(observation, 0.0, False, False, info["is_success"])]
    if actions is None:
        env.action_space.seed(5)
        actions = [env.action_space.sample() for _ in range(_NUM_STEPS)]
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        steps.append((observation, reward, terminated, truncated, info["is_success"]))
        if terminated or truncated:
            break
    return steps


def _equal_steps(one: list[tuple[Any, ...]], other: list[tuple[Any, ...]]) -> bool:
    pairs = zip(one, other, strict=True) if len(one) == len(other) else ()
    return len(one) == len(other) and all(_same(a, b) for step in pairs for a, b in zip(*step, strict=True))


def _are_alike(values: list[Any]) -> bool:
    return all(_same(values[0], value) for value in values)


def _same(one: Any, other: Any) -> bool:
    return bool(np.array_equal(np.asarray(one), np.asarray(other)))
