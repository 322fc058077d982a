"""Imagined rollouts a second, with the key-value cache and with every token run again for each new one.

    python tests/benchmarks/generation_throughput.py [--threads 2] [--rollouts 64] [--repeats 3] [--clock wall]

The model has the demo's size and random weights, and no rollout stops before its last step, so both ways do the same
steps. Without the cache a rollout of T steps costs about T times the tokens; at CLEVR-Robot's limit of 50 steps the
cache must be at least 8 times faster. Repeats alternate, and medians are compared, because machines drift. Measure with
``--clock cpu --threads 1`` where other work shares the machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kalm.envs.clevr_robot import ClevrRobot
from kalm.language.encoder import SentenceEncoder
from kalm.language.prompts import generation_prompt
from kalm.llm.backbone import Backbone
from kalm.llm.generation import CachedReader, Reader, Sampling, generate
from kalm.llm.rollout_codec import RolloutCodec
from kalm.llm.tiny_backbone import TinyBackbone
from kalm.types import GoalSplit, TaskSpec

NUM_STEPS = (5, 50)
LEAST_SPEED_UP = 8.0


class RecomputingReader:
    """Forgets everything after each token but the vectors, as a model without a cache does."""

    def __init__(self, backbone: Backbone, prompts: Sequence[str]) -> None:
        """Embed the prompts."""
        self._backbone = backbone
        self._prompts, self._prompt_mask = backbone.embed_prompts(prompts)
        self._tokens: list[Tensor] = []

    def extend(self, vectors: Tensor) -> Tensor:
        """Run the prompts and all tokens so far."""
        self._tokens.append(vectors)
        cache = self._backbone.make_cache(self._prompt_mask, len(self._tokens))
        for part in (self._prompts, torch.stack(self._tokens, dim=1)):
            size = part.shape[1]
            hidden = self._backbone(part, cache.positions(size), cache.attention_mask(size), cache)
        return hidden[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Drop all rollouts but these."""
        self._prompts, self._prompt_mask = self._prompts[rows], self._prompt_mask[rows]
        self._tokens = [token[rows] for token in self._tokens]


def main() -> int:
    """Measure, print, and judge the speed-up at the longest rollouts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rollouts", type=int, default=64, help="rollouts of a batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.perf_counter if options.clock == "wall" else time.process_time

    domain, encoder = ClevrRobot(), SentenceEncoder(cache_dir=None)
    spec = TaskSpec(observation_size=10, action_size=40, is_discrete=True, goal_embedding_size=encoder.embedding_size)
    torch.manual_seed(0)
    backbone = TinyBackbone(encoder).eval()
    codec = RolloutCodec(spec, backbone.hidden_size, inner_size=256).eval()
    goals = domain.instructed_goals(GoalSplit.REPHRASE)
    prompts = [generation_prompt(goals[7 * i % len(goals)].instruction) for i in range(options.rollouts)]
    backbone.embed_prompts(prompts)  # the encoder runs here, once
    for num_steps in NUM_STEPS:
        seconds: dict[str, list[float]] = {"with cache": [], "without": []}
        for _ in range(options.repeats):
            for name, times in seconds.items():
                began = clock()
                _run(_reader(name, backbone, prompts, num_steps), codec, options.rollouts, num_steps)
                times.append(clock() - began)
        rates = {name: options.rollouts / statistics.median(times) for name, times in seconds.items()}
        speed_up = rates["with cache"] / rates["without"]
        shown = ", ".join(f"{rate:.1f} rollouts/s {name}" for name, rate in rates.items())
        sys.stdout.write(f"{num_steps} steps, {options.rollouts} at once: {shown}: {speed_up:.1f} times faster\n")
    return 0 if speed_up >= LEAST_SPEED_UP else 1


def _reader(name: str, backbone: Backbone, prompts: Sequence[str], num_steps: int) -> Reader:
    with torch.inference_mode():
        if name == "without":
            return RecomputingReader(backbone, prompts)
        return CachedReader(backbone, prompts, 2 * num_steps)


def _run(reader: Reader, codec: RolloutCodec, num_rollouts: int, num_steps: int) -> None:
    def never(rows: NDArray[np.int64], *step: NDArray[Any]) -> NDArray[np.bool_]:
        return np.zeros(len(rows), dtype=np.bool_)

    starts = np.random.default_rng(0).uniform(-0.5, 0.5, (num_rollouts, 10)).astype(np.float32)
    made = generate(
        reader, codec, starts, np.full(num_rollouts, num_steps), range(num_rollouts), never, Sampling(0.0, 1.0)
    )
    assert all(len(rollout.actions) == num_steps for rollout in made)


if __name__ == "__main__":
    sys.exit(main())
