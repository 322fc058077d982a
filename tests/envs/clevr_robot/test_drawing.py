"""Pictures without GL: balls where they are, and an instruction that does not hide them."""

from __future__ import annotations

import numpy as np

from kalm.envs.clevr_robot.drawing import draw_observation
from kalm.envs.clevr_robot.layout import COLORS, RGB

LAYOUT = np.array([-0.4, 0.5, 0.4, 0.5, 0.0, 0.2, -0.4, -0.1, 0.4, -0.1])


def test_each_ball_is_drawn_in_its_colour_at_its_place() -> None:
    """Red is upper left, cyan lower right; the centre of each disc lies within a pixel or two of the ball's centre."""
    picture = draw_observation(LAYOUT, size=140)
    for color, (x, y) in zip(COLORS, LAYOUT.reshape(5, 2), strict=True):
        own = np.abs(picture - 255.0 * np.array(RGB[color])).max(axis=-1) < 3
        rows, columns = np.nonzero(own)
        # 140 pixels show 1.4 units: x from -0.7, y from 0.9 downwards.
        assert abs(columns.mean() - (x + 0.7) * 100) < 1.5
        assert abs(rows.mean() - (0.9 - y) * 100) < 1.5
        assert 0.65 < len(rows) / (np.pi * 13**2) < 1.0, "a disc of radius 0.13, less its edge"


def test_instruction_is_written_above_the_table() -> None:
    """A long sentence is broken into lines and changes nothing in the lower half."""
    plain = draw_observation(LAYOUT, size=200)
    labelled = draw_observation(LAYOUT, "Could you please move the purple ball to the right of the green ball?", 200)
    assert (plain[:100] != labelled[:100]).any()
    np.testing.assert_array_equal(plain[100:], labelled[100:])


def test_drawing_does_not_change_the_observation() -> None:
    """The array that is drawn stays as it is."""
    kept = LAYOUT.copy()
    draw_observation(LAYOUT)
    np.testing.assert_array_equal(LAYOUT, kept)
