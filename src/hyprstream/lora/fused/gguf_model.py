"""A SafeTensors model as llama.cpp's own converter would write it, for a few families.

Keys and names are those of ggml's `gguf-py/gguf/constants.py`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hyprstream.errors import UnsupportedError
from hyprstream.lora.exchange.gguf_file import GgufPart, Value, entry
from hyprstream.lora.exchange.host import Host
from hyprstream.lora.exchange.safetensors_file import Part
from hyprstream.lora.fused.gguf_vocabulary import vocabulary_entries
from hyprstream.lora.fused.sums import Change, changes_of, dense, find, rounded, summed
from hyprstream.lora.weights import LoraWeights
from hyprstream.models.config import ModelConfig, RopeConfig
from hyprstream.models.load import OpenModel
from hyprstream.models.weights import gguf_names, hf_names

_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_FILE_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 32}
_ROPES = ("default", "linear", "llama3")
# Worked out from the config by every program; some checkpoints store it all the same.
_IMPLIED = "rotary_emb.inv_freq"
_HINT = "Write a SafeTensors folder, and convert it with llama.cpp's convert_hf_to_gguf.py."


def entries_from(model: OpenModel, host: Host, dtype: torch.dtype | None) -> list[bytes]:
    """Return the metadata of a model: its numbers and its vocabulary.

    Raises:
        UnsupportedError: The family, or something of its config or vocabulary, has no form
            that is known here.
    """
    config = model.config
    _check(config)
    assert model.folder is not None
    rope = config.ropes[0]
    family = host.gguf_family
    numbers: dict[str, Value] = {
        "context_length": config.context_length,
        "embedding_length": config.width,
        "block_count": config.num_layers,
        "feed_forward_length": config.mlp_width,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_width,
        "attention.value_length": config.head_width,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.freq_base": rope.theta,
        "rope.dimension_count": rope.rotary_width,
        "vocab_size": config.vocab_size,
    }
    if rope.kind == "linear":
        numbers |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope.factor}
    head: dict[str, Value] = {
        "general.architecture": family,
        "general.name": host.name or "fused",
        "general.file_type": _FILE_TYPES[dtype or _stored_dtype(model)],
    }
    return [
        *(entry(key, value) for key, value in head.items()),
        *(entry(f"{family}.{key}", value) for key, value in numbers.items()),
        *vocabulary_entries(model.folder, model.tokenizer(), config.vocab_size),
    ]


def parts_from(
    model: OpenModel, host: Host, weights: LoraWeights, dtype: torch.dtype | None
) -> dict[str, GgufPart]:
    """Return the tensors of a model with an adapter fused in; vectors stay in float32.

    Raises:
        UnsupportedError: A tensor has no place in a GGUF file.
        IncompatibleAdapterError: The adapter is for another model.
    """
    _check(model.config)
    matrix_dtype = dtype or _stored_dtype(model)
    changes = changes_of(model, weights, hf_names, {})
    parts = {}
    for name in model.checkpoint.names():
        if name.endswith(_IMPLIED) or (name.startswith("lm_head.") and host.is_tied):
            continue
        place, path = _place(host, name)
        target = matrix_dtype if len(model.checkpoint.info(name).shape) > 1 else torch.float32
        parts[place] = _part(model, host, (name, path), changes.get(name, ()), target)
    if "lm_head" in weights.modules and host.is_tied:
        table = find(hf_names, model.checkpoint, "embed_tokens.weight")
        assert table is not None, "the model was opened and has one"
        head = [Change(weights.modules["lm_head"], None, None, "lm_head")]
        parts["output.weight"] = _part(model, host, (table.name, "lm_head"), head, matrix_dtype)
    rope = model.config.ropes[0]
    if rope.kind == "llama3":
        parts["rope_freqs.weight"] = GgufPart.of(_factors(rope))
    return parts


def _check(config: ModelConfig) -> None:
    if config.architecture not in _FAMILIES:
        raise UnsupportedError(
            f"a SafeTensors model of family {config.architecture!r} is not turned into a GGUF "
            f"file here; {', '.join(_FAMILIES)} are",
            hint=_HINT,
        )
    kinds = [rope.kind for rope in config.ropes]
    if len(kinds) != 1 or kinds[0] not in _ROPES:
        raise UnsupportedError(
            f"rotary scaling {', '.join(kinds)} is not turned into a GGUF file here", hint=_HINT
        )
    if config.architecture == "qwen3" and config.attention_bias:
        raise UnsupportedError("llama.cpp reads no biases of a qwen3 model's attention", hint=_HINT)
    if any(layer.window is not None for layer in config.attention):
        raise UnsupportedError("a sliding window is not turned into a GGUF file here", hint=_HINT)


def _stored_dtype(model: OpenModel) -> torch.dtype:
    """Return the dtype of the embedding's table, for all matrices; float64 is not written."""
    table = find(hf_names, model.checkpoint, "embed_tokens.weight")
    assert table is not None, "the model was opened and has one"
    dtype = model.checkpoint.tensor(table.name).dtype
    return dtype if dtype in _FILE_TYPES else torch.float32


def _place(host: Host, name: str) -> tuple[str, str]:
    """Return what a GGUF file calls a tensor, and the path of the part that it belongs to."""
    names = gguf_names(host.gguf_patterns)
    for path in (name.removeprefix("model."), name):
        places = names(path)
        if places:
            return places[0].name, path.rpartition(".")[0]
    raise UnsupportedError(f"tensor {name[:120]!r} has no place in a GGUF file", hint=_HINT)


def _part(
    model: OpenModel,
    host: Host,
    place: tuple[str, str],
    changes: Sequence[Change],
    dtype: torch.dtype,
) -> GgufPart:
    name, path = place
    checkpoint = model.checkpoint
    order = host.gguf_orders([path]).get(path)

    def make() -> Tensor:
        if changes:
            rows = summed(checkpoint, name, changes, dtype)
        else:
            rows = rounded(dense(checkpoint, name), dtype, name)
        if order is None:
            return rows
        stored = torch.empty_like(rows)
        stored[order] = rows
        return stored

    return GgufPart.dense(Part(shape=checkpoint.info(name).shape, dtype=dtype, make=make))


def _factors(rope: RopeConfig) -> Tensor:
    """Return what Llama 3.1's scaling divides each frequency by (arXiv:2407.21783).

    As `LlamaModel.generate_extra_tensors` of the converter works them out.
    """
    long = rope.original_context / rope.low_freq_factor
    short = rope.original_context / rope.high_freq_factor
    factors = []
    for channel in range(0, rope.rotary_width, 2):
        wavelength = 2 * math.pi * rope.theta ** (channel / rope.rotary_width)
        if wavelength < short:
            factors.append(1.0)
        elif wavelength > long:
            factors.append(rope.factor)
        else:
            smooth = (rope.original_context / wavelength - rope.low_freq_factor) / (
                rope.high_freq_factor - rope.low_freq_factor
            )
            factors.append(1 / ((1 - smooth) / rope.factor + smooth))
    return torch.tensor(factors, dtype=torch.float32)
