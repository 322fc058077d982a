"""A proxy reward out of a checkpoint, as a judge: ``python -m kalm label`` and whoever asks judges take it by its path.

Shape letters: S states.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kalm.core.durable import file_sha256
from kalm.core.errors import CheckpointError
from kalm.envs.base import Domain
from kalm.judging.proxy_judge import ProxyJudge
from kalm.language.encoder import SentenceEncoder
from kalm.rl.rewards.base import REWARD, ProxyReward
from kalm.rl.rewards.fact_reward import FactReward
from kalm.rl.rewards.goal_networks import GoalNetworks
from kalm.runs.checkpoint_io import VerifiedCheckpointIO
from kalm.runs.folder import find_checkpoint

MODELS: dict[str, type[FactReward | GoalNetworks]] = {"FactReward": FactReward, "GoalNetworks": GoalNetworks}


class TrainedProxy(ProxyJudge):
    """The judge that a checkpoint of ``FactReward`` or ``GoalNetworks`` makes."""

    def __init__(
        self, checkpoint: str, domain: Domain, encoder: SentenceEncoder | None = None, name: str = "proxy"
    ) -> None:
        """Load it, on the CPU.

        Args:
            checkpoint: A checkpoint, or the folder of its run.
            domain: The world that it learned.
            encoder: The one that it learned with; None is the default one.
            name: Of the label that it writes.

        Raises:
            CheckpointError: If the checkpoint is missing, damaged, of something else, or learned with another encoder.
        """
        path = find_checkpoint(checkpoint, Path(), "--judge.init_args.checkpoint")
        content = VerifiedCheckpointIO().load_checkpoint(path)
        if REWARD not in content:
            raise CheckpointError(
                f"{path} holds no proxy reward; train one: python -m kalm fit --config conf/babyai/proxy_reward.yaml"
            )
        facts, encoder = content[REWARD], encoder or SentenceEncoder()
        if facts["encoder"] != encoder.fingerprint:
            raise CheckpointError(f"{path} learned with the encoder {facts['encoder']}, not {encoder.fingerprint}")
        self._reward = _built(content, domain, path)
        provenance = {
            "model": facts["model"],
            "checkpoint_sha256": file_sha256(path),
            "thresholds": facts["thresholds"],
            "precision": facts["precision"],
            "label": facts["label"],
            "label_sha256": facts["label_sha256"],
            "labels_by": facts["labels_by"],
        }
        if facts["labels_by"].get("is_oracle"):
            provenance["is_oracle"] = True
        super().__init__(_Reading(self._reward, domain, encoder, facts), domain, provenance, name)


class _Reading:
    """What ``ProxyJudge`` asks: a sentence and states in, probabilities out."""

    def __init__(self, reward: ProxyReward, domain: Domain, encoder: SentenceEncoder, facts: dict[str, Any]) -> None:
        self._reward, self._domain, self._encoder = reward, domain, encoder
        self._thresholds = dict(facts["thresholds"])
        self._instructions: list[str] | None = facts.get("instructions")

    def probability(self, instruction: str, states: NDArray[Any]) -> NDArray[np.float32] | None:
        """How likely each state meets what a sentence asks for; None for a goal that has no network."""
        if self._instructions is not None:
            if instruction not in self._instructions:
                return None
            goal, read = self._instructions.index(instruction), states
        else:
            goal, read = -1, self._domain.facts(states)
        tokens, attention_mask = self._encoder.token_vectors([instruction])
        batch = {"goal": torch.tensor([goal]), "tokens": tokens, "attention_mask": attention_mask}
        return self._reward.probabilities({**batch, "state": torch.from_numpy(read)[None]})

    def threshold(self, task: str) -> float | None:
        """The one of its checkpoint."""
        return self._thresholds.get(task)


def _built(content: dict[str, Any], domain: Domain, path: Path) -> ProxyReward:
    facts = content[REWARD]
    sizes = dict(facts["sizes"])
    spec = domain.spec.with_goals(sizes.pop("embedding_size", 0))
    reward = MODELS[facts["model"]](spec, **sizes)
    if isinstance(reward, FactReward):
        reward.use_facts(domain.possible_facts)
    try:
        reward.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise CheckpointError(f"{path} is of another world than {domain.name}: {error}") from error
    reward.thresholds = dict(facts["thresholds"])
    return reward.eval()
