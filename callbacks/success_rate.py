"""Success rates of a policy a goal split and a task, into the loggers; every episode into results.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from kalm.core.durable import write_durably
from kalm.envs.evaluation import summarize
from kalm.envs.simulation import EpisodeResult
from kalm.runs.evaluated import EvaluatedPolicy
from kalm.runs.folder import RESULTS_FILE, seed_of


class SuccessRate(Callback):
    """Reports the episodes that a policy ran in validation or test.

    Logged, with ``eval`` for validation and ``test`` for test: ``eval/<split>/success_rate`` over all episodes, its
    95 % Wilson interval ``success_rate_low`` and ``success_rate_high``, the mean over tasks ``macro_success_rate``, and
    ``eval/<split>/<task>/success_rate``. Of policies side by side these are means over their seeds. The run folder's
    results.jsonl gets one line an episode and seed. Evaluating the same update again replaces its lines, so that a
    resumed run counts no episode twice.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget validations of updates that a killed run made and that its checkpoint does not know."""
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / RESULTS_FILE
            _keep(path, lambda row: row["stage"] == "test" or row["update"] <= trainer.global_step)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report validation episodes."""
        if not trainer.sanity_checking:
            self._report(trainer, cast(EvaluatedPolicy, pl_module), "validate", "eval")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report test episodes."""
        self._report(trainer, cast(EvaluatedPolicy, pl_module), "test", "test")

    def _report(self, trainer: Trainer, policy: EvaluatedPolicy, stage: str, prefix: str) -> None:
        results = policy.episode_results
        if not results:
            return
        policy.log_dict(_metrics(results, prefix) | {"step": float(policy.num_updates)})
        if trainer.is_global_zero:
            update, path = policy.num_updates, Path(trainer.default_root_dir) / RESULTS_FILE
            _keep(path, lambda row: row["stage"] != stage or row["update"] != update)
            rows = [
                _row(result, number, policy, trainer, stage)
                for number, own in enumerate(policy.results_of_seeds)
                for result in own
            ]
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))


def _metrics(results: list[EpisodeResult], prefix: str) -> dict[str, float]:
    metrics = {}
    for split, summary in summarize(results).items():
        name = f"{prefix}/{split}"
        metrics[f"{name}/success_rate"] = summary.success_rate
        metrics[f"{name}/success_rate_low"], metrics[f"{name}/success_rate_high"] = summary.interval
        metrics[f"{name}/macro_success_rate"] = summary.macro_success_rate
        for task, rate in summary.task_success_rates.items():
            metrics[f"{name}/{task}/success_rate"] = rate
    return metrics


def _row(result: EpisodeResult, number: int, policy: EvaluatedPolicy, trainer: Trainer, stage: str) -> dict[str, Any]:
    """One line of results.jsonl; experiment and first seed are read off the run folder's path."""
    folder = Path(trainer.default_root_dir)
    first_seed = seed_of(folder)
    instructed = result.episode.instructed
    return {
        "experiment": folder.name if first_seed is None else "/".join(folder.parts[-4:-1]),
        "algorithm": type(policy).__name__,
        "seed": (first_seed or 0) + number,
        "update": policy.num_updates,
        "stage": stage,
        "goal_split": instructed.goal_split,
        "task": result.task,
        "goal": instructed.goal.to_json(),
        "instruction": instructed.instruction,
        "episode_seed": result.episode.seed,
        "is_success": result.is_success,
        "num_steps": result.num_steps,
        "episode_return": result.episode_return,
        **({} if result.num_invalid is None else {"num_invalid": result.num_invalid}),
    }


def _keep(path: Path, is_wanted: Any) -> None:
    """Drop the lines of results.jsonl that are not wanted, and a last line that a kill left unfinished."""
    if not path.exists():
        return
    content = path.read_text(encoding="utf-8")
    lines = content.split("\n")[:-1]
    kept = "".join(line + "\n" for line in lines if is_wanted(json.loads(line)))
    if kept != content:
        write_durably(path, kept.encode())
