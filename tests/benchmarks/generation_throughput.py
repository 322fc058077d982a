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
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kalm.data.work_item import WorkItem
from kalm.envs.base import InstructedGoal
from kalm.envs.clevr_robot import ClevrRobot
from kalm.language.encoder import SentenceEncoder
from kalm.llm.backbone import Backbone
from kalm.llm.generation import Generated, Sampling, generate
from kalm.llm.reader import CachedReader, Reader
from kalm.llm.rollout_codec import RolloutCodec
from kalm.llm.tiny_backbone import TinyBackbone
from kalm.types import GoalSplit, TaskSpec

NUM_STEPS = (5, 50)
LEAST_SPEED_UP = 8.0


class RecomputingReader:
    """Forgets everything after each token but the vectors, as a model without a cache does."""

    def __init__(self, backbone: Backbone) -> None:
        """Begin with nothing read."""
        self._backbone = backbone
        self._vectors = torch.empty(0)

    def admit(self, rows: Sequence[int], prompts: Sequence[str], num_tokens: int) -> None:
        """Embed the prompts; they have the same length."""
        vectors, is_real = self._backbone.embed_prompts(prompts)
        assert is_real.all()
        self._vectors = vectors

    def make_room(self, num_tokens: int) -> None:
        """Nothing is planned for."""

    def extend(self, vectors: Tensor) -> Tensor:
        """Run the prompts and all tokens so far."""
        self._vectors = torch.cat([self._vectors, vectors[:, None]], dim=1)
        size = self._vectors.shape[1]
        causal = torch.ones(size, size, dtype=torch.bool).tril()[None, None]
        hidden: Tensor = self._backbone(self._vectors, torch.arange(size)[None], causal)
        return hidden[:, -1]

    def release(self, rows: NDArray[np.int64]) -> None:
        """Nothing to free."""

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Drop all rollouts but these."""
        self._vectors = self._vectors[torch.from_numpy(rows)]


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

    encoder = SentenceEncoder(cache_dir=None)
    spec = TaskSpec(observation_size=10, action_size=40, is_discrete=True, goal_embedding_size=encoder.embedding_size)
    torch.manual_seed(0)
    backbone = TinyBackbone(encoder).eval()
    codec = RolloutCodec(spec, backbone.hidden_size, inner_size=256).eval()
    goal = ClevrRobot().instructed_goals(GoalSplit.REPHRASE)[0]
    readers: dict[str, Callable[[], Reader]] = {
        "with cache": lambda: CachedReader(backbone, options.rollouts),
        "without": lambda: RecomputingReader(backbone),
    }
    for num_steps in NUM_STEPS:
        seconds: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(options.repeats):
            for name, times in seconds.items():
                began = clock()
                _run(readers[name](), codec, goal, options.rollouts, num_steps)
                times.append(clock() - began)
        rates = {name: options.rollouts / statistics.median(times) for name, times in seconds.items()}
        speed_up = rates["with cache"] / rates["without"]
        shown = ", ".join(f"{rate:.1f} rollouts/s {name}" for name, rate in rates.items())
        sys.stdout.write(f"{num_steps} steps, {options.rollouts} at once: {shown}: {speed_up:.1f} times faster\n")
    return 0 if speed_up >= LEAST_SPEED_UP else 1


def _run(reader: Reader, codec: RolloutCodec, goal: InstructedGoal, num_rollouts: int, num_steps: int) -> None:
    def never(items: Sequence[WorkItem], *step: NDArray[Any]) -> NDArray[np.bool_]:
        return np.zeros(len(items), dtype=np.bool_)

    def finish(index: int, made: Generated) -> None:
        assert len(made.actions) == num_steps

    starts = np.random.default_rng(0).uniform(-0.5, 0.5, (num_rollouts, 10)).astype(np.float32)
    items = [WorkItem(goal, start, num_steps, seed) for seed, start in enumerate(starts)]
    generate(reader, codec, Sampling(0.0, 1.0), items, never, finish, num_rollouts)


if __name__ == "__main__":
    sys.exit(main())
