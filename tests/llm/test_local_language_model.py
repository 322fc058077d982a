"""Conversations are read as the model's own library reads them: its template, its probabilities."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kalm.core.errors import CheckpointError, DataError, KalmError
from kalm.llm.local_language_model import LocalLanguageModel
from kalm.runs.checkpoint_io import VerifiedCheckpointIO
from tests.llm.small_models import CHAT_TEMPLATE, backbone, edit_json, unloaded_backbone

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
    edit_json(folder / "tokenizer_config.json", chat_template=CHAT_TEMPLATE)
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
    model, tokenizer = (
        LocalLanguageModel(backbone(chat_model, tuning="full")),
        AutoTokenizer.from_pretrained(chat_model),
    )

    loss = model.answer_loss(CONVERSATIONS, ANSWERS)

    for found, messages, answer in zip(loss.tolist(), CONVERSATIONS, ANSWERS, strict=True):
        ids = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        assert found == pytest.approx(-log_likelihood(chat_model, messages, ids), rel=1e-4)


@pytest.mark.parametrize("answers", [["0", "1", "6"], ANSWERS], ids=["one token each", "several tokens"])
def test_scores_are_the_model_s_own(chat_model: Path, answers: list[str]) -> None:
    """Of single tokens read off one pass, and of longer answers, whose end does not count."""
    model, tokenizer = (
        LocalLanguageModel(backbone(chat_model, tuning="full")),
        AutoTokenizer.from_pretrained(chat_model),
    )

    with torch.inference_mode():
        scores = model.log_probabilities(CONVERSATIONS, answers)

    assert scores.shape == (2, len(answers))
    for row, messages in zip(scores.tolist(), CONVERSATIONS, strict=True):
        for found, answer in zip(row, answers, strict=True):
            ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
            assert found == pytest.approx(log_likelihood(chat_model, messages, ids), rel=1e-4)


def test_an_answer_that_begins_another_is_refused(chat_model: Path) -> None:
    """It would be at least as likely, whatever the model thinks."""
    model = LocalLanguageModel(backbone(chat_model, tuning="full"))

    with pytest.raises(DataError, match="'go' is the beginning of 'go left'"):
        model.log_probabilities(CONVERSATIONS, ["go", "go left"])


def test_a_model_without_a_template_is_refused(small_model: Path) -> None:
    """Nobody knows how it reads a conversation."""
    model = LocalLanguageModel(backbone(small_model, tuning="full"))

    with pytest.raises(KalmError, match="has no chat template"):
        model.answer_loss(CONVERSATIONS, ANSWERS)


def test_what_does_not_fit_is_refused(chat_model: Path) -> None:
    """Nothing is cut."""
    model = LocalLanguageModel(backbone(chat_model, tuning="full"))

    with pytest.raises(DataError, match="reads at most 256"):
        model.answer_loss([[{"role": "user", "content": "go " * 300}]], ["go left"])


def test_what_is_written_is_what_transformers_writes(chat_model: Path) -> None:
    """Token by token the likeliest; conversations of different lengths in one batch, each up to its own end."""
    model = LocalLanguageModel(backbone(chat_model, tuning="full"))
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    reference = AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32).eval()

    replies = [reply for (reply,) in model.generate(CONVERSATIONS, max_tokens=12)]

    for reply, messages in zip(replies, CONVERSATIONS, strict=True):
        prompt = torch.tensor([tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)])
        ids = reference.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :].tolist()
        has_end = ids[-1] == tokenizer.eos_token_id
        assert reply.text == tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert reply.is_cut is not has_end
        assert reply.num_tokens == prompt.shape[1] + len(ids)
    assert replies[0].text


def test_a_draw_depends_on_its_question_alone(chat_model: Path) -> None:
    """Not on the company: alone, in a batch, in another order; other seeds and samples draw other texts."""
    together = LocalLanguageModel(backbone(chat_model, tuning="full"), num_at_once=8)
    alone = LocalLanguageModel(backbone(chat_model, tuning="full"), num_at_once=1)
    options: dict[str, Any] = {"max_tokens": 6, "temperature": 1.5, "num_samples": 3}

    texts = together.generate(CONVERSATIONS, seed=1, **options)

    assert alone.generate(CONVERSATIONS[::-1], seed=1, **options)[::-1] == texts
    assert len({reply.text for own in texts for reply in own}) > 3
    assert together.generate(CONVERSATIONS, seed=2, **options) != texts


def test_a_constrained_answer_is_drawn_by_its_probability(chat_model: Path) -> None:
    """The likeliest of them at temperature 0; above, as often as its share of their probability says."""
    model = LocalLanguageModel(backbone(chat_model, tuning="full"), num_at_once=64)
    share = torch.from_numpy(model.score(CONVERSATIONS[:1], ANSWERS)).softmax(-1)[0]

    ((best,),) = model.generate(CONVERSATIONS[:1], ANSWERS)
    (drawn,) = model.generate(CONVERSATIONS[:1], ANSWERS, temperature=1.0, num_samples=400)

    assert best.text == ANSWERS[int(share.argmax())]
    found = sum(reply.text == ANSWERS[0] for reply in drawn) / 400
    assert found == pytest.approx(float(share[0]), abs=0.1)  # two standard deviations are 0.05 at most


def test_the_port_scores_as_the_student_does(chat_model: Path) -> None:
    """In batches of one, with different answers asked for in one call; what was read is counted."""
    model = LocalLanguageModel(backbone(chat_model, tuning="full"))
    with torch.inference_mode():
        expected = model.log_probabilities(CONVERSATIONS, ANSWERS)

    found = LocalLanguageModel(backbone(chat_model, tuning="full"), num_at_once=1).score(CONVERSATIONS, ANSWERS)

    torch.testing.assert_close(torch.from_numpy(found).float(), expected, rtol=1e-4, atol=1e-4)


def test_dropout_never_decides_a_reply(small_models: dict[str, Path], tmp_path: Path) -> None:
    """A model that is being trained is asked as it will be asked later."""
    shutil.copytree(small_models["llama"], tmp_path / "chat")
    edit_json(tmp_path / "chat" / "tokenizer_config.json", chat_template=CHAT_TEMPLATE)
    trained = backbone(tmp_path / "chat", tuning="lora", lora_dropout=0.5)
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    trained.train()
    model = LocalLanguageModel(trained)
    assert model.score(CONVERSATIONS, ANSWERS).tolist() == model.score(CONVERSATIONS, ANSWERS).tolist()


def test_its_identity_is_that_of_its_weights(chat_model: Path, tmp_path: Path) -> None:
    """Wherever the folder lies; other weights and another tuning are another model."""
    moved = tmp_path / "elsewhere" / "chat"
    shutil.copytree(chat_model, moved)
    own = LocalLanguageModel(unloaded_backbone(chat_model, tuning="full")).identity
    assert LocalLanguageModel(unloaded_backbone(moved, tuning="full")).identity == own
    assert own["model"] == "chat"
    assert LocalLanguageModel(unloaded_backbone(moved, tuning="lora")).identity != own
    with (moved / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\1")
    assert LocalLanguageModel(unloaded_backbone(moved, tuning="full")).identity != own


def test_what_a_checkpoint_learned_is_asked(chat_model: Path, tmp_path: Path) -> None:
    """Adapters of whatever was trained around it: those scores are asked; another model's are refused."""
    trained = backbone(chat_model, tuning="lora")
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    state = {f"backbone.{name}": value for name, value in trained.state_dict().items()}
    path = tmp_path / "seed=0" / "last.ckpt"
    VerifiedCheckpointIO().save_checkpoint({"state_dict": state, "backbone": trained.description}, path)
    model = LocalLanguageModel(unloaded_backbone(chat_model, tuning="lora"), checkpoint=str(path.parent))
    plain = LocalLanguageModel(unloaded_backbone(chat_model, tuning="lora"))

    found = model.score(CONVERSATIONS, ANSWERS)

    assert found.tolist() == LocalLanguageModel(trained).score(CONVERSATIONS, ANSWERS).tolist()
    assert found.tolist() != plain.score(CONVERSATIONS, ANSWERS).tolist()
    assert model.identity["checkpoint_sha256"] != plain.identity.get("checkpoint_sha256")
    with pytest.raises(CheckpointError, match="another backbone"):
        LocalLanguageModel(unloaded_backbone(chat_model), checkpoint=str(path)).score(CONVERSATIONS, ANSWERS)
    VerifiedCheckpointIO().save_checkpoint({"state_dict": {}, "backbone": trained.description}, path)
    with pytest.raises(CheckpointError, match="holds nothing that a language model learned"):
        LocalLanguageModel(unloaded_backbone(chat_model, tuning="lora"), checkpoint=str(path)).score(
            CONVERSATIONS, ANSWERS
        )
