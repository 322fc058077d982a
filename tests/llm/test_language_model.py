"""Conversations are read as the model's own library reads them: its template, its probabilities."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kalm.core.errors import DataError, KalmError
from kalm.llm.language_model import LanguageModel
from tests.llm.small_models import backbone, edit_json

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CONVERSATIONS = [
    [{"role": "system", "content": "You walk on a line."}, {"role": "user", "content": "go to the left end"}],
    [{"role": "user", "content": "walk to the right end, and say what you did"}],
]
ANSWERS = ["go left", "walk to the right end"]


@pytest.fixture
def chat_model(small_model: Path, tmp_path: Path) -> Path:
    """Each architecture with a chat template."""
    folder = tmp_path / "chat"
    shutil.copytree(small_model, folder)
    edit_json(folder / "tokenizer_config.json", chat_template=TEMPLATE)
    return folder


def log_likelihood(folder: Path, messages: list[dict[str, str]], ids: list[int]) -> float:
    """Of tokens behind a conversation: the model of transformers on this text alone, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = "".join(f"<{message['role']}>{message['content']}" for message in messages) + "<assistant>"
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
    return float(sum(logits[len(prompt) + place - 1, token] for place, token in enumerate(ids)))


def test_the_loss_is_that_of_answer_and_end_alone(chat_model: Path) -> None:
    """For conversations and answers of different lengths in one batch."""
    model, tokenizer = LanguageModel(backbone(chat_model, tuning="full")), AutoTokenizer.from_pretrained(chat_model)

    loss = model.answer_loss(CONVERSATIONS, ANSWERS)

    for found, messages, answer in zip(loss.tolist(), CONVERSATIONS, ANSWERS, strict=True):
        ids = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        assert found == pytest.approx(-log_likelihood(chat_model, messages, ids), rel=1e-4)


@pytest.mark.parametrize("answers", [["0", "1", "6"], ANSWERS], ids=["one token each", "several tokens"])
def test_scores_are_the_model_s_own(chat_model: Path, answers: list[str]) -> None:
    """Of single tokens read off one pass, and of longer answers, whose end does not count."""
    model, tokenizer = LanguageModel(backbone(chat_model, tuning="full")), AutoTokenizer.from_pretrained(chat_model)

    with torch.inference_mode():
        scores = model.scores(CONVERSATIONS, answers)

    assert scores.shape == (2, len(answers))
    for row, messages in zip(scores.tolist(), CONVERSATIONS, strict=True):
        for found, answer in zip(row, answers, strict=True):
            ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
            assert found == pytest.approx(log_likelihood(chat_model, messages, ids), rel=1e-4)


def test_an_answer_that_begins_another_is_refused(chat_model: Path) -> None:
    """It would be at least as likely, whatever the model thinks."""
    model = LanguageModel(backbone(chat_model, tuning="full"))

    with pytest.raises(DataError, match="'go' is the beginning of 'go left'"):
        model.scores(CONVERSATIONS, ["go", "go left"])


def test_a_model_without_a_template_is_refused(small_model: Path) -> None:
    """Nobody knows how it reads a conversation."""
    model = LanguageModel(backbone(small_model, tuning="full"))

    with pytest.raises(KalmError, match="has no chat template"):
        model.answer_loss(CONVERSATIONS, ANSWERS)


def test_what_does_not_fit_is_refused(chat_model: Path) -> None:
    """Nothing is cut."""
    model = LanguageModel(backbone(chat_model, tuning="full"))

    with pytest.raises(DataError, match="reads at most 256"):
        model.answer_loss([[{"role": "user", "content": "go " * 300}]], ["go left"])
