"""The mirror image of what Meta-World does is what Meta-World does, where the mirrored furniture exists."""

from __future__ import annotations

import numpy as np
import pytest

from kalm.envs.metaworld import MetaWorld
from kalm.envs.metaworld.layout import HAND, TARGET, position
from kalm.envs.metaworld.success import SUCCESS
from kalm.envs.simulation import collect_for
from kalm.envs.vector_env import SingleEnv

DOMAIN = MetaWorld()
NUM_STEPS = 8  # about 6 cm of the hand
TOLERANCE = 0.02  # metres; the elbow hangs to one side, so that the hand drifts by about a millimetre a step
PLAIN, MIRROR = DOMAIN.mirror_images
SYMMETRIC = {  # tasks whose furniture is its own mirror image, and what moves in them
    "reach": "target_object",
    "push": "target_object",
    "pick-place": "target_object",
    "button-press": "button",
    "coffee-push": "coffee_mug",
    "coffee-button": "coffee_button",
}


def mirrored(observation: np.ndarray) -> np.ndarray:
    """An observation as the mirror shows it."""
    return observation[..., MIRROR.observation_order] * MIRROR.signs


def test_the_mirror_of_the_mirror_is_the_world() -> None:
    """Twice changes nothing, once exchanges x and the words for it, and the first image changes nothing at all."""
    observation = np.arange(1.0, 92.0)
    np.testing.assert_array_equal(mirrored(mirrored(observation)), observation)
    assert mirrored(observation)[[0, 1, 2, 3, 4]].tolist() == [-1, 2, 3, 4, -5]
    assert mirrored(observation)[7:14].tolist() == [-8, 9, 10, 11, 12, -13, -14]
    np.testing.assert_array_equal(observation[PLAIN.observation_order] * PLAIN.signs, observation)
    assert PLAIN.action_of.tolist() == [1, 1, 1, 1]
    assert MIRROR.action_of.tolist() == [-1, 1, 1, 1]
    assert MIRROR.text("Push it to the right, not leftwards.") == "Push it to the left, not rightwards."


def test_a_mirrored_rotation_is_a_rotation_of_the_mirror_image() -> None:
    """A quarter turn about z brings x to y; in the mirror it brings -x to y, which is a turn the other way."""
    observation = np.zeros(91)
    observation[7:14] = [0, 0, 0, np.sqrt(0.5), 0, 0, np.sqrt(0.5)]
    np.testing.assert_allclose(mirrored(observation)[10:14], [np.sqrt(0.5), 0, 0, -np.sqrt(0.5)])


@pytest.mark.parametrize("task", SYMMETRIC)
def test_the_simulator_does_in_a_mirror_what_it_does(task: str) -> None:
    """From an expert's states and from their mirror images, the same actions lead to mirror images nearly."""
    instructed = next(row for row in DOMAIN.instructed_goals("train") if row.goal.task == task)
    (rollout,) = collect_for(DOMAIN, [instructed], 3, range(1))
    env, moved = SingleEnv(DOMAIN), 0.0
    for step in np.linspace(0, len(rollout) - NUM_STEPS, 5, dtype=int):
        before, actions = rollout.observations[step], rollout.actions[step : step + NUM_STEPS]
        after = []
        for start, taken in ((before, actions), (mirrored(before), MIRROR.action_of * actions)):
            env.reset(seed=0, options={"goal": instructed.goal, "observation": start})
            after.append([env.step(action.astype(np.float32))[0] for action in taken][-1])
        direct, image = after[0], mirrored(after[1])
        for part in (HAND, TARGET):
            np.testing.assert_allclose(image[part], direct[part], atol=TOLERANCE)
        np.testing.assert_allclose(position(image, SYMMETRIC[task]), position(direct, SYMMETRIC[task]), atol=TOLERANCE)
        moved = max(moved, float(np.linalg.norm(direct[HAND] - before[HAND])))
    env.close()
    assert moved > 1.5 * TOLERANCE, "the hand moves, or nothing was compared"
    assert rollout.is_success
    np.testing.assert_array_equal(SUCCESS[task](mirrored(rollout.observations)), SUCCESS[task](rollout.observations))
