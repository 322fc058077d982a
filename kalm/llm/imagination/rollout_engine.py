"""Imagination (KALM, section 3.2): a goal and a real first state in, a rollout out. One engine for every backbone.

The way of a rollout: its ``WorkItem`` becomes a plan (``WholeRollout``, or ``ChainedRollout`` by sub-goals);
``Generation`` takes the steps of many plans together, each in a row of its own; the plan makes a ``Rollout`` of what it
was given, with the domain's rewards and verdicts.

Shape letters: B rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from kalm.core.errors import KalmError, require
from kalm.core.goal import success_of_each
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.data.work_item import WorkItem
from kalm.envs.base import Domain
from kalm.llm.backbones.backbone import Backbone
from kalm.llm.grounding.rollout_codec import RolloutCodec
from kalm.llm.imagination.chained_rollout import ChainedRollout, sentences_of_goals
from kalm.llm.imagination.generation import Generation, Step, take_step
from kalm.llm.imagination.reader import CachedReader
from kalm.llm.imagination.rows import Generated, GoalTest

_COMPILED_COLUMN_STEP = 64  # each other number of columns in use is compiled anew

GoalTestName = Literal["rule", "end_head"]


@dataclass(frozen=True)
class ImaginationSettings:
    """How rollouts are imagined.

    Attributes:
        temperature: How freely actions are drawn. 0 takes the likeliest, which leaves out the random actions in the
            data; else the scores of discrete actions are divided by it, and to a continuous action it adds Gaussian
            noise of this standard deviation.
        goal_test: Who says that a goal is met, which stops a rollout. ``rule`` is the domain's own: an oracle, so that
            what comes of it is an upper bound. ``end_head`` is the model itself, by ``end_threshold`` alone.
        end_threshold: Probability of the end, as the model's end head sees it, at which a rollout stops. It counts
            beside the rule as well; 1, which meets more goals, leaves it to the rule and the step limit.
        chain_sub_goals: Whether goals for which the domain names sub-goals are imagined one sub-goal after another
            (``chained_rollout.py``); the paper imagines them whole.
        batch_size: Rollouts that are imagined at the same time; as many as memory allows on a GPU. What is imagined
            does not depend on it.
        compile: Whether steps are compiled (``torch.compile``), for ``batch_size`` rows however few there are; as CUDA
            graphs on a GPU, which is what it is for: it takes a minute at the beginning, and on a CPU it is slower.
    """

    temperature: float = 0.0
    goal_test: GoalTestName = "rule"
    end_threshold: float = 1.0
    chain_sub_goals: bool = False
    batch_size: int = 256
    compile: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.temperature >= 0, "temperature", self.temperature, "0 (the likeliest action) or more")
        names = get_args(GoalTestName)
        require(self.goal_test in names, "goal_test", self.goal_test, f"one of {', '.join(names)}")
        require(0 < self.end_threshold <= 1, "end_threshold", self.end_threshold, "in (0, 1]")
        is_ended = self.goal_test == "rule" or self.end_threshold < 1
        require(is_ended, "end_threshold", self.end_threshold, "below 1 where end_head stops rollouts, 0.5 for example")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")


class RolloutEngine:
    """A language model set up to imagine; memory and compiled code of one batch of work serve the next.

    What is imagined for a batch of work depends on nothing that was imagined before it.
    """

    def __init__(self, backbone: Backbone, codec: RolloutCodec, domain: Domain, settings: ImaginationSettings) -> None:
        """Take the model and the world.

        Args:
            backbone: The grounded language model.
            codec: Its inputs and outputs for observations and actions.
            domain: Whose rules say what a step is worth and which steps are implausible.
            settings: How rollouts are imagined.
        """
        self._domain, self._settings = domain, settings
        self._device = codec.observation_mean.device
        self._reader = CachedReader(backbone, settings.batch_size, _COMPILED_COLUMN_STEP if settings.compile else 1)
        self._is_met = make_goal_test(settings.goal_test)
        self._generation = Generation(
            self._reader,
            codec,
            self._is_met,
            settings.temperature,
            settings.end_threshold,
            step=_compiled_step(self._device) if settings.compile else take_step,
            drops_rows=not settings.compile,
        )

    def imagine(self, items: Sequence[WorkItem]) -> list[Rollout]:
        """Imagine one rollout for each work item, and let the domain judge it.

        Returns:
            Rollouts in the order of ``items``, with how each stopped and its seed as provenance; those made by
            sub-goals say their links as well.

        Raises:
            KalmError: If there is too little memory for so many rollouts at a time.
        """
        plans = self._plans(items)
        wanted = _by_instruction(plans)
        if wanted:
            most = self._settings.batch_size
            num_rows = most if self._settings.compile else min(most, len(wanted))
            try:
                self._reader.begin(num_rows)
                self._generation.carry_out(wanted, num_rows)
            except torch.OutOfMemoryError as error:
                raise KalmError(
                    f"out of memory with {num_rows} rollouts imagined at a time{self._free_memory()}: {error}. Set the "
                    "model's imagination.batch_size lower, or imagine goals of fewer steps"
                ) from error
        return [plan.rollout() for plan in plans]

    def _plans(self, items: Sequence[WorkItem]) -> list[RolloutPlan]:
        """Chains for goals that have sub-goals where those are wanted."""
        whole: list[RolloutPlan] = [WholeRollout(self._domain, item) for item in items]
        if not self._settings.chain_sub_goals:
            return whole
        sentences = sentences_of_goals(self._domain)
        chains = [ChainedRollout(self._domain, item, sentences, self._is_met) for item in items]
        return [chain if chain.next_item is not None else plan for chain, plan in zip(chains, whole, strict=True)]

    def _free_memory(self) -> str:
        on_gpu = self._device.type == "cuda"
        return f", {torch.cuda.mem_get_info(self._device)[0] / 2**30:.1f} GiB free" if on_gpu else ""


class WholeRollout:
    """A rollout of one piece, as in the paper."""

    def __init__(self, domain: Domain, item: WorkItem) -> None:
        """Ask for ``item`` and nothing else."""
        self._domain, self._item = domain, item
        self.next_item: WorkItem | None = item

    def add(self, piece: Generated) -> None:
        """Take what was imagined."""
        self._piece, self.next_item = piece, None

    def rollout(self) -> Rollout:
        """It, with the domain's rewards and verdicts."""
        made, item = self._piece, self._item
        facts = {"seed": item.seed, "stopped_by": made.stopped_by}
        return self._domain.label_rollout(item.instructed, made.observations, made.actions, Source.IMAGINARY, facts)


RolloutPlan = WholeRollout | ChainedRollout


def make_goal_test(name: GoalTestName) -> GoalTest:
    """Who says after each step which goals have been met; whoever else can tell joins here."""
    if name == "rule":
        return lambda goals, before, action, after: success_of_each(goals, after, before, action)
    return lambda goals, *step: np.zeros(len(goals), dtype=np.bool_)  # the end head alone, by its threshold


def _by_instruction(plans: Sequence[RolloutPlan]) -> list[RolloutPlan]:
    """Those that want something: of one goal next to each other, and among them those of one instruction."""
    groups: dict[Any, dict[str, list[RolloutPlan]]] = {}
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
