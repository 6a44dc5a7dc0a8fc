"""What the `config.json` files of decoder families have in common.

Old files say `rope_theta` and `rope_scaling`, new ones `rope_parameters`; both are read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hyprstream.models.config import (
    MAX_CONTEXT,
    MAX_LAYERS,
    MAX_VOCAB,
    Activation,
    AttentionConfig,
    Fields,
    ModelConfig,
    RopeConfig,
    RopeKind,
)

_ROPE_KINDS: Mapping[str, RopeKind] = {
    "default": "default",
    "linear": "linear",
    "dynamic": "dynamic",
    "yarn": "yarn",
    "longrope": "longrope",
    "su": "longrope",  # the name of LongRoPE in early Phi-3 files
    "llama3": "llama3",
    "proportional": "proportional",
}
_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


def parse_decoder(hf: Mapping[str, Any], **particular: Any) -> ModelConfig:
    """Read the fields that every decoder family has.

    Args:
        hf: Parsed `config.json`.
        particular: Fields of `ModelConfig` that the family reads differently.

    Raises:
        UnsupportedArchitectureError: A field is missing, wrong, or asks for a variant that
            has no implementation.
    """
    fields = Fields(hf, "config.json")
    num_layers = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    num_heads = fields.integer("num_attention_heads")
    width = fields.integer("hidden_size")
    head_width = fields.integer("head_dim", width // num_heads)
    common: dict[str, Any] = {
        "architecture": fields.word("model_type"),
        "vocab_size": fields.integer("vocab_size", high=MAX_VOCAB),
        "width": width,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": fields.integer("num_key_value_heads", num_heads),
        "head_width": head_width,
        "mlp_width": fields.integer("intermediate_size"),
        "context_length": fields.integer("max_position_embeddings", 2048, high=MAX_CONTEXT),
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "activation": activation(fields, "hidden_act"),
        "rope_of_layer": (0,) * num_layers,
        "attention": (AttentionConfig(scale=head_width**-0.5),) * num_layers,
        "tied": fields.flag("tie_word_embeddings") if "tie_word_embeddings" in fields else None,
    }
    if "ropes" not in particular:
        common["ropes"] = (parse_rope(fields, head_width),)
    config = ModelConfig(**{**common, **particular})
    if config.num_heads % config.num_kv_heads:
        raise fields.refuse("num_key_value_heads", f"does not divide {config.num_heads} heads")
    return config


def activation(fields: Fields, key: str, default: str = "silu") -> Activation:
    """Read the activation of the feed-forward part."""
    name = fields.word(key, default)
    if name not in _ACTIVATIONS:
        raise fields.refuse(key, f"is not one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def parse_rope(
    fields: Fields, head_width: int, *, layer_type: str = "", theta: float = 10_000.0
) -> RopeConfig:
    """Read a rotary embedding and its scaling.

    Args:
        fields: The whole `config.json`.
        head_width: Channels of a head.
        layer_type: Key inside `rope_parameters`, for families that have one per layer type.
        theta: Base where the file names none.
    """
    scaling = fields.at("rope_parameters" if "rope_parameters" in fields else "rope_scaling")
    if layer_type and layer_type in scaling:
        scaling = scaling.at(layer_type)
    word = scaling.word("rope_type", scaling.word("type", "default"))
    if word not in _ROPE_KINDS:
        raise scaling.refuse("rope_type", f"is not one of {', '.join(_ROPE_KINDS)}")
    kind = _ROPE_KINDS[word]
    if kind == "yarn" and "short_factor" in scaling:
        kind = "longrope"  # early Phi-3 files call it yarn
    share = scaling.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    context = fields.integer("max_position_embeddings", 2048, high=MAX_CONTEXT)
    original = context
    if kind in ("yarn", "longrope", "llama3"):
        key = "original_max_position_embeddings"
        trained = fields.integer(key, context, high=MAX_CONTEXT)
        original = scaling.integer(key, trained, high=MAX_CONTEXT)
    default_factor = context / original if kind in ("yarn", "longrope") else None
    has_factor = kind not in ("default", "proportional")
    rope = RopeConfig(
        theta=scaling.number("rope_theta", fields.number("rope_theta", theta)),
        rotary_width=int(head_width * share),
        kind=kind,
        factor=scaling.number("factor", default_factor if has_factor else 1.0),
        original_context=original,
        attention_factor=scaling.optional_number("attention_factor"),
        beta_fast=scaling.number("beta_fast", 32.0),
        beta_slow=scaling.number("beta_slow", 1.0),
        mscale=scaling.optional_number("mscale"),
        mscale_all_dim=scaling.optional_number("mscale_all_dim"),
        truncate=scaling.flag("truncate", default=True),
        low_freq_factor=scaling.number("low_freq_factor", 1.0),
        high_freq_factor=scaling.number("high_freq_factor", 4.0),
        short_factor=scaling.numbers("short_factor"),
        long_factor=scaling.numbers("long_factor"),
    )
    return checked_rope(scaling, rope)


def checked_rope(fields: Fields, rope: RopeConfig) -> RopeConfig:
    """Refuse a rotary embedding whose arithmetic would fail or be meaningless."""
    if rope.rotary_width < 2 or rope.rotary_width % 2:
        raise fields.refuse("partial_rotary_factor", f"leaves {rope.rotary_width} rotated channels")
    if rope.theta <= 1.0:
        raise fields.refuse("rope_theta", "is not above 1")
    if rope.factor <= 0.0:
        raise fields.refuse("factor", "is not above 0")
    if rope.kind == "llama3" and rope.high_freq_factor <= rope.low_freq_factor:
        raise fields.refuse("high_freq_factor", "is not above low_freq_factor")
    if rope.kind == "longrope":
        pairs = rope.rotary_width // 2
        if {len(rope.short_factor), len(rope.long_factor)} != {pairs}:
            raise fields.refuse("short_factor", f"and long_factor must have {pairs} numbers each")
    return rope


def windows(
    fields: Fields, num_layers: int, *, layer_types: tuple[str, ...]
) -> tuple[int | None, ...]:
    """Say how far each layer sees, from the layer types of `config.json`.

    Args:
        fields: The whole `config.json`.
        num_layers: Number of layers.
        layer_types: What the family assumes where the file lists no `layer_types`.
    """
    types = fields.words("layer_types") or layer_types
    if len(types) != num_layers or set(types) - {"sliding_attention", "full_attention"}:
        raise fields.refuse("layer_types", f"is not one of the known kinds for {num_layers} layers")
    if "sliding_attention" not in types:
        return (None,) * num_layers
    window = fields.integer("sliding_window", high=MAX_CONTEXT)
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def with_windows(config: ModelConfig, windows: Sequence[int | None]) -> ModelConfig:
    """Return the model with each layer seeing as far as `windows` says."""
    scale = config.head_width**-0.5
    attention = tuple(AttentionConfig(scale=scale, window=window) for window in windows)
    return replace(config, attention=attention)


def qwen_windows(fields: Fields, num_layers: int) -> tuple[int | None, ...]:
    """Say how far each layer of a Qwen model sees: all of it unless the file says otherwise."""
    if not fields.flag("use_sliding_window", default=False):
        return (None,) * num_layers
    first = fields.integer("max_window_layers", 28, low=0)
    types = ["full_attention" if i < first else "sliding_attention" for i in range(num_layers)]
    return windows(fields, num_layers, layer_types=tuple(types))
