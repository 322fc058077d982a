"""Imagination (KALM, section 3.2): a goal and a real first state in, a rollout out. One engine for every backbone.

The way of a rollout: its ``WorkItem`` becomes a plan (``WholeRollout``, or ``ChainedRollout`` by the rule's sub-goals;
by the model's own, see ``own_sub_goals.py``); ``Generation`` takes the steps of many plans together, each in a row of
its own; the plan makes a ``Rollout`` of what it was given, with the domain's rewards and verdicts.

Shape letters: O numbers in an observation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from kalm.core.errors import KalmError, require
from kalm.core.goal import Goal, InstructedGoal, success_of_each
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.data.language_batches import WorkItem
from kalm.envs.base import Domain
from kalm.llm.backbones.backbone import Backbone
from kalm.llm.grounding.rollout_codec import RolloutCodec
from kalm.llm.imagination.generation import Generation, Reader, Step, take_step
from kalm.llm.imagination.own_sub_goals import SubGoalWriter, imagine_by_own_sub_goals
from kalm.llm.imagination.rows import Generated, GoalTest, Plan

_COMPILED_COLUMN_STEP = 64  # each other number of columns in use is compiled anew
_MAX_LINK_STEPS = 15  # then the sub-goal is chosen anew; an expert's placement takes six

GoalTestName = Literal["rule", "end_head"]
SubGoalsBy = Literal["rule", "model"]


@dataclass(frozen=True)
class ImaginationSettings:
    """How rollouts are imagined.

    Attributes:
        temperature: How freely actions are drawn. 0 takes the likeliest, which leaves out the random actions in the
            data; else the scores of discrete actions are divided by it, and to a continuous action it adds Gaussian
            noise of this standard deviation.
        goal_test: Who says that a goal is met, which stops a rollout. ``rule`` is the domain's own: an oracle, so that
            what comes of it is an upper bound. ``end_head`` is the model itself, by ``end_threshold`` alone, and
            nothing is cut behind it.
        end_threshold: Probability of the end, as the model's end head sees it, at which a rollout stops. It counts
            beside the rule as well; 1, which meets more goals, leaves it to the rule and the step limit.
        chain_sub_goals: Whether goals for which the domain names sub-goals are imagined one sub-goal after another; the
            paper imagines them whole.
        sub_goals_by: Who names them: the domain's ``rule``, so that what comes of it is an upper bound, or the
            ``model`` itself, for every goal that is asked for; it must have been grounded with ``tasks.sub_goal``.
        batch_size: Rollouts that are imagined at the same time; as many as memory allows on a GPU. What is imagined
            does not depend on it.
        compile: Whether steps are compiled (``torch.compile``), for ``batch_size`` rows however few there are; as CUDA
            graphs on a GPU, which is what it is for: it takes a minute at the beginning, and on a CPU it is slower.
    """

    temperature: float = 0.0
    goal_test: GoalTestName = "rule"
    end_threshold: float = 1.0
    chain_sub_goals: bool = False
    sub_goals_by: SubGoalsBy = "rule"
    batch_size: int = 256
    compile: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.temperature >= 0, "temperature", self.temperature, "0 (the likeliest action) or more")
        names = get_args(GoalTestName)
        require(self.goal_test in names, "goal_test", self.goal_test, f"one of {', '.join(names)}")
        require(0 < self.end_threshold <= 1, "end_threshold", self.end_threshold, "in (0, 1]")
        who = get_args(SubGoalsBy)
        require(self.sub_goals_by in who, "sub_goals_by", self.sub_goals_by, f"one of {', '.join(who)}")
        is_ended = self.goal_test == "rule" or self.end_threshold < 1
        require(is_ended, "end_threshold", self.end_threshold, "below 1 where end_head stops rollouts, 0.5 for example")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")


class RolloutEngine:
    """A language model set up to imagine; memory and compiled code of one batch of work serve the next.

    What is imagined for a batch of work depends on nothing that was imagined before it.
    """

    def __init__(self, backbone: Backbone, codec: RolloutCodec, domain: Domain, settings: ImaginationSettings) -> None:
        """Take the grounded model, and the world whose rules say what a step is worth and what is implausible."""
        self._domain, self._settings = domain, settings
        self._writer = SubGoalWriter(backbone, codec)
        self._device = codec.observation_mean.device
        self._reader = Reader(backbone, settings.batch_size, _COMPILED_COLUMN_STEP if settings.compile else 1)
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
        """Imagine one rollout for each work item, in their order, and let the domain judge it.

        Provenance says how each stopped, and its seed; of those made by sub-goals it says their links as well.

        Raises:
            KalmError: If there is too little memory for so many rollouts at a time.
        """
        by_rule = self._settings.goal_test == "rule"
        if self._settings.chain_sub_goals and self._settings.sub_goals_by == "model":
            chains = imagine_by_own_sub_goals(items, self._writer, self._pieces, _MAX_LINK_STEPS)
            return [joined(self._domain, chain.item, chain.links, chain.stopped_by, by_rule) for chain in chains]
        plans = self._plans(items)
        self._carry_out(plans)
        return [plan.rollout() for plan in plans]

    def _pieces(self, items: Sequence[WorkItem]) -> list[Generated]:
        """What is imagined for each item by itself."""
        plans = [_Piece(item) for item in items]
        self._carry_out(plans)
        return [plan.made for plan in plans]

    def _carry_out(self, plans: Sequence[Plan]) -> None:
        wanted = _by_instruction(plans)
        if wanted:
            most = self._settings.batch_size
            num_rows = most if self._settings.compile else min(most, len(wanted))
            try:
                self._reader.begin(num_rows)
                self._generation.carry_out(wanted, num_rows)
            except torch.OutOfMemoryError as error:
                on_gpu = self._device.type == "cuda"
                free = f", {torch.cuda.mem_get_info(self._device)[0] / 2**30:.1f} GiB free" if on_gpu else ""
                raise KalmError(
                    f"out of memory with {num_rows} rollouts imagined at a time{free}: {error}. Set the model's "
                    "imagination.batch_size lower, or imagine goals of fewer steps"
                ) from error

    def _plans(self, items: Sequence[WorkItem]) -> list[WholeRollout | ChainedRollout]:
        """Chains for goals that have sub-goals where those are wanted."""
        by_rule = self._settings.goal_test == "rule"
        whole: list[WholeRollout | ChainedRollout] = [WholeRollout(self._domain, item, by_rule) for item in items]
        if not self._settings.chain_sub_goals:
            return whole
        sentences = sentences_of_goals(self._domain)
        chains = [ChainedRollout(self._domain, item, sentences, self._is_met, by_rule) for item in items]
        return [chain if chain.next_item is not None else plan for chain, plan in zip(chains, whole, strict=True)]


class WholeRollout:
    """A rollout of one piece, as in the paper."""

    def __init__(self, domain: Domain, item: WorkItem, ends_when_met: bool = True) -> None:
        """Ask for ``item`` and nothing else; see ``Domain.label_rollout`` for who says where it ends."""
        self._domain, self._item, self._ends_when_met = domain, item, ends_when_met
        self.next_item: WorkItem | None = item

    def add(self, piece: Generated) -> None:
        """Take what was imagined."""
        self._piece, self.next_item = piece, None

    def rollout(self) -> Rollout:
        """It, with the domain's rewards and verdicts."""
        made, item = self._piece, self._item
        facts = {"seed": item.seed, "stopped_by": made.stopped_by}
        return self._domain.label_rollout(
            item.instructed, made.observations, made.actions, Source.IMAGINARY, facts, self._ends_when_met
        )


class ChainedRollout:
    """Chained imagination: a goal with sub-goals is imagined one sub-goal after another. KALM leaves it to future work.

    Each link of the chain asks for one sub-goal in the words of the data and goes on from the observation that the last
    one reached; which one, the domain decides by that observation (``Domain.next_sub_goal``). The rollout that the
    links make up is judged by the whole goal, under whose own instruction it is stored.

    Attributes:
        next_item: The next link; None if the goal has no sub-goals, is met, or is out of steps.
    """

    def __init__(
        self,
        domain: Domain,
        item: WorkItem,
        sentences: Mapping[Goal, Sequence[InstructedGoal]],
        is_met: GoalTest,
        ends_when_met: bool = True,
    ) -> None:
        """Choose the first link; sentences say how to ask for each goal, ``is_met`` ends the chain."""
        self._domain, self._item, self._sentences, self._is_met = domain, item, sentences, is_met
        self._ends_when_met = ends_when_met
        self._rng = np.random.default_rng([item.seed, 1])
        self._links: list[tuple[WorkItem, Generated]] = []
        self._has_met_goal = False
        self.next_item = self._choose(item.start)

    def add(self, piece: Generated) -> None:
        """Add a link that was imagined and choose the next."""
        assert self.next_item is not None
        self._links.append((self.next_item, piece))
        before, after = piece.observations[:-1], piece.observations[1:]
        goals = [self._item.instructed.goal] * len(piece.actions)
        self._has_met_goal = bool(self._is_met(goals, before, piece.actions, after).any())
        self.next_item = None if self._has_met_goal else self._choose(piece.observations[-1])

    def rollout(self) -> Rollout:
        """The links one after the other, with the domain's rewards and verdicts for the goal that they serve."""
        stopped_by = "goal" if self._has_met_goal else "limit"
        return joined(self._domain, self._item, self._links, stopped_by, self._ends_when_met)

    def _choose(self, observation: NDArray[Any]) -> WorkItem | None:
        """The link that goes on from ``observation``, shape (O,)."""
        num_left = self._item.max_steps - sum(len(piece.actions) for _, piece in self._links)
        sub_goal = self._domain.next_sub_goal(self._item.instructed.goal, observation) if num_left else None
        if sub_goal is None:
            return None
        sentences = self._sentences[sub_goal]
        instructed = sentences[int(self._rng.integers(len(sentences)))]
        num_steps = min(num_left, sub_goal.max_steps, _MAX_LINK_STEPS)
        return WorkItem(instructed, observation, num_steps, int(self._rng.integers(2**31)))


class _Piece:
    """A piece that somebody else makes a rollout of."""

    made: Generated

    def __init__(self, item: WorkItem) -> None:
        self.next_item: WorkItem | None = item

    def add(self, piece: Generated) -> None:
        self.made, self.next_item = piece, None


def joined(
    domain: Domain, item: WorkItem, links: Sequence[tuple[WorkItem, Generated]], stopped_by: str, ends_when_met: bool
) -> Rollout:
    """Links one after the other, with the domain's rewards and verdicts for the goal that they serve."""
    pieces = [piece for _, piece in links]
    observations = np.concatenate([item.start[None], *(piece.observations[1:] for piece in pieces)])
    actions = np.concatenate([piece.actions for piece in pieces])
    told = [{"instruction": link.instructed.instruction, "num_steps": len(piece.actions)} for link, piece in links]
    facts = {"seed": item.seed, "stopped_by": stopped_by, "links": told}
    return domain.label_rollout(item.instructed, observations, actions, Source.IMAGINARY, facts, ends_when_met)


def sentences_of_goals(domain: Domain) -> dict[Goal, list[InstructedGoal]]:
    """How to ask for each goal: in the words of the first of the domain's splits that has it."""
    of_sentences: dict[Goal, list[InstructedGoal]] = {}
    for split in domain.learning_splits:
        in_this_split: dict[Goal, list[InstructedGoal]] = {}
        for instructed in domain.instructed_goals(split):
            in_this_split.setdefault(instructed.goal, []).append(instructed)
        of_sentences = in_this_split | of_sentences
    return of_sentences


def make_goal_test(name: GoalTestName) -> GoalTest:
    """Who says after each step which goals have been met; whoever else can tell joins here."""
    if name == "rule":
        return lambda goals, before, action, after: success_of_each(goals, after, before, action)
    return lambda goals, *step: np.zeros(len(goals), dtype=np.bool_)  # the end head alone, by its threshold


def _by_instruction(plans: Sequence[Plan]) -> list[Plan]:
    """Those that want something: of one goal next to each other, and among them those of one instruction."""
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

    def step(*arguments: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # what the last step returned has been copied
        return compiled(*arguments)

    return step
