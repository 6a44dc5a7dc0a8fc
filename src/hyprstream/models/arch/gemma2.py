"""Gemma 2: normalised on both sides, soft-capped, every other layer local (arXiv:2408.00118)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hyprstream.models.changes import GEMMA_HF_CHANGES
from hyprstream.models.config import MAX_CONTEXT, AttentionConfig, Fields, ModelConfig
from hyprstream.models.decoder import Decoder, Layer, build_decoder
from hyprstream.models.gguf_config import DECODER_NAMES, Factors, parse_gguf_decoder
from hyprstream.models.hf_config import activation, parse_decoder, windows
from hyprstream.models.layers import GatedMLP, SandwichLayer, SelfAttention, Weights

GGUF_NAMES = {
    **DECODER_NAMES,
    "layers.{}.post_attention_layernorm": "blk.{}.post_attention_norm",
    "layers.{}.pre_feedforward_layernorm": "blk.{}.ffn_norm",
    "layers.{}.post_feedforward_layernorm": "blk.{}.post_ffw_norm",
}
HF_CHANGES = GEMMA_HF_CHANGES

_LAYERS_OF_27B = 46


def parse(hf: Mapping[str, Any]) -> ModelConfig:
    """Read `config.json`."""
    fields = Fields(hf, "config.json")
    if fields.flag("use_bidirectional_attention", default=False):
        raise fields.refuse("use_bidirectional_attention", "is not implemented")
    bias = fields.flag("attention_bias", default=False)
    width = fields.integer("hidden_size")
    config = parse_decoder(
        {"head_dim": 256, **hf},
        activation=activation(fields, "hidden_activation", "gelu_pytorch_tanh"),
        attention_bias=bias,
        output_bias=bias,
        embedding_scale=width**0.5,
        logit_softcap=fields.number("final_logit_softcapping", 30.0),
    )
    softcap = fields.number("attn_logit_softcapping", 50.0)
    scale = fields.number("query_pre_attn_scalar", 256) ** -0.5
    kinds = [("sliding_attention", "full_attention")[i % 2] for i in range(config.num_layers)]
    seen = windows(fields, config.num_layers, layer_types=tuple(kinds))
    attention = tuple(AttentionConfig(scale=scale, window=w, softcap=softcap) for w in seen)
    return replace(config, attention=attention)


def parse_gguf(fields: Fields, factors: Factors) -> ModelConfig:
    """Read GGUF metadata."""
    config = parse_gguf_decoder(
        fields,
        factors,
        "gemma2",
        activation="gelu_tanh",
        embedding_scale=fields.integer("embedding_length") ** 0.5,
        logit_softcap=fields.number("final_logit_softcapping", 30.0),
    )
    # GGUF has no key for the scale; as in llama.cpp, only the 27B model differs.
    is_27b = config.num_layers == _LAYERS_OF_27B
    scale = (config.width / config.num_heads if is_27b else config.head_width) ** -0.5
    softcap = fields.number("attn_logit_softcapping", 50.0)
    window = fields.integer("attention.sliding_window", 4096, high=MAX_CONTEXT)
    seen = [(window, None)[layer % 2] for layer in range(config.num_layers)]
    attention = tuple(AttentionConfig(scale=scale, window=w, softcap=softcap) for w in seen)
    return replace(config, attention=attention)


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Compose the decoder."""

    def make_layer(path: str, layer: int) -> Layer:
        attention = SelfAttention(config, weights, f"{path}.self_attn", layer, head_norm=False)
        mlp = GatedMLP(config, weights, f"{path}.mlp", config.mlp_width)
        return SandwichLayer(config, weights, path, attention, mlp)

    return build_decoder(config, weights, make_layer)
