"""Imagined rollouts a second: kalm's engine, a loop without a cache, and ``generate`` of transformers.

    python -m tests.benchmarks.generation_throughput [--threads 2] [--rows 32] [--repeats 3] [--clock wall]

All run the same Llama of four layers and 256 numbers a token, in float32, on the same vectors of the same prompts, from
the first to the last step: two forwards of one token a step. transformers is given its faster cache, static or dynamic,
and spared states and actions: it picks words from a vocabulary of 400 instead.

- *no cache*: every token is run again for each new one. Target: kalm is 20 times faster at 50 steps.
- *generate*, equal lengths: what a forward costs around the layers, which are the same code.
- *generate*, lengths of imagined rollouts (most are short, some go to the limit): a batch of ``generate`` lasts until
  its longest rollout has ended; kalm gives rows to the next ones. Target: kalm is 1.5 times faster.
- *limit*: the time that the forwards' multiplications, or the bytes that they must move, would take at the rate of a
  plain matrix product, or copy, on this machine, as a share of the time that they do take.

Repeats alternate, and medians are compared, because machines drift. Measure with ``--clock cpu --threads 1`` where
other work shares the machine. Two minutes on one core.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kalm.core.goal import Goal, InstructedGoal
from kalm.core.specs import vector_spec
from kalm.data.language_batches import WorkItem
from kalm.language.prompts import generation_prompt
from kalm.llm.backbones.hugging_face_backbone import HuggingFaceBackbone
from kalm.llm.grounding.rollout_codec import RolloutCodec
from kalm.llm.imagination.generation import Generation, Reader
from kalm.llm.imagination.rows import Generated
from tests.chain_domain import CellGoal
from tests.llm.small_models import backbone, save_small_model

NUM_STEPS = 50
LEAST_OVER_NO_CACHE, LEAST_OVER_GENERATE = 20.0, 1.5
SIZES = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4}
SPEC = vector_spec(observation_size=10, action_size=40, is_discrete=True, goal_embedding_size=16)
INSTRUCTION = "please move the ball to the left end of the row and leave the others where they are"


class RecomputingReader:
    """Forgets everything after each token but the vectors, as a model without a cache does."""

    def __init__(self, model: HuggingFaceBackbone) -> None:
        """Begin with nothing read."""
        self._model = model
        self._vectors = torch.empty(0)

    def admit(self, rows: Sequence[int], prompts: Sequence[str], num_tokens: int) -> None:
        """Embed the prompts; they have the same length."""
        self._vectors, is_real = self._model.embed_prompts(prompts)
        assert is_real.all()

    def make_room(self, num_tokens: int) -> None:
        """Nothing is planned for."""

    def extend(self, vectors: Tensor) -> Tensor:
        """Run the prompts and all tokens so far."""
        self._vectors = torch.cat([self._vectors, vectors[:, None]], dim=1)
        size = self._vectors.shape[1]
        causal = torch.ones(size, size, dtype=torch.bool).tril()[None, None]
        return self._model(self._vectors, torch.arange(size)[None], causal)[:, -1]

    def release(self, rows: NDArray[np.int64]) -> None:
        """Nothing to free."""

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Drop all rollouts but these."""
        self._vectors = self._vectors[torch.from_numpy(rows)]


class _OnePiece:
    """A plan that wants one work item and keeps the length of what was made."""

    def __init__(self, item: WorkItem) -> None:
        self.next_item: WorkItem | None = item
        self.length = 0

    def add(self, piece: Generated) -> None:
        self.length, self.next_item = len(piece.actions), None


class Bench:
    """The model, and each way to run it."""

    def __init__(self, folder: Path, num_rows: int) -> None:
        """Make the model."""
        save_small_model(folder, "llama", [generation_prompt(INSTRUCTION)], num_updates=0, sizes=SIZES)
        self.num_rows = num_rows
        self.model = backbone(folder, tuning="full").eval()
        self.codec = RolloutCodec(SPEC, [self.model.hidden_size], inner_size=256).eval()

    def kalm(self, lengths: Sequence[int]) -> None:
        """Rollouts of these lengths, as many at a time as there are rows."""
        self._generate(Reader(self.model, self.num_rows), lengths)

    def no_cache(self, lengths: Sequence[int]) -> None:
        """The same without remembering anything."""
        self._generate(RecomputingReader(self.model), lengths)

    def transformers(self, lengths: Sequence[int], cache: str) -> None:
        """Equally many forwards by transformers, batch by batch."""
        with torch.inference_mode():
            for first in range(0, len(lengths), self.num_rows):
                batch = lengths[first : first + self.num_rows]
                vectors, _ = self.model.embed_prompts([generation_prompt(INSTRUCTION)] * len(batch))
                num_tokens = 2 * max(batch) + 1  # the first comes from the prompt
                tokens = self.model._causal_lm.generate(
                    inputs_embeds=vectors,
                    attention_mask=torch.ones(vectors.shape[:2], dtype=torch.int64),
                    min_new_tokens=None,
                    max_new_tokens=num_tokens,
                    do_sample=False,
                    eos_token_id=None,
                    cache_implementation=cache,
                )
                assert tokens.shape == (len(batch), num_tokens)

    def _generate(self, reader: Reader, lengths: Sequence[int]) -> None:
        goal = InstructedGoal(CellGoal(0), INSTRUCTION, "easy")
        starts = np.random.default_rng(0).uniform(-0.5, 0.5, (len(lengths), 10)).astype(np.float32)
        items = [
            WorkItem(goal, start, length, seed)
            for seed, (start, length) in enumerate(zip(starts, lengths, strict=True))
        ]

        def never(goals: Sequence[Goal], *step: NDArray[Any]) -> NDArray[np.bool_]:
            return np.zeros(len(goals), dtype=np.bool_)

        num_rows = min(self.num_rows, len(lengths))
        if isinstance(reader, Reader):
            reader.begin(num_rows)
        plans = [_OnePiece(item) for item in items]
        Generation(reader, self.codec, never).carry_out(plans, num_rows)
        assert [plan.length for plan in plans] == list(lengths)

    def limit_seconds(self, num_rows: int, flops: float, bytes_per_second: float) -> float:
        """How long the decoding forwards of ``num_rows`` rollouts of the longest kind must take at least."""
        weights = sum(p.numel() for name, p in self.model._causal_lm.named_parameters() if "layers" in name)
        config = self.model._text_config
        head_size = config.hidden_size // config.num_attention_heads
        prompt_size = self.model.embed_prompts([generation_prompt(INSTRUCTION)])[0].shape[1]
        seen = sum(prompt_size + token for token in range(1, 2 * NUM_STEPS + 1)) * num_rows
        attention = 4 * config.num_hidden_layers * config.hidden_size * seen
        multiplications = 2 * weights * num_rows * 2 * NUM_STEPS + attention
        remembered = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size * seen
        moved = 4 * (weights * 2 * NUM_STEPS + remembered)
        return max(multiplications / flops, moved / bytes_per_second)


def machine_limits(clock: Callable[[], float]) -> tuple[float, float]:
    """Floating-point operations a second of a large matrix product, bytes a second (read and written) of a copy."""
    square, large = torch.randn(1024, 1024), torch.randn(1 << 25)
    target = torch.empty_like(large)
    product = min(_seconds(lambda: square @ square, clock) for _ in range(5))
    copy = min(_seconds(lambda: target.copy_(large), clock) for _ in range(5))
    return 2 * 1024**3 / product, 2 * 4 * len(large) / copy


def imagined_lengths(num_rollouts: int) -> list[int]:
    """Lengths like those of rephrased goals on CLEVR-Robot: half at most 5, one in ten above 23, some at the limit."""
    drawn = np.random.default_rng(0).lognormal(np.log(5), 1.15, num_rollouts)
    return np.clip(drawn.round(), 1, NUM_STEPS).astype(int).tolist()


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=32, help="rollouts at a time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.rows)
    equal, mixed = [NUM_STEPS] * options.rows, imagined_lengths(8 * options.rows)
    bench.transformers([1], "static")  # what is made once
    caches = {
        name: _seconds(lambda name=name: bench.transformers(equal, name), clock) for name in ("static", "dynamic")
    }
    cache = min(caches, key=caches.__getitem__)
    ways: dict[str, Callable[[], None]] = {
        "kalm, equal": lambda: bench.kalm(equal),
        "generate, equal": lambda: bench.transformers(equal, cache),
        "kalm, mixed": lambda: bench.kalm(mixed),
        "generate, mixed": lambda: bench.transformers(mixed, cache),
        "no cache, equal": lambda: bench.no_cache(equal),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, way in ways.items():
            seconds[name].append(_seconds(way, clock))
    median = {name: statistics.median(times) for name, times in seconds.items()}
    flops, bytes_per_second = machine_limits(clock)
    over_no_cache = median["no cache, equal"] / median["kalm, equal"]
    over_generate = {kind: median[f"generate, {kind}"] / median[f"kalm, {kind}"] for kind in ("equal", "mixed")}
    share = bench.limit_seconds(options.rows, flops, bytes_per_second) / median["kalm, equal"]
    sys.stdout.write(
        f"{options.rows} rows, {NUM_STEPS} steps, {options.clock} clock, {options.threads} threads; transformers with "
        f"its {cache} cache\n"
        + "".join(f"{name}: {value:.2f} s\n" for name, value in median.items())
        + f"kalm over a loop without a cache: {over_no_cache:.1f} times (target {LEAST_OVER_NO_CACHE:g})\n"
        f"kalm over generate, equal lengths: {over_generate['equal']:.2f} times\n"
        f"kalm over generate, lengths of imagined rollouts (mean {np.mean(mixed):.1f}): {over_generate['mixed']:.2f} "
        f"times (target {LEAST_OVER_GENERATE:g})\n"
        f"share of this machine's limit ({flops / 1e9:.0f} GFLOP/s, {bytes_per_second / 1e9:.1f} GB/s): {share:.0%}\n"
    )
    return int(over_no_cache < LEAST_OVER_NO_CACHE or over_generate["mixed"] < LEAST_OVER_GENERATE)


def _seconds(run: Callable[[], object], clock: Callable[[], float]) -> float:
    began = clock()
    run()
    return clock() - began


if __name__ == "__main__":
    sys.exit(main())
