"""Qwen 3: Llama with normalised heads (arXiv:2505.09388)."""

from collections.abc import Mapping
from typing import Any

from hyprstream.models.config import Fields, ModelConfig
from hyprstream.models.decoder import Decoder, build_usual_decoder
from hyprstream.models.gguf_config import DECODER_NAMES, Factors, parse_gguf_decoder
from hyprstream.models.hf_config import parse_decoder, qwen_windows, with_windows
from hyprstream.models.layers import Weights

GGUF_NAMES = DECODER_NAMES


def parse(hf: Mapping[str, Any]) -> ModelConfig:
    """Read `config.json`."""
    fields = Fields(hf, "config.json")
    bias = fields.flag("attention_bias", default=False)
    config = parse_decoder(
        {"head_dim": 128, **hf},  # the family's default, left out of some files
        attention_bias=bias,
        output_bias=bias,
    )
    return with_windows(config, qwen_windows(fields, config.num_layers))


def parse_gguf(fields: Fields, factors: Factors) -> ModelConfig:
    """Read GGUF metadata."""
    return parse_gguf_decoder(fields, factors, "qwen3")


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Compose the decoder."""
    return build_usual_decoder(config, weights, head_norm=True)
