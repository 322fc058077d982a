"""A policy run on the chain world through the real command line, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kalm.__main__ import main
from kalm.store.reader import is_finished_store
from tests.data.rollouts import imagined_rollouts, real_rollouts, write_store

EXPERIMENT = "chain/bc/mixed"


def chain_config(root: Path, **changes: Any) -> dict[str, Any]:
    """Behaviour cloning on real and imagined rollouts of the chain; ``changes`` are dotted keys."""
    config: dict[str, Any] = {
        "seed_everything": 3,
        "root": str(root),
        "experiment": EXPERIMENT,
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 100,
            "log_every_n_steps": 1,
            "val_check_interval": 25,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "kalm.callbacks.success_rate.SuccessRate"}],
        },
        "checkpoint": {"every_n_updates": 30},
        "model": {"class_path": "kalm.rl.bc.BC", "init_args": {"hidden_sizes": [16, 16]}},
        "data": {
            "class_path": "kalm.data.policy_data.PolicyData",
            "init_args": {
                "domain": {"class_path": "tests.chain_domain.ChainDomain"},
                "encoder": {"class_path": "tests.word_encoder.WordEncoder"},
                "real": {"path": "${root}/real"},
                "imagined": {"stores": ["${root}/imagined"], "filter": "success"},
                "batch_size": 16,
                "updates_per_step": 5,
                "evaluation": {"num_validation_episodes": 4, "num_test_episodes": 6},
            },
        },
    }
    for key, value in changes.items():
        *parents, last = key.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = value
    return config


def write_config(root: Path, name: str = "bc.yaml", **changes: Any) -> str:
    """The configuration as a file below ``root``, with the stores it reads."""
    if not is_finished_store(root / "real"):
        write_store(root / "real", real_rollouts(60))
        write_store(root / "imagined", imagined_rollouts(60, "easy"))
    path = root / name
    path.write_text(yaml.safe_dump(chain_config(root, **changes)), encoding="utf-8")
    return str(path)


def run_folder_of(root: Path, seed: int = 3) -> Path:
    """Where the run writes."""
    return root / EXPERIMENT / f"seed={seed}"


def kalm(*arguments: str | Path) -> int:
    """``python -m kalm ...`` in this process; the exit code."""
    return main([str(argument) for argument in arguments])


def briefly(num_updates: int) -> tuple[str, ...]:
    """Options of a fit of so few updates that no validation comes."""
    return "--trainer.max_steps", str(num_updates), "--trainer.limit_val_batches", "0"
