"""General text beside rollouts: read as the model itself reads it, and what mixing it in does to what a model knows."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from kalm.data.general_text import GeneralTextSource
from kalm.data.language_batches import GeneralText
from kalm.language.encoder import SentenceEncoder
from kalm.llm.backbones.tiny_backbone import TinyBackbone
from kalm.llm.grounding.grounded_llm import GroundedLLM
from kalm.llm.grounding.losses import text_loss
from kalm.llm.grounding.reading import RolloutHidden, embed_texts, read_rollouts, read_texts
from tests.llm.grounding.test_grounded_llm import trainer
from tests.llm.models import chain_grounding_data, grounded_llm, hand_made_batch, tiny_backbone
from tests.llm.small_models import CONTEXT_SIZE, backbone, chain_texts, save_small_model, unloaded_backbone

CPU = torch.device("cpu")
TEXTS = GeneralText(["walk to the end", "go", "the left end is not the right end of the walk"], 12)
HELD_OUT = "ground/held_out_general_text_loss"
KNOWN = [
    f"the {size} {animal} {verb} under the {thing}."
    for animal, verb, thing, size in product(
        ("cat", "dog", "owl", "fox"), ("sleeps", "waits", "sings"), ("tree", "moon", "roof"), ("old", "red", "small")
    )
]


def vocabulary_grown(model: GroundedLLM) -> GroundedLLM:
    """The same model, now able to write ``TEXTS``."""
    torch.manual_seed(3)
    model.backbone.learn_vocabulary([*TEXTS.texts, "go to the left end"])
    return model


@pytest.mark.parametrize("begins", [False, True], ids=["nothing-in-front", "beginning-in-front"])
def test_the_loss_is_the_models_own(small_model: Path, begins: bool) -> None:
    """That of transformers on the same tokens, whatever the tokenizer puts in front; cut where it was to be cut."""
    made = backbone(small_model)
    if begins:
        template = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", made._tokenizer.bos_token_id)])
        made._tokenizer.backend_tokenizer.post_processor = template
    hidden, target = read_texts(made, TEXTS, CPU)
    losses = text_loss(made.text_logits(hidden), target)
    expected, ids_of = [], [made._tokenizer(text)["input_ids"][: TEXTS.max_tokens] for text in TEXTS.texts]
    for ids in ids_of:
        logits = made._causal_lm(input_ids=torch.tensor([ids])).logits[0].float()
        expected.append(
            torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:], dtype=torch.int64), reduction="none")
        )
    torch.testing.assert_close(losses, torch.cat(expected), atol=1e-4, rtol=1e-4)
    assert max(map(len, ids_of)) == TEXTS.max_tokens


def test_text_longer_than_the_context_is_cut(small_models: Any) -> None:
    """A million tokens are asked for; the model reads as many as it can."""
    made = backbone(small_models["llama"])
    texts = embed_texts(made, GeneralText(["walk to the end. " * 200], 1_000_000), CPU)
    assert texts.lengths.tolist() == [CONTEXT_SIZE]


@pytest.mark.parametrize("reads_any_mask", [True, False], ids=["packed", "one-text-a-row"])
def test_texts_and_rollouts_do_not_see_each_other(small_model: Path, reads_any_mask: bool) -> None:
    """What is read of rollouts is the same without texts, and of texts the same without rollouts, one by one."""
    model = GroundedLLM(grounded_llm().spec, backbone(small_model), inner_size=16).eval()
    model.backbone.reads_any_mask = reads_any_mask
    together = read_rollouts(model.backbone, model.codec, hand_made_batch()._replace(general_text=TEXTS))
    model.backbone.reads_any_mask = True
    rollouts = read_rollouts(model.backbone, model.codec, hand_made_batch())
    apart = [read_texts(model.backbone, GeneralText([text], TEXTS.max_tokens), CPU) for text in TEXTS.texts]
    hidden, target = (torch.cat(parts) for parts in zip(*apart, strict=True))
    alone = rollouts._replace(general_text=hidden, general_text_target=target)
    for name, one, other in zip(RolloutHidden._fields[:-1], together[:-1], alone[:-1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_a_model_on_the_pretrained_encoder_reads_text(tmp_path: Path) -> None:
    """The encoder, which refuses an empty prompt, is not asked; every token but the first of each text is predicted."""
    made = TinyBackbone(SentenceEncoder(cache_dir=str(tmp_path)), hidden_size=16, num_heads=2, feed_forward_size=16)
    made.learn_vocabulary(TEXTS.texts)
    hidden, target = read_texts(made, TEXTS, CPU)
    token_ids = [made.tokenize(text)[: TEXTS.max_tokens] for text in TEXTS.texts]
    assert target.tolist() == [token_id for ids in token_ids for token_id in ids[1:]]
    assert hidden.shape == (len(target), 16)


def test_texts_fill_up_rows() -> None:
    """Sixteen texts of a quarter of a row each add four rows and no padding."""
    model = vocabulary_grown(grounded_llm())
    quarter = GeneralText(["go to the left end " * 8] * 16, 32)
    with_texts, without = (
        read_rollouts(model.backbone, model.codec, hand_made_batch()._replace(general_text=text))
        for text in (quarter, GeneralText())
    )
    assert with_texts.padding_share < without.padding_share


def test_general_text_teaches_the_language_model_alone() -> None:
    """No encoder or head of states and actions gets a gradient; without text there is no such loss."""
    model = vocabulary_grown(grounded_llm())
    assert "general_text_loss" not in model.losses(hand_made_batch())
    model.losses(hand_made_batch()._replace(general_text=TEXTS))["general_text_loss"].sum().backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name.split(".")[0] for name in touched} == {"backbone"}
    assert {"backbone.text_head.weight", "backbone.token_embedding.weight"} <= touched


def test_a_tiny_model_learns_words_that_only_the_text_has(tmp_path: Path) -> None:
    """Its vocabulary grows by them, and held-out text becomes likelier."""
    (tmp_path / "text.txt").write_text("\n\n".join(KNOWN), encoding="utf-8")
    data = chain_grounding_data(tmp_path, general_text=GeneralTextSource(str(tmp_path / "text.txt"), 8), num_imagined=0)
    losses = []
    for num_updates in (1, 60):
        lightning.seed_everything(0, verbose=False)
        model = GroundedLLM(data.spec, tiny_backbone(), inner_size=16, learning_rate=5e-3, schedule_updates=100)
        losses.append(held_out_loss(model, data, tmp_path, num_updates))
    assert losses[1] < 0.7 * losses[0]
    assert model.backbone.decode(model.backbone.tokenize(KNOWN[0])) == KNOWN[0].replace(".", " .")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that knows some sentences about animals, and a file of them."""
    folder = tmp_path_factory.mktemp("pretrained")
    generator = torch.Generator().manual_seed(0)
    shuffled = [KNOWN[place] for place in torch.randperm(len(KNOWN), generator=generator).tolist()]
    (folder / "text.txt").write_text("\n\n".join(shuffled), encoding="utf-8")
    return save_small_model(folder, "llama", [*chain_texts(), *KNOWN], num_updates=120)


@pytest.mark.parametrize("seed", [0, 1])
def test_mixing_text_in_keeps_what_a_model_knows(pretrained: Path, tmp_path: Path, seed: int) -> None:
    """Grounding makes held-out text of what was pretrained less likely; with other such text mixed in, much less so."""
    losses = {}
    for num_updates, num_texts in ((1, 0), (80, 0), (80, 8)):
        lightning.seed_everything(seed, verbose=False)
        text = GeneralTextSource(str(pretrained / "text.txt"), num_texts)
        data = chain_grounding_data(tmp_path, seed=seed, general_text=text, num_imagined=0)
        made = unloaded_backbone(pretrained, tuning="full")
        rate = 0.0 if num_updates == 1 else 2e-3
        model = GroundedLLM(data.spec, made, 16, learning_rate=rate, warmup_updates=5, schedule_updates=100)
        losses[num_updates, num_texts] = held_out_loss(model, data, tmp_path, num_updates)
    before, without, mixed = losses.values()
    assert without > before + 0.3
    assert mixed < before + 0.3 * (without - before)


def held_out_loss(model: GroundedLLM, data: Any, folder: Path, num_updates: int) -> float:
    """What validation reports after so many updates."""
    options = {"limit_val_batches": 1.0, "val_check_interval": num_updates, "check_val_every_n_epoch": None}
    run = trainer(folder, max_steps=num_updates, **options)
    run.fit(model, datamodule=data)
    return float(run.callback_metrics[HELD_OUT])
