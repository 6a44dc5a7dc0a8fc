"""A GGUF model as transformers would have saved it: settings and tensors.

Keys are those of the families' `config.json` before `rope_parameters`, which later versions
read too.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hyprstream.errors import IncompatibleAdapterError, UnsupportedError
from hyprstream.lora.delta import Delta
from hyprstream.lora.exchange.host import Host
from hyprstream.lora.exchange.safetensors_file import Part
from hyprstream.lora.fused.sums import dense, rounded, target_dtype
from hyprstream.lora.weights import LoraWeights
from hyprstream.models.changes import NO_CHANGES
from hyprstream.models.checkpoint import Checkpoint
from hyprstream.models.config import AttentionConfig, ModelConfig, RopeConfig
from hyprstream.models.load import OpenModel

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
_TABLE, _HEAD = "embed_tokens.weight", "lm_head.weight"
_HINT = "Write a GGUF file instead."


def settings_of(config: ModelConfig, *, tied: bool) -> dict[str, object]:
    """Return `config.json` of a model, but for its tokens.

    Args:
        config: What its GGUF file says.
        tied: Its head is its embedding table.

    Raises:
        UnsupportedError: transformers has no such model, or none that is known here.
    """
    name = config.architecture
    if name not in _CLASSES:
        raise UnsupportedError(
            f"a GGUF model of family {name!r} is not turned into a SafeTensors folder here; "
            f"{', '.join(_CLASSES)} are",
            hint=_HINT,
        )
    if name == "llama" and config.attention_bias != config.output_bias:
        raise UnsupportedError(
            "transformers has no llama model with biases on some of q, k, v and o", hint=_HINT
        )
    activation = _ACTIVATIONS[config.activation]
    return {
        "architectures": [_CLASSES[name]],
        "model_type": name,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        "hidden_act": activation,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": tied,
        **_rotary(config, config.ropes[0]),
        **_particular(config, activation),
    }


def _rotary(config: ModelConfig, rope: RopeConfig) -> dict[str, object]:
    found: dict[str, object] = {"rope_theta": rope.theta}
    if rope.rotary_width != config.head_width:
        if config.architecture != "phi3":
            raise UnsupportedError(
                f"transformers rotates all channels of a {config.architecture} model's heads, "
                f"this one {rope.rotary_width} of {config.head_width}",
                hint=_HINT,
            )
        found["partial_rotary_factor"] = rope.rotary_width / config.head_width
    scaling: dict[str, object] = {"rope_type": rope.kind, "type": rope.kind}
    match rope.kind:
        case "default":
            return found
        case "linear":
            scaling["factor"] = rope.factor
        case "yarn":
            scaling |= {
                "factor": rope.factor,
                "original_max_position_embeddings": rope.original_context,
                "beta_fast": rope.beta_fast,
                "beta_slow": rope.beta_slow,
            }
        case "longrope":
            scaling |= {
                "short_factor": list(rope.short_factor),
                "long_factor": list(rope.long_factor),
            }
            found["original_max_position_embeddings"] = rope.original_context
            if config.architecture != "phi3":  # which knows it from beside the scaling only
                scaling["original_max_position_embeddings"] = rope.original_context
                scaling["factor"] = rope.factor
            if rope.attention_factor is not None:
                scaling["attention_factor"] = rope.attention_factor
        case _:
            raise UnsupportedError(f"rotary scaling {rope.kind} has no GGUF form", hint=_HINT)
    return {**found, "rope_scaling": scaling}


def _particular(config: ModelConfig, activation: str) -> dict[str, object]:
    """Return the settings that only some families have."""
    first = config.attention[0]
    match config.architecture:
        case "llama":
            return {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
        case "qwen3_moe":
            moe = config.moe
            assert moe is not None
            return {
                "num_experts": moe.num_experts,
                "num_experts_per_tok": moe.num_active,
                "moe_intermediate_size": moe.width,
                "norm_topk_prob": moe.normalize,
                "decoder_sparse_step": 1,
                "mlp_only_layers": sorted(moe.dense_layers),
            }
        case "phi3":
            return {"sliding_window": first.window}
        case "gemma2" | "gemma3_text":
            return _gemma(config, first, activation)
        case _:
            return {"use_sliding_window": False}


def _gemma(config: ModelConfig, first: AttentionConfig, activation: str) -> dict[str, object]:
    windows = [layer.window for layer in config.attention]
    found: dict[str, object] = {
        "hidden_activation": activation,
        "query_pre_attn_scalar": round(first.scale**-2),  # a whole number in every file of theirs
        "attn_logit_softcapping": first.softcap,
        "final_logit_softcapping": config.logit_softcap,
        "sliding_window": next((w for w in windows if w is not None), None),
        "layer_types": ["full_attention" if w is None else "sliding_attention" for w in windows],
    }
    if len(config.ropes) > 1:
        found["rope_local_base_freq"] = config.ropes[1].theta
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Parameter:
    """A parameter of a model and where its GGUF file keeps it.

    Attributes:
        path: Our path, `layers.0.mlp.up_proj.weight`.
        name: The stored tensor.
        index: Which entry of a stack; None for a tensor of its own.
    """

    path: str
    name: str
    index: int | None


def parts_of(
    model: OpenModel, host: Host, weights: LoraWeights, dtype: torch.dtype | None
) -> dict[str, Part]:
    """Return the tensors of a GGUF model with an adapter fused in, under transformers' names.

    Args:
        model: The base model.
        host: The same, as formats see it.
        weights: The adapter.
        dtype: Of all tensors; None keeps that of dense ones, and makes float16 of quantised.

    Raises:
        IncompatibleAdapterError: The adapter is for another model.
    """
    rest = dict(weights.modules)
    parts = {}
    table = None
    for parameter in _parameters(model, host):
        table = parameter if parameter.path == _TABLE else table
        if parameter.path == _HEAD and host.is_tied:
            continue
        delta = rest.pop(parameter.path.removesuffix(".weight"), None)
        parts[_hf_name(host, parameter.path)] = _part(model, host, parameter, delta, dtype)
    head = rest.pop("lm_head", None)
    if head is not None and table is not None:
        parts[_HEAD] = _part(model, host, table, head, dtype)
    if rest:
        raise IncompatibleAdapterError(
            f"the model has no linear layer at {next(iter(rest))}",
            hint="Use the adapter with the base model that it was trained on.",
        )
    return parts


def _parameters(model: OpenModel, host: Host) -> Iterator[_Parameter]:
    """List the parameters in the order of the file; what no parameter is made of is left out."""
    patterns = [
        (re.compile(re.escape(stored).replace(r"\{\}", r"(\d+)") + r"\.(weight|bias)"), path)
        for path, stored in host.gguf_patterns.items()
        if not path.endswith("_proj") or _has_linear(host, path)  # Phi 3 has two that mean one
    ]
    for name in model.checkpoint.names():
        for pattern, path in patterns:
            found = pattern.fullmatch(name)
            if found is None:
                continue
            *numbers, suffix = found.groups()
            if path.count("{}") == len(numbers):
                yield _Parameter(f"{path.format(*numbers)}.{suffix}", name, None)
                continue
            for index in range(model.checkpoint.info(name).shape[0]):
                yield _Parameter(f"{path.format(*numbers, index)}.{suffix}", name, index)


def _has_linear(host: Host, pattern: str) -> bool:
    """Tell whether a pattern of paths is that of linear layers of the model."""
    expression = re.compile(re.escape(pattern).replace(r"\{\}", r"\d+"))
    return any(expression.fullmatch(path) for path in host.linears)


def _part(
    model: OpenModel,
    host: Host,
    parameter: _Parameter,
    delta: Delta | None,
    dtype: torch.dtype | None,
) -> Part:
    checkpoint = model.checkpoint
    stored = checkpoint.info(parameter.name).shape
    shape = stored if parameter.index is None else stored[1:]
    if delta is not None and delta.shape != shape:
        raise IncompatibleAdapterError(
            f"the adapter changes a linear layer of shape {delta.shape} at {parameter.path}, "
            f"the model has {shape} there",
            hint="Use the adapter with the base model that it was trained on.",
        )
    target = target_dtype(checkpoint, parameter.name, dtype)
    changes = getattr(model.family, "HF_CHANGES", NO_CHANGES)
    added = next((v for end, v in changes.added.items() if parameter.path.endswith(end)), 0.0)
    layer = parameter.path.rpartition(".")[0]
    order = host.gguf_orders([layer]).get(layer)
    make = _maker(checkpoint, parameter, order, added)

    def made() -> Tensor:
        total = make()
        return rounded(total if delta is None else total + delta.dense(), target, parameter.path)

    return Part(shape=shape, dtype=target, make=made)


def _maker(
    checkpoint: Checkpoint, parameter: _Parameter, order: Tensor | None, added: float
) -> Callable[[], Tensor]:
    """Return what makes a parameter in float32, as transformers stores it."""

    def make() -> Tensor:
        tensor = dense(checkpoint, parameter.name)
        if parameter.index is not None:
            tensor = tensor[parameter.index]
        if order is not None:
            tensor = tensor[order]
        return tensor - added if added else tensor

    return make


def _hf_name(host: Host, path: str) -> str:
    part, _, suffix = path.rpartition(".")
    return f"{host.hf_name(part)}.{suffix}"
