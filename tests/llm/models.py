"""What the tests of the language model share: small models, hand-made batches, the chain's data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from kalm.core.specs import TaskSpec, vector_spec
from kalm.data.choice import RolloutFilter
from kalm.data.grounding_data import GroundingData, GroundingTasks
from kalm.data.language_batches import GroundingBatch, GroundingTask
from kalm.data.rollout_sources import RealRollouts
from kalm.llm.backbones.tiny_backbone import TinyBackbone
from kalm.llm.grounding.grounded_llm import GroundedLLM
from kalm.store.reader import is_finished_store
from tests.chain_domain import ChainDomain
from tests.data.rollouts import arguments, real_rollouts, write_store
from tests.llm.token_encoder import TokenEncoder

DISCRETE = vector_spec(observation_size=5, action_size=2, is_discrete=True, goal_embedding_size=16)
CONTINUOUS = vector_spec(observation_size=5, action_size=2, is_discrete=False, goal_embedding_size=16)
ANSWERS = ["go to the left end", "walk to the right end"]


def tiny_backbone(seed: int = 0, **options: Any) -> TinyBackbone:
    """Two layers of 32, able to write ``ANSWERS``."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "feed_forward_size": 48}
    backbone = TinyBackbone(TokenEncoder(), **{**sizes, **options})
    backbone.learn_vocabulary(ANSWERS)
    return backbone


def grounded_llm(spec: TaskSpec = DISCRETE, seed: int = 0, **options: Any) -> GroundedLLM:
    """An untrained model whose output layers are loud enough for differences to show."""
    model = GroundedLLM(spec, tiny_backbone(seed), inner_size=16, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    return model.eval()


def hand_made_batch(is_discrete: bool = True) -> GroundingBatch:
    """Four rollouts behind three prompts: two generations share one, then a dynamics, then an explanation."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([3, 1, 2, 2])
    num_steps = int(lengths.sum())
    continuous = torch.rand(num_steps, 2, generator=generator) * 2 - 1
    next_observation = torch.randn(num_steps, 5, generator=generator)
    return GroundingBatch(
        prompts=["imagine : go to the left end", "predict", "explain this"],
        prompt_of_rollout=torch.tensor([0, 0, 1, 2]),
        task=torch.tensor(
            [GroundingTask.GENERATION, GroundingTask.GENERATION, GroundingTask.DYNAMICS, GroundingTask.EXPLANATION]
        ),
        lengths=lengths,
        observation=torch.randn(num_steps, 5, generator=generator),
        action=torch.randint(2, (num_steps,), generator=generator) if is_discrete else continuous,
        next_observation=next_observation,
        final_observation=next_observation[lengths.cumsum(0) - 1],
        is_terminated=torch.tensor([True, False, True, True]),
        return_to_go=torch.randn(num_steps, generator=generator),
        answers=["", "", "", ANSWERS[0]],
    )


def chain_grounding_data(folder: Path, num_rollouts: int = 300, **options: Any) -> GroundingData:
    """The chain's rollouts, written to ``folder`` on first use."""
    if not is_finished_store(folder / "real"):
        write_store(folder / "real", real_rollouts(num_rollouts))
    defaults = {
        "real": RealRollouts(str(folder / "real"), RolloutFilter.success),
        "tasks": GroundingTasks(generation=16, dynamics=8, explanation=8),
        "num_held_out": 40,
        "num_imagined": 12,
    }
    return GroundingData(ChainDomain(), TokenEncoder(), **arguments(defaults, **options))


def one_rollout_alone(batch: GroundingBatch, index: int) -> GroundingBatch:
    """The same rollout behind its prompt, without the others."""
    ends = batch.lengths.cumsum(0)
    steps = slice(int(ends[index] - batch.lengths[index]), int(ends[index]))
    return GroundingBatch(
        prompts=[batch.prompts[int(batch.prompt_of_rollout[index])]],
        prompt_of_rollout=torch.tensor([0]),
        task=batch.task[index : index + 1],
        lengths=batch.lengths[index : index + 1],
        observation=batch.observation[steps],
        action=batch.action[steps],
        next_observation=batch.next_observation[steps],
        final_observation=batch.final_observation[index : index + 1],
        is_terminated=batch.is_terminated[index : index + 1],
        return_to_go=batch.return_to_go[steps],
        answers=[batch.answers[index]],
    )


def one_hot_starts(cells: list[int]) -> np.ndarray:
    """First observations of the chain."""
    return np.eye(5, dtype=np.float32)[cells]
