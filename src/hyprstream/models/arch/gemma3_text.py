"""Gemma 3, text part: five local layers to each global one, two rotary bases (arXiv:2503.19786)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hyprstream.models.changes import GEMMA_HF_CHANGES
from hyprstream.models.config import MAX_CONTEXT, AttentionConfig, Fields, ModelConfig, RopeConfig
from hyprstream.models.decoder import Decoder, Layer, build_decoder
from hyprstream.models.gguf_config import (
    DECODER_NAMES,
    Factors,
    parse_gguf_decoder,
    parse_gguf_rope,
)
from hyprstream.models.hf_config import activation, parse_decoder, parse_rope, windows
from hyprstream.models.layers import GatedMLP, SandwichLayer, SelfAttention, Weights

GGUF_NAMES = {
    **DECODER_NAMES,
    "layers.{}.post_attention_layernorm": "blk.{}.post_attention_norm",
    "layers.{}.pre_feedforward_layernorm": "blk.{}.ffn_norm",
    "layers.{}.post_feedforward_layernorm": "blk.{}.post_ffw_norm",
}
HF_CHANGES = GEMMA_HF_CHANGES

_PATTERN = 6
_GLOBAL_THETA = 1_000_000.0
_LOCAL_THETA = 10_000.0
_LAYERS_OF_27B = 62


def parse(hf: Mapping[str, Any]) -> ModelConfig:
    """Read `config.json`, of the text model or of the whole one with its `text_config`."""
    if isinstance(hf.get("text_config"), Mapping):
        hf = {"tie_word_embeddings": True, **hf["text_config"]}
    hf = {"head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4, **hf}
    fields = Fields(hf, "config.json")
    if fields.flag("use_bidirectional_attention", default=False):
        raise fields.refuse("use_bidirectional_attention", "is not implemented")
    bias = fields.flag("attention_bias", default=False)
    head_width = fields.integer("head_dim")
    config = parse_decoder(
        hf,
        activation=activation(fields, "hidden_activation", "gelu_pytorch_tanh"),
        attention_bias=bias,
        output_bias=bias,
        embedding_scale=fields.integer("hidden_size") ** 0.5,
        logit_softcap=fields.optional_number("final_logit_softcapping"),
        ropes=(_full_rope(fields, head_width), _local_rope(fields, head_width)),
    )
    pattern = fields.integer("sliding_window_pattern", _PATTERN)
    kinds = tuple(
        "sliding_attention" if (i + 1) % pattern else "full_attention"
        for i in range(config.num_layers)
    )
    seen = windows(fields, config.num_layers, layer_types=kinds)
    return _attending(config, fields.number("query_pre_attn_scalar", 256) ** -0.5, seen)


def parse_gguf(fields: Fields, factors: Factors) -> ModelConfig:
    """Read GGUF metadata."""
    head_width = fields.integer("attention.key_length", 256)
    full = parse_gguf_rope(fields, factors, head_width)
    if "rope.freq_base" not in fields:
        full = replace(full, theta=_GLOBAL_THETA)
    local_theta = fields.number("rope.freq_base_swa", _LOCAL_THETA)
    config = parse_gguf_decoder(
        fields,
        factors,
        "gemma3_text",
        activation="gelu_tanh",
        embedding_scale=fields.integer("embedding_length") ** 0.5,
        logit_softcap=fields.optional_number("final_logit_softcapping"),
        ropes=(full, RopeConfig(theta=local_theta, rotary_width=head_width)),
    )
    # GGUF has no key for the scale; as in llama.cpp, only the 27B model differs.
    is_27b = config.num_layers == _LAYERS_OF_27B
    scale = (config.width / config.num_heads if is_27b else config.head_width) ** -0.5
    window = fields.integer("attention.sliding_window", 1024, high=MAX_CONTEXT)
    seen = [window if (i + 1) % _PATTERN else None for i in range(config.num_layers)]
    return _attending(config, scale, seen)


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Compose the decoder."""

    def make_layer(path: str, layer: int) -> Layer:
        attention = SelfAttention(config, weights, f"{path}.self_attn", layer, head_norm=True)
        mlp = GatedMLP(config, weights, f"{path}.mlp", config.mlp_width)
        return SandwichLayer(config, weights, path, attention, mlp)

    return build_decoder(config, weights, make_layer)


def _full_rope(fields: Fields, head_width: int) -> RopeConfig:
    return parse_rope(fields, head_width, layer_type="full_attention", theta=_GLOBAL_THETA)


def _local_rope(fields: Fields, head_width: int) -> RopeConfig:
    """Local layers have a base of their own and, in old files, no scaling."""
    parameters = fields.at("rope_parameters")
    if "sliding_attention" in parameters:
        return parse_rope(fields, head_width, layer_type="sliding_attention", theta=_LOCAL_THETA)
    theta = fields.number("rope_local_base_freq", _LOCAL_THETA)
    return RopeConfig(theta=theta, rotary_width=head_width)


def _attending(config: ModelConfig, scale: float, seen: Sequence[int | None]) -> ModelConfig:
    return replace(
        config,
        attention=tuple(AttentionConfig(scale=scale, window=window) for window in seen),
        rope_of_layer=tuple(0 if window is None else 1 for window in seen),
    )
