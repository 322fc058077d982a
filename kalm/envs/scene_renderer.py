"""Pictures of a simulated scene, rendered by MuJoCo where GL exists."""

from __future__ import annotations

import os
import weakref
from typing import Any

import mujoco
import numpy as np

from kalm.core.errors import SimulatorError
from kalm.envs.drawing import Picture, write_instruction


class SceneRenderer:
    """Renders what a simulator holds."""

    def __init__(self, model: mujoco.MjModel, size: int, camera: mujoco.MjvCamera) -> None:
        """Make a GL context for pictures of at most 1024 pixels a side; it belongs to the thread that makes it.

        Raises:
            SimulatorError: If no GL context can be made here.
        """
        self._viewport = mujoco.MjrRect(0, 0, size, size)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._options = mujoco.MjvOption()
        self._camera = camera
        try:
            self._gl_context = _make_gl_context(size)
            self._gl_context.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except Exception as error:  # each GL library fails with classes of its own, some of which cannot be printed
            raise SimulatorError(
                f"no GL context could be made ({type(error).__name__}, MUJOCO_GL={os.environ.get('MUJOCO_GL', '')!r}); "
                "set MUJOCO_GL=egl with a GPU or Mesa's libegl1, or MUJOCO_GL=osmesa with libosmesa6, and start again; "
                "Domain.draw needs no GL"
            ) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        # At exit GL is gone before objects are, so free the context before.
        self._free = weakref.finalize(self, _free, self._context, self._gl_context)

    def render(self, model: mujoco.MjModel, data: mujoco.MjData, instruction: str = "") -> Picture:
        """Picture of what a simulator of the same world holds now, with the instruction on top."""
        self._gl_context.make_current()
        every_kind = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, data, self._options, None, self._camera, every_kind, self._scene)
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        picture = np.empty((self._viewport.height, self._viewport.width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(picture, None, self._viewport, self._context)
        return write_instruction(np.flipud(picture), instruction)  # GL counts rows from below

    def close(self) -> None:
        """Free the GL context."""
        self._free()


def _make_gl_context(size: int) -> Any:
    """MuJoCo takes the GL library that MUJOCO_GL named at its import; if none, without a display only EGL can work."""
    if "MUJOCO_GL" in os.environ or "DISPLAY" in os.environ:
        return mujoco.GLContext(size, size)
    from mujoco import egl

    return egl.GLContext(size, size)


def _free(context: mujoco.MjrContext, gl_context: Any) -> None:
    context.free()
    gl_context.free()
