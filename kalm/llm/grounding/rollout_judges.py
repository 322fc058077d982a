"""Judges of rollouts that know no rule: the grounded language model itself says what a rollout is for.

``ContrastJudge`` asks how much likelier the model is to act so under the rollout's own instruction than under others of
the same split: the pointwise mutual information of words and deeds, a step. What a model does whatever it is told says
nothing for an instruction. Scoring by mutual information is Li et al.'s (2016, arXiv:1510.03055), for what to say; ours
for rollouts. That a rollout ends does not count: where the model stops itself, it always thinks that it is there.

``ExplanationJudge`` has the model explain the rollout in words, and compares the words with the goal: imagination that
the model cannot explain again is not trusted (cycle consistency). The goal's key words decide what counts as the same,
its rule does not. A model names goals of the kinds only that it was taught to explain.

Shape letters: R rollouts, n steps of all of them, K other instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kalm.core.durable import file_sha256
from kalm.core.errors import CheckpointError, require
from kalm.core.goal import Goal
from kalm.core.rollout import Rollout
from kalm.data.language_batches import GroundingTask, batch_rollouts
from kalm.envs.base import Domain
from kalm.judging.judge import Judge, Verdict, verdict
from kalm.language.prompts import generation_prompt
from kalm.llm.backbones.backbone import Backbone, require_same_backbone
from kalm.llm.grounding.grounded_llm import GroundedLLM
from kalm.llm.grounding.losses import action_loss
from kalm.llm.grounding.reading import read_rollouts
from kalm.runs.checkpoint_io import VerifiedCheckpointIO
from kalm.runs.folder import find_checkpoint

_ROLLOUTS_AT_ONCE = 256


class GroundedJudge(Judge):
    """A grounded model out of a checkpoint, on the CPU; a subclass says what it is asked."""

    def __init__(
        self, checkpoint: str, domain: Domain, backbone: Backbone, inner_size: int = 256, name: str = "grounded"
    ) -> None:
        """Load it.

        Args:
            checkpoint: Of grounding, or the folder of its run.
            domain: The world that it was grounded in.
            backbone: The language model underneath, as it was grounded.
            inner_size: As it was grounded.
            name: Of the label that it writes.

        Raises:
            CheckpointError: If the checkpoint is missing, damaged, or of another model.
        """
        path = find_checkpoint(checkpoint, Path(), "--judge.init_args.checkpoint")
        content = VerifiedCheckpointIO().load_checkpoint(path)
        require_same_backbone(content, backbone)
        self.model = GroundedLLM(domain.spec, backbone, inner_size)
        self.model.configure_model()
        try:
            self.model.load_state_dict(content["state_dict"])
        except RuntimeError as error:
            raise CheckpointError(f"{path} is of another model or world: {error}") from error
        self.model.eval()
        self.domain, self.name = domain, name
        self._checkpoint_sha256 = file_sha256(path)

    @property
    def provenance(self) -> dict[str, Any]:
        """Which model was asked."""
        return {"judge": type(self).__name__, "domain": self.domain.name, "checkpoint_sha256": self._checkpoint_sha256}


class ContrastJudge(GroundedJudge):
    """Whether a rollout is far likelier under its own instruction than under others."""

    def __init__(self, margin: float = 2.0, num_others: int = 64, name: str = "contrast", **model: Any) -> None:
        """Choose how much likelier.

        Args:
            margin: Difference, in nats a step, between the log-probability of its actions under its own instruction and
                that under the mean of others, from which on a rollout is called met.
            num_others: Other instructions of the rollout's split, K; the same for all of its rollouts.
            name: Of the label that it writes.
            model: Which model is asked, see ``GroundedJudge``.

        Raises:
            CheckpointError: If the checkpoint is missing, damaged, or of another model.
            KalmError: If a number is out of range.
        """
        require(num_others >= 1, "num_others", num_others, "1 or more")
        super().__init__(name=name, **model)
        self._margin, self._num_others = margin, num_others
        self._others: dict[str, list[str]] = {}

    @property
    def provenance(self) -> dict[str, Any]:
        """Which model was asked, and how."""
        return {**super().provenance, "margin": self._margin, "num_others": self._num_others}

    def judge(self, goals: Sequence[Goal | None], rollouts: Sequence[Rollout]) -> Verdict:
        """Each rollout by its own instruction, if it has one; the score is the logistic of the difference."""
        gain = np.zeros(len(rollouts))
        has_words = np.array([bool(made.instruction) for made in rollouts])
        rows = np.flatnonzero(has_words).tolist()
        told = [rollouts[row] for row in rows]
        own = self._log_probabilities(told, [made.instruction for made in told])
        others = np.full(len(own), -np.inf)
        for number in range(self._num_others):
            said = [self._others_of(made.goal_split)[number] for made in told]
            others = np.logaddexp(others, self._log_probabilities(told, said))
        gain_of_steps = own - (others - np.log(self._num_others))
        lengths = [len(made) for made in told]
        gain[rows] = [part.mean() for part in np.split(gain_of_steps, np.cumsum(lengths)[:-1])] if told else []
        score = 1 / (1 + np.exp(-np.clip(gain, -50, 50)))
        return verdict(gain >= self._margin, score, abstained=~has_words)

    def _others_of(self, goal_split: str) -> list[str]:
        """K sentences of a split, drawn once and for all; of a split with fewer some are drawn again."""
        if goal_split not in self._others:
            sentences = sorted({row.instruction for row in self.domain.instructed_goals(goal_split)})
            drawn = np.random.default_rng(0).permutation(len(sentences))
            self._others[goal_split] = [sentences[drawn[n % len(drawn)]] for n in range(self._num_others)]
        return self._others[goal_split]

    @torch.inference_mode()
    def _log_probabilities(self, rollouts: Sequence[Rollout], instructions: Sequence[str]) -> NDArray[np.float64]:
        """Of every action of each rollout under an instruction, those of the first rollout first; shape (n,).

        Continuous actions have no probability; the negative squared error of what the model would do stands in.
        """
        found = [np.zeros(0)]
        for first in range(0, len(rollouts), _ROLLOUTS_AT_ONCE):
            some = slice(first, first + _ROLLOUTS_AT_ONCE)
            prompts = [generation_prompt(instruction) for instruction in instructions[some]]
            batch = batch_rollouts(rollouts[some], prompts, GroundingTask.GENERATION)
            if len(set(prompts)) == 1:  # a prompt that all share is read once
                batch = batch._replace(prompts=prompts[:1], prompt_of_rollout=torch.zeros_like(batch.prompt_of_rollout))
            hidden = read_rollouts(self.model.backbone, self.model.codec, batch)
            loss = action_loss(self.model.codec.predict_action(hidden.observation), batch.action)
            found.append(-loss.double().numpy())
        return np.concatenate(found)


class ExplanationJudge(GroundedJudge):
    """Whether the model, asked what a rollout is for, names its goal."""

    def __init__(self, num_answers: int = 8, name: str = "explanation", **model: Any) -> None:
        """Choose how many answers it tries.

        Args:
            num_answers: Answers to each rollout, of which the one counts that best foretells it.
            name: Of the label that it writes.
            model: Which model is asked, see ``GroundedJudge``.

        Raises:
            CheckpointError: If the checkpoint is missing, damaged, or of another model.
            KalmError: If a number is out of range.
        """
        require(num_answers >= 1, "num_answers", num_answers, "1 or more")
        super().__init__(name=name, **model)
        self._num_answers = num_answers

    @property
    def provenance(self) -> dict[str, Any]:
        """Which model was asked, and how."""
        return {**super().provenance, "num_answers": self._num_answers}

    def judge(self, goals: Sequence[Goal | None], rollouts: Sequence[Rollout]) -> Verdict:
        """Each rollout by its goal; who has none is not judged."""
        met = np.zeros(len(rollouts), dtype=np.bool_)
        for first in range(0, len(rollouts), _ROLLOUTS_AT_ONCE):
            some = slice(first, first + _ROLLOUTS_AT_ONCE)
            texts = self.model.explain(rollouts[some], num_answers=self._num_answers)
            met[some] = [
                goal is not None and goal.explained_by(text) for goal, text in zip(goals[some], texts, strict=True)
            ]
        return verdict(met, abstained=[goal is None for goal in goals])
