"""Mistral 7B and successors: Llama with a sliding window (arXiv:2310.06825).

llama.cpp converts Mistral models to its `llama` architecture, so their GGUF files are read
by `llama.py`; there is no other GGUF form of them.
"""

from collections.abc import Mapping
from typing import Any

from hyprstream.models.config import MAX_CONTEXT, Fields, ModelConfig
from hyprstream.models.decoder import Decoder, build_usual_decoder
from hyprstream.models.hf_config import parse_decoder, with_windows
from hyprstream.models.layers import Weights


def parse(hf: Mapping[str, Any]) -> ModelConfig:
    """Read `config.json`."""
    fields = Fields(hf, "config.json")
    has_window = "sliding_window" in fields
    window = fields.integer("sliding_window", high=MAX_CONTEXT) if has_window else None
    config = parse_decoder(hf)
    return with_windows(config, (window,) * config.num_layers)


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Compose the decoder."""
    return build_usual_decoder(config, weights)
