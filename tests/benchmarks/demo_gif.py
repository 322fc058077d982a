"""The README's moving picture: rollouts of several stores side by side, drawn as TensorBoard shows them.

python -m tests.benchmarks.demo_gif --output conf/study/demo.gif \
  --panel kalm.envs.clevr_robot.ClevrRobot checkpoints/clevr_robot/imagine/tiny/seed=0/store easy

``--panel CLASS_PATH STORE GOAL_SPLIT`` may be given again; the next panel is to the right. Of each split a rollout is
shown that meets its goal and is plausible, as the default filter wants it; ``--skip`` leaves out the first ones.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path

from PIL import Image, ImageSequence

from kalm.callbacks.rollout_gif import GifStyle, imagined_panel, rollout_gif
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.envs.base import Domain
from kalm.store.collect import open_domain_store

_COLORS = 64
_LAST_MILLISECONDS = 2000


def panel_frames(domain: Domain, rollout: Rollout, style: GifStyle) -> list[Image.Image]:
    """One picture a step, with the instruction above and whose rollout it is below."""
    caption = "recorded" if rollout.source == Source.REAL else "imagined"
    gif = rollout_gif(domain, [imagined_panel(domain, rollout, caption)], rollout.instruction, style)
    return [frame.convert("RGB") for frame in ImageSequence.Iterator(Image.open(BytesIO(gif)))]


def good_rollout(domain: Domain, store_path: str, goal_split: str, steps: range, skip: int) -> Rollout:
    """A rollout of the split that met its goal, broke nothing and is neither too short nor too long to watch."""
    store = open_domain_store(domain, store_path)
    rollouts = (store.rollout(number) for number in range(store.num_rollouts))
    good = (
        rollout
        for rollout in rollouts
        if str(rollout.goal_split) == goal_split
        and rollout.is_success
        and not any(rollout.violations.values())
        and len(rollout) in steps
    )
    found = next(islice(good, skip, None), None)
    if found is None:
        raise SystemExit(f"{store_path} has no more than {skip} good rollouts of {goal_split} with {steps} steps")
    return found


def joined(columns: Sequence[Sequence[Image.Image]], num_frames: int) -> list[Image.Image]:
    """Panels from left to right; all begin and end together, however many steps they have."""
    width, height = columns[0][0].size
    frames = []
    for index in range(num_frames):
        frame = Image.new("RGB", (width * len(columns), height))
        for number, column in enumerate(columns):
            frame.paste(column[round(index * (len(column) - 1) / (num_frames - 1))], (width * number, 0))
        frames.append(frame.quantize(_COLORS))
    return frames


def main() -> None:
    """Draw and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--panel", nargs=3, action="append", required=True, metavar=("CLASS_PATH", "STORE", "SPLIT"))
    parser.add_argument("--output", required=True)
    parser.add_argument("--skip", type=int, nargs="*", default=[], help="good rollouts to leave out, a panel each")
    parser.add_argument("--steps", type=int, nargs=2, default=(4, 60), help="fewest and most steps of a rollout")
    parser.add_argument("--size", type=int, default=240)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--seconds_per_frame", type=float, default=0.2)
    arguments = parser.parse_args()
    style = GifStyle(arguments.steps[1], arguments.size, arguments.seconds_per_frame)
    columns = []
    for number, (class_path, store, goal_split) in enumerate(arguments.panel):
        module, _, name = class_path.rpartition(".")
        domain = getattr(importlib.import_module(module), name)()
        skip = arguments.skip[number] if number < len(arguments.skip) else 0
        steps = range(arguments.steps[0], arguments.steps[1] + 1)
        columns.append(panel_frames(domain, good_rollout(domain, store, goal_split, steps, skip), style))
    first, *rest = joined(columns, arguments.frames)
    durations = [round(1000 * arguments.seconds_per_frame)] * len(rest) + [_LAST_MILLISECONDS]
    first.save(arguments.output, save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)
    sys.stdout.write(
        f"{arguments.output}: {Path(arguments.output).stat().st_size / 1e3:.0f} kB, {len(durations)} frames\n"
    )


if __name__ == "__main__":
    main()
