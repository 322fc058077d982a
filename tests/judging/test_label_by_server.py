"""TEDUO's labels by a language model, end to end: a server on the loopback labels states of BabyAI by the verb."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from kalm.core.durable import file_sha256
from kalm.core.errors import DataError
from kalm.envs.babyai import BabyAI
from kalm.judging.language_model_judge import LanguageModelJudge
from kalm.language.answer_cache import AnswerCache
from kalm.llm.local_language_model import LocalLanguageModel
from kalm.store.reader import RolloutStore
from tests.chain_run import kalm
from tests.language.servers import llama_cpp_server
from tests.llm.small_gguf import write_gguf
from tests.llm.small_models import backbone, save_chat_model

CONF = Path(__file__).parents[2] / "conf" / "babyai"
CONTEXT_SIZE = 2048
SMALL = {"room_size": 5, "num_rows": 1, "num_cols": 2, "num_training_grids": 2, "num_test_grids": 1}
WORLD = [f"--domain.{name}={value}" for name, value in SMALL.items()]
FEW = ["--max_goals=3", "--max_states_per_goal=4", "--keep=all", "--show_progress=false"]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small llama that answers everything by one of three words, and knows nothing of BabyAI."""
    pairs = {"is the ball red": "True", "is the ball blue": "False", "is the box big": "NA"}
    return save_chat_model(tmp_path_factory.mktemp("models") / "chat", pairs, 40, CONTEXT_SIZE)


@pytest.fixture(scope="module")
def server(chat_model: Path) -> Iterator[str]:
    """Llama.cpp on it."""
    file = write_gguf(chat_model, chat_model.parent / "chat.gguf")
    with llama_cpp_server(file, chat_model.parent / "server.log", CONTEXT_SIZE) as url:
        yield url


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """With a store of eight rollouts in two small grids."""
    options = [*WORLD, "--domain.num_processes=1", "--num_rollouts=8", "--root", tmp_path]
    assert kalm("collect", "--config", CONF / "collect.yaml", *options) == 0
    return tmp_path


def test_a_server_labels_states_and_the_label_says_so(server: str, chat_model: Path, root: Path) -> None:
    """By the YAML with another model: verdicts are those of the same model asked here; the label keeps who was asked.

    It is made again without a server, out of the replies that were kept.
    """
    command = ["label", "--config", CONF / "label_server.yaml", "--root", root, *WORLD, *FEW]
    asked = ["--judge.model.model.model=chat", "--judge.margin=0"]
    assert kalm(*command, *asked, f"--judge.model.model.base_url={server}") == 0
    store = RolloutStore(root / "babyai/collect/bot/seed=0", verify=True)
    labels = store.labels("server")
    assert len(labels) > 6
    assert len(labels.goals) == 3
    facts = labels.provenance
    assert facts["judge"] == "language_model"
    assert (facts["model"]["kind"], facts["model"]["model"], facts["margin"]) == ("server", "chat", 0)
    assert not facts.get("is_oracle")

    world = BabyAI(**SMALL)
    here = LanguageModelJudge(LocalLanguageModel(backbone(chat_model, tuning="full")), world, margin=0.0)
    assert labels.goal is not None
    assert labels.state is not None
    for number, row in enumerate(labels.goals):
        own = labels.goal == number
        said = here.judge_states(world.goal_from_json(row["goal"]), store.observations(labels.state[own].long()))
        np.testing.assert_allclose(labels.score[own].numpy(), said.score, atol=0.03)
        assert labels.abstained[own].tolist() == said.abstained.tolist()

    nowhere = "--judge.model.model.base_url=http://127.0.0.1:9/v1"
    assert kalm(*command, *asked, nowhere, "--judge.model.is_replay=true", "--name=again") == 0
    for file in ("met.memmap", "score.memmap", "abstained.memmap", "state.memmap", "goals.jsonl"):
        first, second = (file_sha256(store.path / "labels" / name / file) for name in ("server", "again"))
        assert first == second
    assert kalm(*command, *asked, nowhere, "--judge.model.is_replay=true", "--name=more", "--seed=5") == 3

    with closing(AnswerCache(root / "babyai" / "answers.sqlite")) as cache:
        num_replies = cache.export(root / "answers.jsonl")
    assert 0 < num_replies <= len(labels)
    recorded = [
        "--judge.model=kalm.language.answer_cache.RecordedAnswers",
        f"--judge.model.path={root / 'answers.jsonl'}",
    ]
    assert kalm(*command, "--judge.margin=0", *recorded, "--name=recorded") == 0
    assert store.labels("recorded").score.tolist() == labels.score.tolist()


def test_the_file_for_a_model_of_one_s_own_labels_too(chat_model: Path, root: Path) -> None:
    """`label_smollm2_135m_instruct.yaml` with a small model in its place, in 4 bits, as in grounding."""
    options = [f"--judge.model.model.backbone.model={chat_model}", "--judge.model.model.backbone.compute_type=float32"]
    path = CONF / "label_smollm2_135m_instruct.yaml"
    assert kalm("label", "--config", path, "--root", root, *WORLD, *FEW, *options) == 0
    facts = RolloutStore(root / "babyai/collect/bot/seed=0").labels("smollm2_135m_instruct").provenance
    assert facts["model"]["tuning"] == "qlora"
    assert facts["model"]["frozen"].endswith("nf4")


def test_a_label_without_a_single_reply_is_an_error(root: Path) -> None:
    """Where no server listens: nothing is labelled, and the exit code says so."""
    path = CONF / "label_server.yaml"
    options = ["--judge.model.model.base_url=http://127.0.0.1:9/v1", "--judge.model.model.max_retries=0"]
    assert kalm("label", "--config", path, "--root", root, *WORLD, *FEW, *options) == 2
    with pytest.raises(DataError, match="has no label 'server'|unfinished"):
        RolloutStore(root / "babyai/collect/bot/seed=0").labels("server")
