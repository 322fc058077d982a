"""The backbone for real use: any causal language model of Hugging Face, tuned by QLoRA, by LoRA or as a whole.

Text goes through the model's own tokenizer and input embedding, vectors of states and actions are put between, and
the model's own head reads text off the hidden vectors. Packing, losses and generation are those of every backbone.

Matrix products are computed in ``compute_type``, adapters and everything else that is trained in float32.

Shape letters: B rows, L tokens of a prompt, S new tokens of a row, M columns of a cache, H hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kalm.core.errors import DataError, KalmError
from kalm.llm.backbones.backbone import TOKEN_STD, Backbone
from kalm.llm.backbones.hugging_face_model import (
    Attention,
    ComputeType,
    ModelSettings,
    Tuning,
    fingerprint,
    load_model,
    read_config,
    read_tokenizer,
)
from kalm.llm.backbones.key_value_cache import KeyValueCache
from kalm.llm.backbones.plain_reading import readable_tokens, require_plain_reading

# How far scores may be off by rounding alone, as a part of the largest; a mask that is not heeded costs more.
_ROUNDING = {torch.float32: 0.01, torch.bfloat16: 0.05}
_TOKENS_AT_ONCE = 4096


class HuggingFaceBackbone(Backbone):
    """A pretrained causal language model; its weights are loaded by ``load``, its configuration at once.

    Checkpoints hold what is trained and nothing else. Quantised weights are never moved: they stay on the device that
    they were loaded to, whatever happens to the module around them.
    """

    def __init__(
        self,
        model: str,
        revision: str = "main",
        tuning: Tuning = "qlora",
        pad_token: str | None = None,
        lora_rank: int = 16,
        lora_alpha: float = 32,
        lora_dropout: float = 0.05,
        lora_targets: str | list[str] = "all-linear",
        compute_type: ComputeType = "bfloat16",
        attention: Attention = "sdpa",
        gradient_checkpointing: bool = True,
    ) -> None:
        """Read configuration and tokenizer; weights come later.

        Args:
            model: Name on the Hugging Face hub, or folder; safetensors only, no code of its own.
            revision: Commit, branch or tag on the hub; a commit makes a run repeatable.
            tuning: ``qlora`` trains adapters on frozen 4-bit weights (NF4, double quantisation), ``lora`` on frozen
                weights in ``compute_type``, ``full`` trains all weights in float32 (the paper).
            pad_token: Token of the vocabulary to pad with, where the tokenizer names none or its end of text.
            lora_rank: Rank of the adapters.
            lora_alpha: Adapters count ``lora_alpha / lora_rank`` times.
            lora_dropout: Part of an adapter's input that is left out in training, in [0, 1).
            lora_targets: Names of the layers that get an adapter; ``all-linear`` takes all but the output (QLoRA).
            compute_type: ``bfloat16`` or ``float32``.
            attention: ``sdpa`` or ``flash_attention_2``; the latter reads one rollout a row, and imagines with sdpa.
            gradient_checkpointing: Compute hidden vectors anew for the gradient instead of keeping them.
        """
        super().__init__()
        self._settings = ModelSettings(
            model, revision, tuning, pad_token, lora_rank, lora_alpha, lora_dropout, lora_targets, compute_type,
            attention, gradient_checkpointing,
        )  # fmt: skip
        self._config = read_config(self._settings)
        self._text_config = self._config.get_text_config()
        self._tokenizer = read_tokenizer(self._settings)
        self._token_ids: dict[str, list[int]] = {}
        self._ids_of_prompt: dict[str, Tensor] = {}
        self.hidden_size = self._text_config.hidden_size
        self.end_of_text = self._tokenizer.eos_token_id
        self.context_size, self.context_note = readable_tokens(self._text_config)
        self.reads_any_mask = attention == "sdpa"
        self.model: nn.Module | None = None
        self.register_state_dict_post_hook(_drop_frozen)
        self.register_load_state_dict_post_hook(_forgive_frozen)

    def load(self, device: torch.device) -> None:  # noqa: D102
        if self.model is not None:
            if self._is_quantised and self._device != device:
                raise KalmError(
                    f"4-bit weights of {self._settings.model} were loaded on {self._device} and are now wanted on "
                    f"{device}; they cannot be moved. Start a new process for another device"
                )
            return
        self.model = load_model(self._settings, device).eval()
        try:
            require_plain_reading(self, self._settings.model, _ROUNDING[self._settings.dtype])
        except KalmError:
            self.model = None
            raise
        self.model.train(self.training)
        self.token_scale = self._embedding_std() / TOKEN_STD

    def embed_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:  # noqa: D102
        for prompt in prompts:
            if prompt not in self._ids_of_prompt:
                self._ids_of_prompt[prompt] = torch.tensor(self._prompt_ids(prompt))
        rows = [self._ids_of_prompt[prompt] for prompt in prompts]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self._tokenizer.pad_token_id)
        lengths = torch.tensor([len(row) for row in rows])
        prompt_mask = torch.arange(padded.shape[1]) < lengths[:, None]
        return self.embed_tokens(padded), prompt_mask.to(self._device)

    def forward(  # noqa: D102
        self, embeddings: Tensor, positions: Tensor, attention_mask: Tensor, cache: KeyValueCache | None = None
    ) -> Tensor:
        if self._settings.attention != "sdpa":  # flash attention is causal by itself, and has no other masks
            self._causal_lm.set_attn_implementation(self._settings.attention if cache is None else "sdpa")
        with self._autocast():
            output = self._causal_lm.get_decoder()(
                inputs_embeds=embeddings,
                position_ids=positions,
                attention_mask=attention_mask if self.reads_any_mask or cache is not None else None,
                past_key_values=None if cache is None else _CacheOfTransformers(cache),
                use_cache=cache is not None,
            )
        hidden: Tensor = output.last_hidden_state
        return hidden.float()

    def make_cache(self, num_rows: int, num_columns: int, column_step: int = 1) -> KeyValueCache:  # noqa: D102
        self.require_room(num_columns)
        num_layers, dtype = self._text_config.num_hidden_layers, self._settings.dtype
        return KeyValueCache(num_layers, num_rows, num_columns, self._device, dtype, column_step)

    def learn_vocabulary(self, texts: Sequence[str]) -> None:
        """Nothing to do: a pretrained vocabulary writes every text."""

    def tokenize(self, text: str) -> list[int]:  # noqa: D102
        if text not in self._token_ids:
            self._token_ids[text] = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._token_ids[text]

    @property
    def beginning_of_text(self) -> list[int]:  # noqa: D102
        return self._prompt_ids("")

    def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a conversation in the model's own form, up to where its answer begins.

        Raises:
            KalmError: If its tokenizer has no chat template.
        """
        if self._tokenizer.chat_template is None:
            raise KalmError(
                f"the tokenizer of {self._settings.model} has no chat template, so that nobody knows how it reads a "
                "conversation. Choose a model that was trained on instructions (often called ...-Instruct)"
            )
        written = [dict(message) for message in messages]
        ids: Any = self._tokenizer.apply_chat_template(written, add_generation_prompt=True, return_dict=False)
        return list(ids)

    def decode(self, token_ids: Sequence[int]) -> str:  # noqa: D102
        until_end = list(takewhile(lambda token_id: token_id != self.end_of_text, token_ids))
        return str(self._tokenizer.decode(until_end, skip_special_tokens=True)).strip()

    def embed_tokens(self, token_ids: Tensor) -> Tensor:  # noqa: D102
        vectors: Tensor = self._causal_lm.get_input_embeddings()(token_ids.to(self._device))
        return vectors.float()

    def text_logits(self, hidden: Tensor) -> Tensor:  # noqa: D102
        with self._autocast():
            logits: Tensor = self._causal_lm.get_output_embeddings()(hidden)
        return logits.float()

    @cached_property
    def frozen_fingerprint(self) -> str:  # noqa: D102
        return fingerprint(self._settings, self._config)

    @property
    def identity(self) -> dict[str, Any]:  # noqa: D102
        names = ["tuning"]
        if self._settings.tuning != "full":
            names += ["lora_rank", "lora_alpha", "lora_targets"]
        return {**super().identity, **{name: getattr(self._settings, name) for name in names}}

    @property
    def description(self) -> dict[str, Any]:  # noqa: D102
        return {**super().description, **asdict(self._settings)}

    def save_adapter(self, folder: Path) -> bool:  # noqa: D102
        if self.model is None or self._settings.tuning == "full":
            return False
        # No embedding was changed; peft would ask the hub to make sure.
        self.model.save_pretrained(folder, save_embedding_layers=False)  # type: ignore[operator]
        self._tokenizer.save_pretrained(folder)
        return True

    def frozen_names(self) -> set[str]:
        """Names in ``self.model`` of what is not trained and therefore in no checkpoint."""
        if self.model is None:
            return set()
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        return set(self.model.state_dict()) - trained

    @property
    def _is_quantised(self) -> bool:
        return self._settings.tuning == "qlora"

    @property
    def _causal_lm(self) -> Any:
        if self.model is None:
            raise KalmError(f"the weights of {self._settings.model} are not loaded; call load(device) first")
        return self.model if self._settings.tuning == "full" else self.model.get_base_model()  # type: ignore[operator]

    @property
    def _device(self) -> torch.device:
        device: torch.device = self._causal_lm.get_input_embeddings().weight.device
        return device

    @property
    def num_embeddings(self) -> int:
        """Tokens that have a vector."""
        return len(self._causal_lm.get_input_embeddings().weight)

    @torch.no_grad()
    def _embedding_std(self) -> float:
        """Standard deviation of all numbers of all tokens' vectors, as they are read: some models scale them first."""
        count, total, squares = 0, 0.0, 0.0
        for token_ids in torch.arange(self.num_embeddings).split(_TOKENS_AT_ONCE):
            vectors = self.embed_tokens(token_ids).double()
            count += vectors.numel()
            total += float(vectors.sum())
            squares += float(vectors.square().sum())
        return math.sqrt((squares - total**2 / count) / (count - 1))

    def own_scores(self, token_ids: Tensor) -> Tensor:
        """Scores of every next token as the library itself computes them, from (B, S) to (B, S, V).

        But for one thing: what its embedding returns is in float32, as everywhere here. A sum of all layers in bfloat16
        is off by more than any fault that is looked for, where a model has a few very large numbers.
        """
        embedding = self._causal_lm.get_input_embeddings()
        hook = embedding.register_forward_hook(lambda module, given, vectors: vectors.float())
        try:
            with self._autocast():
                logits: Tensor = self._causal_lm(input_ids=token_ids.to(self._device), use_cache=False).logits
        finally:
            hook.remove()
        return logits

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._settings.dtype is torch.bfloat16)

    def _prompt_ids(self, prompt: str) -> list[int]:
        """Ids with what the tokenizer puts around a text, such as a beginning, but without an end."""
        ids: list[int] = list(self._tokenizer(prompt)["input_ids"])
        ids = ids[:-1] if ids[-1:] == [self.end_of_text] else ids
        if self.context_size is not None and len(ids) > self.context_size:
            raise DataError(
                f"the prompt {prompt[:60]!r}... has {len(ids)} tokens; {self._settings.model} reads at most "
                f"{self.context_size}. Shorten the instruction, or choose a model with a longer context"
            )
        return ids

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HuggingFaceBackbone:
        """Keep quantised weights, and the adapters that work on them, where they are and as they are."""
        return self if self.model is not None and self._is_quantised else super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **options: Any) -> None:
        self._prefix = prefix  # for the hook, which is not told
        super()._load_from_state_dict(state_dict, prefix, *args, **options)


class _CacheOfTransformers:
    """Shows kalm's cache to a model of transformers under the names that it calls."""

    def __init__(self, cache: KeyValueCache) -> None:
        self._cache = cache

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        return self._cache.extend(layer, keys, values)

    def get_seq_length(self, layer: int = 0) -> int:
        return self._cache.num_used


def _drop_frozen(backbone: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Leave out of a state dict what is not trained."""
    assert isinstance(backbone, HuggingFaceBackbone)
    for name in backbone.frozen_names():
        del state[f"{prefix}model.{name}"]


def _forgive_frozen(backbone: nn.Module, keys: Any) -> None:
    """Only what is not trained may be missing from a checkpoint."""
    assert isinstance(backbone, HuggingFaceBackbone)
    frozen = {f"{backbone._prefix}model.{name}" for name in backbone.frozen_names()}
    keys.missing_keys[:] = [key for key in keys.missing_keys if key not in frozen]
