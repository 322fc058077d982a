"""A fit of several seeds through the command line: what it leaves for each seed is a run of that seed alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kalm.report.results import load_results
from kalm.runs.checkpoint_io import verify_checkpoint
from tests.chain_run import EXPERIMENT, briefly, kalm, run_folder_of, write_config

SEEDS = (3, 4, 5)
TOGETHER = "seeds=3-5"
ROUNDING, EXACTLY = {"rtol": 1e-3, "atol": 2e-5}, {"rtol": 0.0, "atol": 0.0}
OPTIONS = ("--trainer.max_steps", "50", "--model.init_args.ema_rate", "0.1")


def fit(root: Path, *arguments: str) -> int:
    """Fit below ``root``, on the stores that the first call writes there."""
    return kalm("fit", "--config", write_config(root), *OPTIONS, *arguments)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a run of three seeds, with a validation every 25 updates."""
    root = tmp_path_factory.mktemp("together")
    assert fit(root, "--model.num_seeds", "3") == 0
    return root


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of three runs of one seed each."""
    root = tmp_path_factory.mktemp("alone")
    for seed in SEEDS:
        assert fit(root, "--seed_everything", str(seed)) == 0
    return root


def load(folder: Path) -> dict[str, Any]:
    """Its last checkpoint, verified."""
    verify_checkpoint(folder / "last.ckpt")
    return torch.load(folder / "last.ckpt", weights_only=True)


def differences(one: Any, other: Any, close: dict[str, float] = ROUNDING, path: str = "") -> list[str]:
    """Where two nested structures differ by more than rounding."""
    if isinstance(one, torch.Tensor):
        is_same = one.shape == other.shape and one.stride() == other.stride()
        return [] if is_same and torch.allclose(one, other, **close) else [path]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{path}: keys {one.keys() ^ other.keys()}"]
        return [d for key in one for d in differences(one[key], other[key], close, f"{path}/{key}")]
    if isinstance(one, list | tuple) and len(one) == len(other):
        return [
            d for n, pair in enumerate(zip(one, other, strict=True)) for d in differences(*pair, close, f"{path}/{n}")
        ]
    return [] if one == other else [f"{path}: {one!r} {other!r}"]


@pytest.mark.parametrize("seed", SEEDS)
def test_each_seed_gets_the_files_of_its_own_run(together: Path, alone: Path, seed: int) -> None:
    """Checkpoint, sidecar and configuration; the checkpoint holds the same up to rounding, in every key."""
    one, other = run_folder_of(together, seed), run_folder_of(alone, seed)
    expected = {"config.yaml", "last.ckpt", "update=50.ckpt", "update=50.ckpt.json"}
    assert {path.name for path in one.iterdir()} == expected
    assert expected < {path.name for path in other.iterdir()}
    assert (one / "last.ckpt").is_symlink()
    found, wanted = load(one), load(other)
    assert found.pop("callbacks").keys() == wanted.pop("callbacks").keys()
    assert differences(found, wanted) == []
    assert (one / "last.ckpt").stat().st_size == pytest.approx((other / "last.ckpt").stat().st_size, rel=0.05)
    configs = [(folder / "config.yaml").read_text(encoding="utf-8") for folder in (one, other)]
    assert configs[0].replace(str(together), "root") == configs[1].replace(str(alone), "root")
    assert configs[0].startswith("# python -m kalm fit")
    assert yaml.safe_load(configs[0])["seed_everything"] == seed


def test_validations_are_logged_as_means_and_written_for_each_seed(together: Path, alone: Path) -> None:
    """Results by seed equal those of single runs; the logged success rate is their mean, the losses' too."""
    found = load_results([together])
    expected = [row for row in load_results([alone]) if row.stage == "validate"]
    assert {(row.experiment, row.seed, row.update) for row in found} == {
        (EXPERIMENT, seed, update) for seed in SEEDS for update in (25, 50)
    }
    assert sorted(map(repr, found)) == sorted(map(repr, expected))

    def last(folder: Path, metric: str) -> float:
        with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
            return float([row[metric] for row in csv.DictReader(file) if row[metric]][-1])

    for metric in ("eval/train/success_rate", "eval/hard/success_rate", "train/imitation_loss"):
        mean = sum(last(run_folder_of(alone, seed), metric) for seed in SEEDS) / 3
        assert last(together / EXPERIMENT / TOGETHER, metric) == pytest.approx(mean, rel=1e-4)


def test_each_seed_is_tested_by_itself(together: Path, alone: Path) -> None:
    """``test --seed_everything n`` finds the checkpoint and gives the results of the single run."""
    rows = []
    for root in (together, alone):
        assert kalm("test", "--config", write_config(root), *OPTIONS[2:], "--seed_everything", "4") == 0
        lines = (run_folder_of(root, 4) / "results.jsonl").read_text(encoding="utf-8").splitlines()
        rows.append([json.loads(line) for line in lines if '"stage": "test"' in line])
    assert len(rows[0]) == 24
    assert rows[0] == rows[1]


def test_all_seeds_are_tested_at_once_from_their_common_checkpoint(together: Path, tmp_path: Path) -> None:
    """``test`` with ``num_seeds`` reads the folder of all and writes a line for each seed."""
    assert kalm("test", "--config", write_config(together), *OPTIONS[2:], "--model.num_seeds", "3") == 0
    folder = together / EXPERIMENT / TOGETHER
    tested = [row for row in load_results([folder]) if row.stage == "test"]
    assert {row.seed for row in tested} == set(SEEDS)
    assert len(tested) == 3 * 24


def test_a_resumed_run_of_several_seeds_equals_one_that_was_not_stopped(together: Path, tmp_path: Path) -> None:
    """25 + 25 updates equal 50, to the bit, in everything that a checkpoint holds."""
    assert fit(tmp_path, "--model.num_seeds", "3", "--trainer.max_steps", "25") == 0
    assert fit(tmp_path, "--model.num_seeds", "3", "--ckpt_path", "last") == 0
    for name in (TOGETHER, *(f"seed={seed}" for seed in SEEDS)):
        whole, parts = load(together / EXPERIMENT / name), load(tmp_path / EXPERIMENT / name)
        callbacks = [checkpoint.pop("callbacks") for checkpoint in (whole, parts)]
        assert callbacks[0].keys() == callbacks[1].keys()
        assert differences(whole, parts, EXACTLY) == []


def test_a_single_seed_goes_on_alone(together: Path, alone: Path) -> None:
    """From its own checkpoint, for 20 more updates, it becomes what the single run becomes."""
    for root in (together, alone):
        more = ("--seed_everything", "5", "--ckpt_path", "last", "--trainer.max_steps", "70")
        assert fit(root, *more) == 0
    one, other = (load(run_folder_of(root, 5)) for root in (together, alone))
    assert one["global_step"] == 70
    assert differences(one["state_dict"], other["state_dict"]) == []


def test_runs_that_are_there_are_not_replaced_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A single run of one of the seeds stops a fresh start of all; ``--overwrite`` clears it away."""
    assert fit(tmp_path, "--seed_everything", "4", *briefly(10)) == 0
    before = (run_folder_of(tmp_path, 4) / "last.ckpt").read_bytes()
    assert fit(tmp_path, "--model.num_seeds", "3", *briefly(5)) == 4
    assert "seed=4 already holds a run" in capsys.readouterr().err
    assert (run_folder_of(tmp_path, 4) / "last.ckpt").read_bytes() == before
    assert (
        fit(
            tmp_path,
            "--model.num_seeds",
            "3",
            "--trainer.max_steps",
            "5",
            "--trainer.limit_val_batches",
            "0",
            "--overwrite",
            "true",
        )
        == 0
    )
    assert sorted(path.name for path in run_folder_of(tmp_path, 4).iterdir()) == [
        *("config.yaml", "last.ckpt", "update=5.ckpt", "update=5.ckpt.json")
    ]


def test_another_number_of_seeds_is_refused_on_resume(together: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The refusal names what was and what is asked for."""
    path = together / EXPERIMENT / TOGETHER / "last.ckpt"
    assert fit(together, "--model.num_seeds", "2", "--ckpt_path", str(path)) == 4
    assert "num_seeds: 3 -> 2" in capsys.readouterr().err


def test_other_data_are_refused_on_resume(together: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Batch size and stores; evaluation with other data goes on."""
    changes = ("--data.batch_size", "8", "--data.imagined", "null")
    assert fit(together, "--model.num_seeds", "3", "--ckpt_path", "last", *changes) == 4
    message = capsys.readouterr().err
    assert "batch_size: 16 -> 8" in message
    assert "imagined.stores: [" in message
    assert "imagined.fraction: 0.5 -> None" in message
    assert kalm("test", "--config", write_config(together), *OPTIONS[2:], *changes) == 0
