"""Imagination (KALM, section 3.2): a goal and a real first state in, a rollout out. One engine for every backbone.

Shape letters: B rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from kalm.core.errors import KalmError
from kalm.core.goal import success_of_each
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.data.work_item import WorkItem
from kalm.envs.base import Domain
from kalm.llm.backbones.backbone import Backbone
from kalm.llm.grounding.rollout_codec import RolloutCodec
from kalm.llm.imagination.generation import Generated, Sampling, Step, generate, take_step
from kalm.llm.imagination.reader import CachedReader

MAX_ROWS = 256
_COMPILED_COLUMN_STEP = 64  # each other number of columns in use is compiled anew


class Plan(Protocol):
    """One rollout in the making, out of one or more pieces that are imagined one after the other.

    Attributes:
        next_item: What to imagine next; None if nothing more is needed.
    """

    next_item: WorkItem | None

    def add(self, piece: Generated) -> None:
        """Take what was imagined for ``next_item``, and decide what is next."""

    def rollout(self) -> Rollout:
        """What the pieces make up, judged by the domain."""


class WholeRollout:
    """A rollout of one piece, as in the paper."""

    def __init__(self, domain: Domain, item: WorkItem) -> None:
        """Ask for ``item`` and nothing else."""
        self._domain, self._item = domain, item
        self.next_item: WorkItem | None = item

    def add(self, piece: Generated) -> None:  # noqa: D102
        self._piece, self.next_item = piece, None

    def rollout(self) -> Rollout:  # noqa: D102
        made, item = self._piece, self._item
        facts = {"seed": item.seed, "stopped_by": made.stopped_by}
        return self._domain.label_rollout(item.instructed, made.observations, made.actions, Source.IMAGINARY, facts)


class RolloutEngine:
    """A language model set up to imagine; memory and compiled code of one batch of work serve the next.

    What is imagined for a batch of work depends on nothing that was imagined before it.
    """

    def __init__(
        self,
        backbone: Backbone,
        codec: RolloutCodec,
        domain: Domain,
        sampling: Sampling,
        max_rows: int = MAX_ROWS,
        is_compiled: bool = False,
    ) -> None:
        """Take the model and the world.

        Args:
            backbone: The grounded language model.
            codec: Its inputs and outputs for observations and actions.
            domain: Whose rules say when a goal is met, what a step is worth and which steps are implausible.
            sampling: How freely actions are drawn.
            max_rows: Rollouts that take their steps together.
            is_compiled: Whether steps are compiled, for ``max_rows`` rows however few there are; as CUDA graphs on a
                GPU.
        """
        self.domain = domain
        self._codec, self._sampling, self._max_rows = codec, sampling, max_rows
        self._is_compiled = is_compiled
        self._step = _compiled_step(codec.observation_mean.device) if is_compiled else take_step
        self._reader = CachedReader(backbone, max_rows, _COMPILED_COLUMN_STEP if is_compiled else 1)

    def imagine(self, items: Sequence[WorkItem]) -> list[Rollout]:
        """Imagine one rollout for each work item, and let the domain judge it.

        Returns:
            Rollouts in the order of ``items``, with how each stopped and its seed as provenance.
        """
        return self.carry_out([WholeRollout(self.domain, item) for item in items])

    def carry_out(self, plans: Sequence[Plan]) -> list[Rollout]:
        """Imagine what each plan asks for until none asks any more.

        Returns:
            The plans' rollouts, in their order.

        Raises:
            KalmError: If there is too little memory for so many rollouts at a time.
        """
        wanted = [plan for plan in _by_instruction(plans) if plan.next_item is not None]
        if wanted:
            num_rows = self._max_rows if self._is_compiled else min(self._max_rows, len(wanted))
            try:
                self._generate(wanted, num_rows)
            except torch.OutOfMemoryError as error:
                raise KalmError(
                    f"out of memory with {num_rows} rollouts imagined at a time{self._free_memory()}: {error}. Set the "
                    "model's imagination_batch_size lower, or imagine goals of fewer steps"
                ) from error
        return [plan.rollout() for plan in plans]

    def _generate(self, plans: Sequence[Plan], num_rows: int) -> None:
        def finish(index: int, made: Generated) -> WorkItem | None:
            plans[index].add(made)
            return plans[index].next_item

        self._reader.begin(num_rows)
        generate(
            self._reader,
            self._codec,
            self._sampling,
            [plan.next_item for plan in plans if plan.next_item is not None],
            self._reached,
            finish,
            num_rows,
            self._step,
            drops_rows=not self._is_compiled,
        )

    def _free_memory(self) -> str:
        device = self._codec.observation_mean.device
        return f", {torch.cuda.mem_get_info(device)[0] / 2**30:.1f} GiB free" if device.type == "cuda" else ""

    def _reached(
        self, items: Sequence[WorkItem], before: NDArray[Any], action: NDArray[Any], after: NDArray[Any]
    ) -> NDArray[np.bool_]:
        return success_of_each([item.instructed.goal for item in items], after, before, action)


def _by_instruction(plans: Sequence[Plan]) -> list[Plan]:
    """Those of one goal next to each other, and among them those of one instruction."""
    groups: dict[Any, dict[str, list[Plan]]] = {}
    for plan in plans:
        if plan.next_item is not None:
            instructed = plan.next_item.instructed
            groups.setdefault(instructed.goal, {}).setdefault(instructed.instruction, []).append(plan)
    return [plan for of_goal in groups.values() for of_instruction in of_goal.values() for plan in of_instruction]


def _compiled_step(device: torch.device) -> Step:
    """``take_step`` for shapes that stay what they are."""
    on_gpu = device.type == "cuda"
    compiled = torch.compile(take_step, dynamic=False, mode="reduce-overhead" if on_gpu else "default")

    def step(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        torch.compiler.cudagraph_mark_step_begin()  # what the last step returned has been copied
        made: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = compiled(*arguments)
        return made

    return step
