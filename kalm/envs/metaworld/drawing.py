"""Pictures of the table, drawn with pillow from the 91 numbers: they need neither GL nor a simulator.

The table is seen from above, +x to the right and +y, away from the robot, to the top; a strip on the right shows
heights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from kalm.envs.drawing import Picture, write_instruction
from kalm.envs.metaworld.layout import ENTITIES, HAND, OPENING, TARGET, is_present, position

_VIEW_X, _VIEW_Y, _VIEW_Z = (-0.6, 0.6), (0.3, 1.1), (-0.05, 0.6)
_STRIP = 0.2  # share of the width that shows heights
_OVERSAMPLING = 2  # pillow draws hard edges: draw larger, then shrink
_BACKGROUND, _TABLE, _EDGE, _TARGET, _HAND = (250, 250, 248), (226, 224, 218), (60, 60, 60), (0, 150, 60), (90, 90, 110)
_COLORS = {
    "target_object": (214, 60, 50), "button": (200, 30, 30), "lock": (140, 110, 40), "handle": (120, 120, 130),
    "window": (70, 130, 180), "faucet": (40, 160, 200), "wall": (160, 100, 70), "coffee_mug": (230, 190, 60),
    "coffee_button": (110, 70, 50), "hammer": (170, 60, 130), "nail": (80, 80, 80), "soccer_ball": (30, 30, 30),
}  # fmt: skip
_SIZES = {"wall": 0.03, "nail": 0.02, "coffee_button": 0.025}  # metres; others 0.03 across from the middle


def draw_observation(observation: NDArray[Any], instruction: str = "", size: int = 256) -> Picture:
    """Draw what an observation of shape (91,) shows, with the instruction on top, see ``Domain.draw``."""
    observation = np.asarray(observation, dtype=float)
    pixels = size * _OVERSAMPLING
    image = Image.new("RGB", (pixels, pixels), _BACKGROUND)
    canvas = ImageDraw.Draw(image)
    width = round(pixels * (1 - _STRIP))
    canvas.rectangle((0, pixels // 4, width, pixels), fill=_TABLE)

    def mark(place: NDArray[Any], color: tuple[int, int, int], radius: float, hollow: bool = False) -> None:
        x = (place[0] - _VIEW_X[0]) / (_VIEW_X[1] - _VIEW_X[0]) * width
        y = pixels - (place[1] - _VIEW_Y[0]) / (_VIEW_Y[1] - _VIEW_Y[0]) * pixels * 0.75
        z = pixels - (place[2] - _VIEW_Z[0]) / (_VIEW_Z[1] - _VIEW_Z[0]) * pixels * 0.75
        r = radius / (_VIEW_X[1] - _VIEW_X[0]) * width
        style: dict[str, Any] = {"outline": color, "width": 3} if hollow else {"fill": color, "outline": _EDGE}
        canvas.ellipse((x - r, y - r, x + r, y + r), **style)
        canvas.line((width + pixels * 0.02, z, pixels * 0.98, z), fill=color, width=max(2, pixels // 90))

    for entity in ENTITIES:
        if is_present(observation, entity):
            mark(position(observation, entity), _COLORS[entity], _SIZES.get(entity, 0.03))
    mark(observation[TARGET], _TARGET, 0.04, hollow=True)
    half_opening = 0.05 * float(np.clip(observation[OPENING], 0.0, 1.0))
    for side in (-1.0, 1.0):
        finger = observation[HAND] + np.array([0.0, side * half_opening, 0.0])
        mark(finger, _HAND, 0.018)
    canvas.line((width, pixels // 4, width, pixels), fill=_EDGE, width=2)
    small = image.reduce(_OVERSAMPLING)
    return write_instruction(np.asarray(small), instruction)
