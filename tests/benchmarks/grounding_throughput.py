"""Grounding beside TRL's ``SFTTrainer``: the same Llama, the same tokens, the same optimiser, in one run.

    python3 -m venv PEER && PEER/bin/pip install torch==2.13.0 trl
    python -m tests.benchmarks.grounding_throughput --trl-python PEER/bin/python

Both learn to answer: kalm to explain rollouts of CLEVR-Robot, through Lightning with the loggers of the command line;
TRL examples of text only, in a process of its own. Each example stands for a rollout, in the order in which kalm takes
them: its prompt, as many tokens as the rollout has states and actions, and its answer, on which alone there is a loss.
The model has four layers, 256 numbers a token, a vocabulary of 400; it is trained whole, in float32, without gradient
checkpointing, by fused AdamW. TRL pads each batch to its longest example; kalm packs, and has rollouts share a prompt:
so tokens a second are counted as the examples have them, for both. Target: kalm is not slower.

Rounds alternate, and medians are compared, because machines drift. Measure with ``--clock cpu --threads 1`` where other
work shares the machine. Three minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from kalm.data.choice import RolloutFilter
from kalm.data.grounding_data import GroundingData, GroundingTasks
from kalm.data.language_batches import GroundingBatch
from kalm.data.rollout_sources import RealRollouts
from kalm.envs.clevr_robot import ClevrRobot
from kalm.llm.grounding.grounded_llm import GroundedLLM
from kalm.runs.loggers import MetricsFileLogger, RunTensorBoardLogger
from tests.benchmarks.lightning_throughput import CLOCKS, Clock
from tests.llm.small_models import backbone, save_small_model
from tests.llm.token_encoder import TokenEncoder

SIZES = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4}
BATCH_SIZE, NUM_WARM_UP, NUM_UPDATES = 16, 5, 20
NUM_REAL_ROLLOUTS = 400
LEAST_RATIO = 1.0


class Stopwatch(Callback):
    """Seconds of the updates after the first few."""

    def __init__(self, clock: Clock) -> None:
        """Measure with ``clock``."""
        self.clock = clock
        self.began = self.seconds = 0.0
        self.padding_shares: list[float] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Start after the warm-up, and note how long it is since."""
        if trainer.global_step == NUM_WARM_UP:
            self.began = self.clock()
        self.seconds = self.clock() - self.began
        self.padding_shares.append(float(trainer.callback_metrics["ground/padding_share"]))


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", required=True, help="Python of the virtual environment that has TRL.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        instructions = [goal.instruction for goal in ClevrRobot().instructed_goals("train")]
        save_small_model(folder / "model", "llama", instructions, num_updates=0, context_size=512, sizes=SIZES)
        data = _data(folder)
        data.prepare_data()
        num_tokens = {"kalm": _export(data, folder)}
        seconds: dict[str, list[float]] = {"kalm": [], "TRL": []}
        for _ in range(options.rounds):
            watch = _fit(data, folder, CLOCKS[options.clock])
            report = _run_trl(options, folder)
            seconds["kalm"].append(watch.seconds)
            seconds["TRL"].append(report["seconds"])
    num_tokens["TRL"] = report["num_tokens"]
    rates = {library: num_tokens[library] / statistics.median(own) for library, own in seconds.items()}
    ratio = rates["kalm"] / rates["TRL"]
    padding = {"kalm": statistics.mean(watch.padding_shares), "TRL": report["padding_share"]}
    versions = ", ".join(f"{library} {version}" for library, version in report["versions"].items())
    sys.stdout.write(
        "".join(f"{name}: {rate:.0f} tokens/s, {padding[name]:.0%} padding\n" for name, rate in rates.items())
        + f"kalm over TRL: {ratio:.2f} times (target {LEAST_RATIO:g})\n"
        f"{NUM_UPDATES} updates of about {BATCH_SIZE} examples, {num_tokens['kalm']} and {num_tokens['TRL']} tokens; "
        f"medians of {options.rounds} rounds, {options.clock} clock, {options.threads} threads; "
        f"torch {torch.__version__}, {versions}\n"
    )
    return int(ratio < LEAST_RATIO)


def _data(folder: Path) -> GroundingData:
    """Explanation only."""
    return GroundingData(
        ClevrRobot(),
        TokenEncoder(),
        RealRollouts(str(folder / "real"), RolloutFilter.success, num_collected=NUM_REAL_ROLLOUTS),
        tasks=GroundingTasks(generation=0, dynamics=0, explanation=BATCH_SIZE),
        num_held_out=50,
    )


def _fit(data: GroundingData, folder: Path, clock: Clock) -> Stopwatch:
    """Train with Lightning."""
    watch, made = Stopwatch(clock), backbone(folder / "model", tuning="full")
    model = GroundedLLM(data.spec, made, warmup_updates=0, schedule_updates=1000, learning_rate=2e-5)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=NUM_WARM_UP + NUM_UPDATES,
        callbacks=[watch],
        logger=[RunTensorBoardLogger(str(folder / "log"), None), MetricsFileLogger(folder / "metrics.csv", None)],
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(model, data)
    return watch


def _export(data: GroundingData, folder: Path) -> int:
    """Write every batch as examples of text; the tokens of the batches that are timed."""
    made, num_tokens = backbone(folder / "model", tuning="full"), 0
    with (folder / "examples.jsonl").open("w", encoding="utf-8") as file:
        for index in range(2 * NUM_WARM_UP + NUM_UPDATES):  # batches differ by an example or two
            examples = _examples(data.batch(index), made)
            file.writelines(json.dumps(example) + "\n" for example in examples)
            if NUM_WARM_UP <= index < NUM_WARM_UP + NUM_UPDATES:
                num_tokens += sum(len(example["input_ids"]) for example in examples)
    return num_tokens


def _examples(batch: GroundingBatch, made: Any) -> Sequence[dict[str, list[int]]]:
    """One for each rollout: prompt, any words in place of states and actions, answer and its end."""
    examples = []
    for prompt, length, answer in zip(batch.prompt_of_rollout, batch.lengths.tolist(), batch.answers, strict=True):
        read = made._prompt_ids(batch.prompts[int(prompt)])
        read += [10 + place % 300 for place in range(2 * length + 1)]
        written = [*made.tokenize(answer), made.end_of_text]
        examples.append({"input_ids": read + written, "completion_mask": [0] * len(read) + [1] * len(written)})
    return examples


def _run_trl(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What its process says in its last line."""
    job = {
        "model": str(folder / "model"),
        "examples": str(folder / "examples.jsonl"),
        "batch_size": BATCH_SIZE,
        "num_warm_up": NUM_WARM_UP,
        "num_updates": NUM_UPDATES,
        "threads": options.threads,
        "clock": options.clock,
    }
    command = [options.trl_python, str(Path(__file__).with_name("trl_throughput.py")), json.dumps(job)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"trl_throughput.py failed:\n{done.stderr}")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


if __name__ == "__main__":
    sys.exit(main())
