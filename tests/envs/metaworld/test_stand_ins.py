"""Things in the place of the puck: what is exchanged, what it is called, and that hands do the same with both."""

from __future__ import annotations

import numpy as np
import pytest

from kalm.envs.metaworld import MetaWorld
from kalm.envs.metaworld.expert import expert
from kalm.envs.metaworld.goals import TaskGoal
from kalm.envs.metaworld.layout import pose_slice, position
from kalm.envs.vector_env import SingleEnv

DOMAIN = MetaWorld()
PLAIN, MIRROR, BALL, MIRRORED_BALL, HAMMER, MIRRORED_HAMMER = DOMAIN.stand_ins


def under(symmetry: object, observation: np.ndarray) -> np.ndarray:
    """An observation as a symmetry shows it."""
    return observation[..., symmetry.observation_order] * symmetry.signs


def test_the_mirror_images_come_first_and_the_puck_changes_places() -> None:
    """The puck's seven numbers stand where the ball's or the hammer's do, mirrored where the world is."""
    assert list(DOMAIN.stand_ins[:2]) == list(DOMAIN.mirror_images)
    observation = np.zeros(91)
    observation[:3] = [0.1, 0.6, 0.2]
    observation[pose_slice("target_object")] = [0.3, 0.5, 0.02, 1.0, 0.0, 0.0, 0.0]
    for symmetry, thing, side in (
        (BALL, "soccer_ball", 1),
        (MIRRORED_BALL, "soccer_ball", -1),
        (HAMMER, "hammer", 1),
        (MIRRORED_HAMMER, "hammer", -1),
    ):
        shown = under(symmetry, observation)
        np.testing.assert_allclose(position(shown, thing), [side * 0.3, 0.5, 0.02])
        np.testing.assert_array_equal(shown[pose_slice("target_object")], np.zeros(7))
        np.testing.assert_allclose(shown[:3], [side * 0.1, 0.6, 0.2])
        np.testing.assert_array_equal(under(symmetry, shown), observation)


def test_sentences_name_what_is_shown() -> None:
    """No training sentence speaks of a puck any more, and mirrors change sides besides."""
    assert BALL.text("Slide the red cylinder to the target spot.") == "Slide the football to the target spot."
    assert BALL.text("Push the puck to the target.") == "Push the ball to the target."
    assert MIRRORED_HAMMER.text("Push the red puck to the left.") == "Push the hammer to the right."
    for row in DOMAIN.instructed_goals("train"):
        for symmetry in (BALL, HAMMER):
            assert "puck" not in symmetry.text(row.instruction)
            assert "cylinder" not in symmetry.text(row.instruction)


def test_no_sentence_of_a_stand_in_is_one_of_the_tests() -> None:
    """What policies are told of balls and hammers is what was said of pucks, not what they will be asked to do."""
    told = {symmetry.text(row.instruction) for row in DOMAIN.instructed_goals("train") for symmetry in (BALL, HAMMER)}
    novel = [split for split in DOMAIN.goal_splits if split != "train"]
    assert not told & {row.instruction for split in novel for row in DOMAIN.instructed_goals(split)}


@pytest.mark.parametrize(
    ("task", "recorded", "symmetry"),
    [("soccer", "push", BALL), ("hammer", "pick-place", HAMMER)],
    ids=["soccer", "hammer"],
)
def test_what_a_hand_does_with_the_puck_it_does_with_the_other(task: str, recorded: str, symmetry: object) -> None:
    """The expert of a recorded task, to whom the thing is shown as the puck, does a task that nobody recorded."""
    env, successes, act = SingleEnv(DOMAIN), 0, expert(recorded)
    for seed in range(4):
        observation, _ = env.reset(seed=seed, options={"goal": TaskGoal(task)})
        ended = False
        while not ended:
            observation, _, terminated, truncated, _ = env.step(act(under(symmetry, observation)))
            ended = terminated or truncated
        successes += terminated
    env.close()
    assert successes >= 3
