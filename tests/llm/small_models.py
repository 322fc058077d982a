"""Small language models of real architectures, pretrained for a moment on instructions and saved as safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from kalm.language.prompts import DYNAMICS, EXPLANATION, generation_prompt
from kalm.llm.backbones.hugging_face_backbone import HuggingFaceBackbone
from tests.chain_domain import ChainDomain

ARCHITECTURES = ("llama", "qwen2")
CONTEXT_SIZE = 256
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def chain_texts() -> list[str]:
    """Everything that the chain's grounding says: prompts and answers."""
    instructions = [
        entry.instruction for split in ChainDomain.goal_splits for entry in ChainDomain().instructed_goals(split)
    ]
    return [*instructions, *map(generation_prompt, instructions), DYNAMICS, EXPLANATION]


def save_small_model(
    folder: Path,
    architecture: str,
    texts: Sequence[str] | None = None,
    num_updates: int = 150,
    context_size: int = CONTEXT_SIZE,
    sizes: Mapping[str, int] = _SIZES,
) -> Path:
    """Train a tokenizer and a model of about 150,000 parameters, and save both.

    Args:
        folder: Where to.
        architecture: ``llama`` has an output layer of its own; ``qwen2`` shares its input embedding, and has biases.
        texts: What it learns to write; those of the chain by default.
        num_updates: Of pretraining on them.
        context_size: Most tokens that it reads.
        sizes: Of its layers.
    """
    texts = texts or chain_texts()
    tokenizer = train_tokenizer(texts)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        architecture,
        **sizes,
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        max_position_embeddings=context_size,
        tie_word_embeddings=architecture == "qwen2",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = tokenizer([text + tokenizer.eos_token for text in texts], padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for _ in range(num_updates):
        optimizer.zero_grad()
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.backend_tokenizer.no_padding()  # it would be saved, and bring its token back
    tokenizer.save_pretrained(folder)
    return folder


def save_chat_model(folder: Path, pairs: Mapping[str, str], num_updates: int = 60, context_size: int = 512) -> Path:
    """A small llama that learned to reply to what a user says; its tokenizer has a chat template."""
    texts = [f"<user>{said}<assistant>{reply}" for said, reply in pairs.items()]
    save_small_model(folder, "llama", [*texts, *pairs.values()], num_updates, context_size)
    edit_json(folder / "tokenizer_config.json", chat_template=CHAT_TEMPLATE)
    return folder


def backbone(folder: Path, seed: int = 0, **options: Any) -> HuggingFaceBackbone:
    """One on top of a small model, computing in float32 unless told otherwise; weights are loaded."""
    made = unloaded_backbone(folder, **options)
    torch.manual_seed(seed)
    made.load(torch.device("cpu"))
    return made


def unloaded_backbone(folder: Path, **options: Any) -> HuggingFaceBackbone:
    """The same before its weights are loaded."""
    defaults = {"lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.0, "compute_type": "float32"}
    return HuggingFaceBackbone(str(folder), **{**defaults, "gradient_checkpointing": False, **options})


def edit_json(path: Path, **changes: Any) -> None:
    """Change top-level keys of a JSON file; None deletes."""
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    kept = {key: value for key, value in content.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """At most 400 tokens, of which the first are the beginning, the end and padding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
