"""What the GGUF files of decoder families have in common: metadata keys and tensor names.

Keys and names are those of ggml's `gguf-py/gguf/constants.py`. A name pattern holds `{}`
where the layer's number stands.
"""

from collections.abc import Callable, Mapping
from typing import Any

from hyprstream.models.config import (
    MAX_CONTEXT,
    MAX_LAYERS,
    MAX_VOCAB,
    AttentionConfig,
    Fields,
    ModelConfig,
    RopeConfig,
    RopeKind,
)
from hyprstream.models.hf_config import checked_rope

Factors = Callable[[str], tuple[float, ...]]
"""Reads a small vector of the file by name; empty where the file has none."""

DECODER_NAMES: Mapping[str, str] = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "layers.{}.input_layernorm": "blk.{}.attn_norm",
    "layers.{}.self_attn.q_proj": "blk.{}.attn_q",
    "layers.{}.self_attn.k_proj": "blk.{}.attn_k",
    "layers.{}.self_attn.v_proj": "blk.{}.attn_v",
    "layers.{}.self_attn.o_proj": "blk.{}.attn_output",
    "layers.{}.self_attn.q_norm": "blk.{}.attn_q_norm",
    "layers.{}.self_attn.k_norm": "blk.{}.attn_k_norm",
    "layers.{}.post_attention_layernorm": "blk.{}.ffn_norm",
    "layers.{}.mlp.gate_proj": "blk.{}.ffn_gate",
    "layers.{}.mlp.up_proj": "blk.{}.ffn_up",
    "layers.{}.mlp.down_proj": "blk.{}.ffn_down",
}

_ROPE_KINDS: Mapping[str, RopeKind] = {
    "none": "default",
    "linear": "linear",
    "yarn": "yarn",
    "longrope": "longrope",
}


def parse_gguf_decoder(
    fields: Fields, factors: Factors, architecture: str, **particular: Any
) -> ModelConfig:
    """Read the metadata that every decoder family has.

    Args:
        fields: Metadata, with the architecture's prefix.
        factors: Reads the rotary factor tensors of the file.
        architecture: Our name of the family.
        particular: Fields of `ModelConfig` that the family reads differently.

    Raises:
        UnsupportedArchitectureError: A field is missing, wrong, or asks for a variant that
            has no implementation.
    """
    num_layers = fields.integer("block_count", high=MAX_LAYERS)
    num_heads = fields.integer("attention.head_count")
    width = fields.integer("embedding_length")
    head_width = fields.integer("attention.key_length", width // num_heads)
    if fields.integer("attention.value_length", head_width) != head_width:
        raise fields.refuse("attention.value_length", "differs from attention.key_length")
    common: dict[str, Any] = {
        "architecture": architecture,
        "vocab_size": fields.integer("vocab_size", high=MAX_VOCAB),
        "width": width,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": fields.integer("attention.head_count_kv", num_heads),
        "head_width": head_width,
        "mlp_width": fields.integer("feed_forward_length"),
        "context_length": fields.integer("context_length", high=MAX_CONTEXT),
        "norm_eps": fields.number("attention.layer_norm_rms_epsilon", 1e-6),
        "rope_of_layer": (0,) * num_layers,
        "attention": (AttentionConfig(scale=head_width**-0.5),) * num_layers,
    }
    if "ropes" not in particular:
        common["ropes"] = (parse_gguf_rope(fields, factors, head_width),)
    config = ModelConfig(**{**common, **particular})
    if config.num_heads % config.num_kv_heads:
        raise fields.refuse("attention.head_count_kv", f"does not divide {num_heads} heads")
    return config


def parse_gguf_rope(fields: Fields, factors: Factors, head_width: int) -> RopeConfig:
    """Read a rotary embedding and its scaling from metadata and factor tensors."""
    word = fields.word("rope.scaling.type", "none")
    if word not in _ROPE_KINDS:
        raise fields.refuse("rope.scaling.type", f"is not one of {', '.join(_ROPE_KINDS)}")
    kind = _ROPE_KINDS[word]
    context = fields.integer("context_length", high=MAX_CONTEXT)
    original = fields.integer("rope.scaling.original_context_length", context, high=MAX_CONTEXT)
    short = factors("rope_factors_short.weight")
    long = factors("rope_factors_long.weight")
    attention_factor = fields.optional_number("rope.scaling.attn_factor")
    llama3 = factors("rope_freqs.weight")
    if short and long:
        kind = "longrope"
    elif llama3:
        # Llama 3.1's scaling, already worked out per channel pair by the converter.
        kind, short, long, attention_factor = "longrope", llama3, llama3, 1.0
    factor = fields.number("rope.scaling.factor", context / original)
    return checked_rope(
        fields,
        RopeConfig(
            theta=fields.number("rope.freq_base", 10_000.0),
            rotary_width=fields.integer("rope.dimension_count", head_width, high=head_width),
            kind=kind,
            factor=factor or 1.0,  # some converters write 0 for "none"
            original_context=original,
            attention_factor=attention_factor if kind == "longrope" else None,
            beta_fast=fields.number("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1.0),
            short_factor=short,
            long_factor=long,
        ),
    )
