"""Several devices: what is evaluated is the same on any number, and everything that learns does so or says why not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.chain_run import kalm, run_folder_of, write_config
from tests.fit_run import NUM_UPDATES, BothHands, cases, policy_cases
from tests.rl.helpers import trainer
from tests.two_devices import ROOT, run_two

TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


def run_cli(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line in processes of its own."""
    command = [sys.executable, "-m", "kalm", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("verb", ["test", "validate"])
def test_two_devices_evaluate_what_one_does(tmp_path: Path, verb: str) -> None:
    """Seven episodes a split in four splits, an episode at a time and together: equal lines in equal order."""
    config = write_config(tmp_path, **{"trainer.max_steps": 20, "trainer.limit_val_batches": 0})
    assert kalm("fit", "--config", config) == 0
    results = run_folder_of(tmp_path) / "results.jsonl"
    episodes = ("--data.evaluation.num_test_episodes", "7", "--data.evaluation.num_validation_episodes", "7")
    arguments = (verb, "--config", config, "--trainer.limit_val_batches", "1.0", *episodes)
    assert kalm(*arguments) == 0
    alone = results.read_text(encoding="utf-8")
    results.unlink()
    done = run_cli(*arguments, *TWO)
    assert done.returncode == 0, done.stderr
    assert len(alone.splitlines()) == 28
    assert results.read_text(encoding="utf-8") == alone


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """Everything that learns, trained on two devices: what each of the two has in the end."""
    folder = tmp_path_factory.mktemp("trained")
    for make in cases().values():
        make(folder)  # writes the data once
    run_two("tests.fit_run", folder)
    found = {
        name: [torch.load(folder / str(rank) / f"{name}.pt", weights_only=True) for rank in range(2)]
        for name in cases()
    }
    return folder, found


def test_everything_that_learns_does_so_on_two_devices(trained: tuple[Path, dict[str, Any]]) -> None:
    """The devices end with the same weights, which are finite and not those that they began with."""
    folder, found = trained
    assert len(found) == 8 + 2 + 3
    for name, (one, other) in found.items():
        first = cases()[name](folder)[0].state_dict()
        assert all(torch.equal(one["state"][key], other["state"][key]) for key in one["state"]), name
        assert all(not value.isnan().any() for value in one["state"].values()), name
        assert any(not torch.equal(value, one["state"][key]) for key, value in first.items()), name


def test_what_leaves_parameters_out_says_what_to_set(trained: tuple[Path, dict[str, Any]]) -> None:
    """It is refused with Lightning's usual strategy, by name and with the strategy to use, and runs with that."""
    refused = {name: one["refusal"] for name, (one, _) in trained[1].items() if one["refusal"]}
    assert set(refused) == {"COMBO", "TD3BC", "LLMDecisionTransformer"}
    for name, message in refused.items():
        assert message.startswith(f"{name} on 2 devices: ")
        assert "--trainer.strategy ddp_find_unused_parameters_true" in message


def test_two_devices_learn_from_both_minibatches(trained: tuple[Path, dict[str, Any]]) -> None:
    """As one device does that is given the rows of both, up to rounding; losses that draw numbers have others then."""
    folder, found = trained
    compared = []
    for name, make in policy_cases().items():
        policy, data = make(folder)
        if policy.noise_size or policy.minibatch_scaled:
            continue
        data.__class__ = BothHands
        trainer(folder, NUM_UPDATES).fit(policy, data)
        for key, value in policy.state_dict().items():
            torch.testing.assert_close(value, found[name][0]["state"][key], atol=2e-4, rtol=1e-3, msg=f"{name} {key}")
        compared.append(name)
    assert compared == ["AWAC", "BC", "BCQ", "CQL", "IQL"]
    shutil.rmtree(folder)


def test_a_study_runs_stages_on_two_devices_one_after_the_other(tmp_path: Path) -> None:
    """Training, and the test of what it has left; a stage in between uses one."""
    config = write_config(tmp_path, **{"trainer.max_steps": 10, "trainer.limit_val_batches": 0})
    two = {"trainer.devices": 2, "trainer.strategy": "ddp", "trainer.accelerator": "cpu"}
    stages = [
        {"name": "one", "config": config, "experiment": "chain/bc/one", "with": {"trainer.devices": 1}},
        {"name": "two", "config": config, "with": two, "test": True},
    ]
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump({"name": "devices", "root": str(tmp_path), "stages": stages}), encoding="utf-8")
    done = run_cli("run", study)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len((run_folder_of(tmp_path) / "results.jsonl").read_text(encoding="utf-8").splitlines()) == 4 * 6
    saved = torch.load(run_folder_of(tmp_path) / "last.ckpt", weights_only=True)
    assert saved["PolicyData"]["num_devices"] == 2
    assert done.stdout.count("All distributed processes registered") + done.stderr.count("All distributed") >= 2
