"""The YAML files that ground pretrained models: each runs with a small local model in place of the one it names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from kalm.envs.clevr_robot import ClevrRobot
from kalm.language.prompts import DYNAMICS, EXPLANATIONS, generation_prompt
from kalm.store.reader import RolloutStore
from tests.chain_run import kalm
from tests.llm.small_models import save_small_model

REPOSITORY = Path(__file__).parents[3]
HUGGING_FACE = "kalm.llm.backbones.hugging_face_backbone.HuggingFaceBackbone"
GROUNDING = sorted((REPOSITORY / "conf" / "clevr_robot").glob("ground_*.yaml"))
FILES = [path for path in GROUNDING if HUGGING_FACE in path.read_text(encoding="utf-8")]
INSTALLED = "ground_smollm2_135m_instruct"  # out of the package index, by its digest; test_smollm2.py has the rest
SMOKE = REPOSITORY / "conf" / "overlay" / "smoke.yaml"
GENERAL_TEXT = REPOSITORY / "conf" / "overlay" / "general_text.yaml"


def test_every_file_is_found() -> None:
    """The parametrised tests cannot pass on an empty list."""
    assert [path.stem.removeprefix("ground_") for path in FILES] == [
        "llama2_7b",
        "llama31_8b",
        "qwen25_05b",
        "qwen25_7b",
        "smollm2_135m",
        "smollm2_135m_instruct",
    ]


@pytest.mark.parametrize("path", [path for path in FILES if path.stem != INSTALLED], ids=lambda path: path.stem)
def test_the_model_is_pinned_to_a_commit(path: Path) -> None:
    """And its padding is set, which none of these tokenizers does usably; the run has a name of its own."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    backbone = config["model"]["init_args"]["backbone"]
    assert backbone["class_path"] == HUGGING_FACE
    assert re.fullmatch("[0-9a-f]{40}", backbone["init_args"]["revision"])
    assert backbone["init_args"]["pad_token"]
    assert config["experiment"] == f"clevr_robot/ground/{path.stem.removeprefix('ground_')}"
    assert config["model"]["init_args"]["schedule_updates"] == config["trainer"]["max_steps"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with real rollouts of the robot, and small models of both architectures that read its instructions."""
    root = tmp_path_factory.mktemp("root")
    collect = REPOSITORY / "conf" / "clevr_robot" / "collect.yaml"
    assert kalm("collect", "--config", collect, "--root", root, "--num_rollouts", 60) == 0
    domain = ClevrRobot()
    splits = (domain.instructed_goals(split) for split in domain.goal_splits)
    instructions = [entry.instruction for entries in splits for entry in entries[::40]]
    texts = [*instructions, *map(generation_prompt, instructions), DYNAMICS, *EXPLANATIONS]
    for architecture in ("llama", "qwen2"):
        save_small_model(root / architecture, architecture, texts, num_updates=2, context_size=512)
    return root


def small(world: Path, architecture: str) -> list[str]:
    """Options that put a small model in the place of the one that is named."""
    return [f"--model.backbone.model={world / architecture}", "--model.backbone.pad_token=<pad>"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_one_update_runs(path: Path, world: Path) -> None:
    """From the file alone but for the model; an adapter folder where there are adapters."""
    architecture = "qwen2" if "qwen" in path.stem else "llama"
    options = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--data.num_held_out=10"]
    batch = ["--data.tasks.generation=4", "--data.tasks.dynamics=2", "--data.tasks.explanation=4"]
    overrides = [*small(world, architecture), *options, *batch]
    assert kalm("fit", "--config", path, "--config", SMOKE, "--root", world, *overrides) == 0
    folder = world / "clevr_robot" / "ground" / path.stem.removeprefix("ground_") / "seed=0"
    assert (folder / "update=1.ckpt").is_file()
    assert (folder / "adapter" / "adapter_config.json").exists() is (path.stem != "ground_smollm2_135m")


def test_one_update_runs_on_metaworld(world: Path) -> None:
    """From the file alone but for the model, with a small batch; adapters are what is trained."""
    conf = REPOSITORY / "conf" / "metaworld"
    assert kalm("collect", "--config", conf / "collect.yaml", "--root", world, "--num_rollouts", 20) == 0
    options = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--data.real.num_collected=20"]
    options += ["--data.num_held_out=4", "--data.num_imagined=2", "--data.tasks.generation=2"]
    path = conf / f"{INSTALLED}.yaml"
    assert kalm("fit", "--config", path, "--config", SMOKE, "--root", world, *small(world, "llama"), *options) == 0
    assert (world / "metaworld/ground/smollm2_135m_instruct/seed=0/adapter/adapter_config.json").is_file()


def test_general_text_is_mixed_in_by_an_overlay(world: Path, tmp_path: Path) -> None:
    """Pieces of the file beside the rollouts; both losses, and that of held-out text, are among the metrics."""
    path = next(path for path in FILES if path.stem == "ground_smollm2_135m")
    text = tmp_path / "text.jsonl"
    text.write_text("".join(f'{{"text": "go {index} times"}}\n' for index in range(20)), encoding="utf-8")
    sizes = [
        "--data.tasks.generation=4",
        "--data.tasks.dynamics=2",
        "--data.tasks.explanation=4",
        "--data.num_held_out=4",
    ]
    options = [f"--data.general_text.files={text}", "--data.num_imagined=0", "--trainer.max_steps=1", *sizes]
    overlays = ["--config", SMOKE, "--config", GENERAL_TEXT, "--root", world, "--trainer.val_check_interval=1"]
    experiment = "--experiment=clevr_robot/ground/mixed"
    assert kalm("fit", "--config", path, *overlays, *small(world, "llama"), *options, experiment) == 0
    metrics = (world / "clevr_robot" / "ground" / "mixed" / "seed=0" / "metrics.csv").read_text(encoding="utf-8")
    names = metrics.splitlines()[0].split(",")
    assert {"ground/general_text_loss", "ground/text_loss", "ground/held_out_general_text_loss"} <= set(names)


def test_a_grounded_model_imagines_from_the_command_line(world: Path) -> None:
    """Fit, stop, resume, imagine: rollouts of the robot, by a 4-bit model out of its checkpoint."""
    path = next(path for path in FILES if "qwen25_05b" in path.stem)
    model = [*small(world, "qwen2"), "--model.backbone.compute_type=float32"]  # bfloat16 is slow on many CPUs
    sizes = ["--data.num_held_out=2", "--data.tasks.explanation=4", "--trainer.limit_val_batches=0"]
    run = ["fit", "--config", path, "--config", SMOKE, "--root", world, *model, *sizes]
    run += ["--experiment=clevr_robot/ground/small"]
    assert kalm(*run, "--trainer.max_steps=1") == 0
    assert kalm(*run, "--trainer.max_steps=2", "--ckpt_path=last") == 0
    folder = world / "clevr_robot" / "ground" / "small" / "seed=0"
    assert json.loads((folder / "adapter" / "kalm.json").read_text(encoding="utf-8"))["update"] == 2
    imagine = ["predict", "--config", REPOSITORY / "conf" / "clevr_robot" / "imagine.yaml", "--root", world]
    imagine += ["--experiment=clevr_robot/imagine/small", f"--ckpt_path={folder}"]
    imagine += [f"--model.backbone={HUGGING_FACE}", *model]
    imagine += ["--data.num_rollouts={rephrase: 4, easy: 4, hard: 4}", "--trainer.callbacks.max_rejection_rate=1"]
    assert kalm(*imagine) == 0
    store = RolloutStore(world / "clevr_robot" / "imagine" / "small" / "seed=0" / "store", verify=True)
    assert 0 < store.num_rollouts <= 12
