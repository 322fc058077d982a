"""Examples a second of TRL's ``SFTTrainer``, in its own virtual environment; grounding_throughput.py runs this there.

    PYTHON_OF_TRL tests/benchmarks/trl_throughput.py '{"model": FOLDER, "examples": PATH, "batch_size": 16,
        "num_warm_up": 5, "num_updates": 20, "threads": 1, "clock": "cpu"}'

Timed is its own loop over examples that were tokenised before, in the order and the batches that are given, so that
rows of one batch are about equally long; with nothing evaluated, saved or shown, and without gradient checkpointing.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Stopwatch(TrainerCallback):
    """Seconds of the updates after the first few."""

    def __init__(self, num_warm_up: int, clock: Any) -> None:
        """Measure with ``clock``."""
        self.num_warm_up, self.clock = num_warm_up, clock
        self.began = self.seconds = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Start after the warm-up, and note how long it is since."""
        if state.global_step == self.num_warm_up:
            self.began = self.clock()
        self.seconds = self.clock() - self.began


def main() -> None:
    """Train, and print seconds, tokens, padding share and versions."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    transformers.utils.logging.set_verbosity_error()
    with open(job["examples"], encoding="utf-8") as lines:
        examples = [json.loads(line) for line in lines]
    watch = Stopwatch(job["num_warm_up"], time.perf_counter if job["clock"] == "wall" else time.process_time)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=job["batch_size"],
            max_steps=job["num_warm_up"] + job["num_updates"],
            train_sampling_strategy="sequential",
            max_length=None,
            completion_only_loss=True,
            gradient_checkpointing=False,
            optim="adamw_torch_fused",
            bf16=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="sdpa")
        trainer = SFTTrainer(
            model, args=config, train_dataset=Dataset.from_list(examples), processing_class=tokenizer, callbacks=[watch]
        )
        trainer.train()
    sizes = [len(example["input_ids"]) for example in examples]
    batches = [sizes[first : first + job["batch_size"]] for first in range(0, len(sizes), job["batch_size"])]
    timed = batches[job["num_warm_up"] : job["num_warm_up"] + job["num_updates"]]
    num_tokens = sum(map(sum, timed))
    padding_share = 1 - num_tokens / sum(len(batch) * max(batch) for batch in timed)
    versions = {"trl": trl.__version__, "transformers": transformers.__version__}
    report = {
        "seconds": watch.seconds,
        "num_tokens": num_tokens,
        "padding_share": padding_share,
        "versions": versions,
    }
    sys.stdout.write(f"\n{json.dumps(report)}\n")


if __name__ == "__main__":
    main()
