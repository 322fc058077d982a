"""Goals of several parts, imagined one part after another, where the model itself says which is left to do.

Nothing but the model is asked. It was taught to take a sentence apart and to see what is met (``SubGoalBatches``): from
the whole sentence and the present state it writes what to pursue, imagines that in a link of its own, and goes on from
where the link led to. Once its end head sees that all it writes is done already, nothing is left. What the domain's
rules know of parts and of how to go about them (``Domain.next_sub_goal``) plays no role.

Shape letters: R rollouts, O numbers in an observation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from kalm.core.goal import InstructedGoal
from kalm.data.language_batches import GroundingBatch, GroundingTask, WorkItem, batch_states
from kalm.language.prompts import generation_prompt, sub_goal_prompt
from kalm.llm.backbones.backbone import Backbone
from kalm.llm.grounding.explaining import write_answers
from kalm.llm.grounding.reading import read_rollouts
from kalm.llm.grounding.rollout_codec import RolloutCodec
from kalm.llm.imagination.rows import Generated

_AT_ONCE = 256
_NUM_DRAWN = 6  # parts, where the likeliest is done already
_DONE = 0.5  # probability, by the end head, from which a part counts as done


@dataclass
class OwnChain:
    """A rollout in the making, link by link."""

    item: WorkItem  # the whole goal
    links: list[tuple[WorkItem, Generated]] = field(default_factory=list)

    @property
    def observation(self) -> NDArray[np.float32]:
        """Where it has got to, shape (O,)."""
        return self.links[-1][1].observations[-1] if self.links else self.item.start

    @property
    def num_steps(self) -> int:
        """Steps that it has taken."""
        return sum(len(piece.actions) for _, piece in self.links)

    @property
    def stopped_by(self) -> str:
        """Its step limit, or that the model saw nothing left."""
        return "limit" if self.num_steps >= self.item.max_steps else "end"


class SubGoalWriter:
    """Asks a grounded model what is left to do, and whether something is done."""

    def __init__(self, backbone: Backbone, codec: RolloutCodec) -> None:
        """Take the model."""
        self._backbone, self._codec = backbone, codec

    def left(self, instructions: Sequence[str], observations: NDArray[np.float32]) -> list[tuple[str, bool]]:
        """For each of R instructions what to pursue from an observation, shape (R, O), and whether that is left to do.

        It is the likeliest part; where that one is done already, it is the one of several drawn that was drawn most
        often and is not done. Once is not enough: what the model is not sure of is no part. What is drawn depends on
        who is asked for together.
        """
        parts = [answer for (answer,) in self.write(instructions, observations)]
        found = [(part, not done) for part, done in zip(parts, self.is_done(parts, observations), strict=True)]
        asked = [row for row, (_, is_left) in enumerate(found) if not is_left]
        drawn = self.write([instructions[row] for row in asked], observations[asked], 1 + _NUM_DRAWN) if asked else []
        counted = [(row, Counter(some[1:]).most_common()) for row, some in zip(asked, drawn, strict=True)]
        pairs = [(row, part) for row, some in counted for part, number in some if number > 1]
        if pairs:
            done = self.is_done([part for _, part in pairs], observations[[row for row, _ in pairs]])
            for (row, part), is_done in zip(reversed(pairs), reversed(done), strict=True):
                found[row] = found[row] if is_done else (part, True)
        return found

    @torch.inference_mode()
    def write(
        self, instructions: Sequence[str], observations: NDArray[np.float32], num_answers: int = 1
    ) -> list[list[str]]:
        """Parts of R instructions at observations, the likeliest first, others drawn; where none comes, the whole."""
        batch = self._batch(list(map(sub_goal_prompt, instructions)), observations, GroundingTask.SUB_GOAL)
        answers = write_answers(self._backbone, self._codec, batch, num_answers)
        return [
            [answer.strip() or instruction for answer in some]
            for some, instruction in zip(answers, instructions, strict=True)
        ]

    @torch.inference_mode()
    def is_done(self, instructions: Sequence[str], observations: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether the end head sees each instruction done at an observation, shape (R,), from shape (R, O)."""
        batch = self._batch(list(map(generation_prompt, instructions)), observations, GroundingTask.GENERATION)
        hidden = read_rollouts(self._backbone, self._codec, batch)
        done: NDArray[np.bool_] = (torch.sigmoid(self._codec.predict_end(hidden.final)) >= _DONE).cpu().numpy()
        return done

    def _batch(self, prompts: list[str], observations: NDArray[np.float32], task: GroundingTask) -> GroundingBatch:
        states = torch.from_numpy(observations).to(self._codec.observation_mean.device)
        return batch_states(states, prompts, task, self._codec.no_action)


def imagine_by_own_sub_goals(
    items: Sequence[WorkItem],
    writer: SubGoalWriter,
    carry_out: Callable[[Sequence[WorkItem]], Sequence[Generated]],
    max_link_steps: int,
) -> list[OwnChain]:
    """Imagine a chain for each work item, all of them a link at a time.

    Args:
        items: What to imagine; each by its parts.
        writer: The model that says what is left to do.
        carry_out: Imagines one piece for each work item.
        max_link_steps: Steps after which the model is asked anew.
    """
    chains = [OwnChain(item) for item in items]
    going = list(chains)
    while going:
        links = []
        for first in range(0, len(going), _AT_ONCE):
            some = going[first : first + _AT_ONCE]
            at = np.stack([chain.observation for chain in some])
            told = [chain.item.instructed.instruction for chain in some]
            links += [
                (chain, _link(chain, part, max_link_steps))
                for chain, (part, is_left) in zip(some, writer.left(told, at), strict=True)
                if is_left or not chain.links  # a rollout has a step at least
            ]
        pieces = carry_out([link for _, link in links])
        for (chain, link), piece in zip(links, pieces, strict=True):
            chain.links.append((link, piece))
        going = [chain for chain, _ in links if chain.num_steps < chain.item.max_steps]
    return chains


def _link(chain: OwnChain, part: str, max_link_steps: int) -> WorkItem:
    whole = chain.item
    seed = int(np.random.default_rng([whole.seed, len(chain.links)]).integers(2**31))
    instructed = InstructedGoal(whole.instructed.goal, part, whole.instructed.goal_split)
    return WorkItem(instructed, chain.observation, min(max_link_steps, whole.max_steps - chain.num_steps), seed)
