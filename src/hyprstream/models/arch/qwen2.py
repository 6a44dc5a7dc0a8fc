"""Qwen 2 and 2.5: Llama with biases on q, k and v (arXiv:2407.10671)."""

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
    config = parse_decoder(hf, attention_bias=True)
    return with_windows(config, qwen_windows(Fields(hf, "config.json"), config.num_layers))


def parse_gguf(fields: Fields, factors: Factors) -> ModelConfig:
    """Read GGUF metadata."""
    return parse_gguf_decoder(fields, factors, "qwen2", attention_bias=True)


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Compose the decoder."""
    return build_usual_decoder(config, weights)
