"""Llama 1 to 3, and the many families that share its shape (arXiv:2302.13971)."""

from collections.abc import Mapping
from typing import Any

from hyprstream.models.changes import LLAMA_GGUF_CHANGES
from hyprstream.models.config import Fields, ModelConfig
from hyprstream.models.decoder import Decoder, build_usual_decoder
from hyprstream.models.gguf_config import DECODER_NAMES, Factors, parse_gguf_decoder
from hyprstream.models.hf_config import parse_decoder
from hyprstream.models.layers import Weights

GGUF_NAMES = DECODER_NAMES
GGUF_CHANGES = LLAMA_GGUF_CHANGES


def parse(hf: Mapping[str, Any]) -> ModelConfig:
    """Read `config.json`."""
    fields = Fields(hf, "config.json")
    bias = fields.flag("attention_bias", default=False)
    mlp_bias = fields.flag("mlp_bias", default=False)
    return parse_decoder(hf, attention_bias=bias, output_bias=bias, mlp_bias=mlp_bias)


def parse_gguf(fields: Fields, factors: Factors) -> ModelConfig:
    """Read GGUF metadata."""
    if fields.integer("expert_count", 0, low=0):
        raise fields.refuse("expert_count", "asks for a mixture of experts")
    # GGUF has no key for biases: they are there or not, in every layer alike.
    return parse_gguf_decoder(
        fields,
        factors,
        "llama",
        attention_bias=bool(factors("blk.0.attn_q.bias")),
        output_bias=bool(factors("blk.0.attn_output.bias")),
        mlp_bias=bool(factors("blk.0.ffn_up.bias")),
    )


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Compose the decoder."""
    return build_usual_decoder(config, weights)
