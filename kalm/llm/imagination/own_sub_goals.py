"""Goals of several parts, imagined one part after another, where the model itself says which is left to do.

Nothing but the model is asked. It was taught to take a sentence apart and to see what is met (``SubGoalBatches``): from
the whole sentence and the present state it writes what to pursue, imagines that in a link of its own, and goes on from
where the link led to. Once its end head sees that what it writes is done already, nothing is left. What the domain's
rules know of parts and of how to go about them (``Domain.next_sub_goal``) plays no role.

Shape letters: R rollouts, O numbers in an observation.
"""

from __future__ import annotations

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


class SubGoalWriter:
    """Asks a grounded model what is left to do, and whether something is done."""

    def __init__(self, backbone: Backbone, codec: RolloutCodec) -> None:
        """Take the model."""
        self._backbone, self._codec = backbone, codec

    @torch.inference_mode()
    def write(self, instructions: Sequence[str], observations: NDArray[np.float32]) -> list[str]:
        """For each of R instructions what to pursue next from an observation, shape (R, O); itself if nothing comes."""
        batch = self._batch(list(map(sub_goal_prompt, instructions)), observations, GroundingTask.SUB_GOAL)
        answers = [answer.strip() for (answer,) in write_answers(self._backbone, self._codec, batch)]
        return [answer or instruction for answer, instruction in zip(answers, instructions, strict=True)]

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
            parts = writer.write([chain.item.instructed.instruction for chain in some], at)
            done = writer.is_done(parts, at)
            links += [
                (chain, _link(chain, part, max_link_steps))
                for chain, part, is_done in zip(some, parts, done.tolist(), strict=True)
                if not (is_done and chain.links)  # a rollout has a step at least
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
