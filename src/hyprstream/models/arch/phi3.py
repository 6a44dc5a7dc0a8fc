"""Phi 3 and 3.5: Llama with fused projections, partial rotation, LongRoPE (arXiv:2404.14219)."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from hyprstream.models.config import MAX_CONTEXT, Fields, ModelConfig
from hyprstream.models.decoder import Decoder, Layer, build_decoder
from hyprstream.models.forward import ForwardBatch, LoraView
from hyprstream.models.gguf_config import DECODER_NAMES, Factors, parse_gguf_decoder
from hyprstream.models.hf_config import parse_decoder, with_windows
from hyprstream.models.layers import ACTIVATIONS, PreNormLayer, RotaryTables, Weights
from hyprstream.models.rotary import rotate

GGUF_NAMES = {
    **DECODER_NAMES,
    "layers.{}.self_attn.qkv_proj": "blk.{}.attn_qkv",
    "layers.{}.mlp.gate_up_proj": "blk.{}.ffn_up",
}

# Projections that are one here and, in models that took this one apart, are several.
JOINED = {
    "self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "mlp.gate_up_proj": ("gate_proj", "up_proj"),
}


def joined_rows(config: ModelConfig) -> Mapping[str, int]:
    """Return how many outputs each projection has within the one that joins it."""
    keys = config.num_kv_heads * config.head_width
    return {
        "q_proj": config.num_heads * config.head_width,
        "k_proj": keys,
        "v_proj": keys,
        "gate_proj": config.mlp_width,
        "up_proj": config.mlp_width,
    }


def parse(hf: Mapping[str, Any]) -> ModelConfig:
    """Read `config.json`."""
    config = parse_decoder(hf)
    window = _window(Fields(hf, "config.json"), "sliding_window")
    return with_windows(config, (window,) * config.num_layers)


def parse_gguf(fields: Fields, factors: Factors) -> ModelConfig:
    """Read GGUF metadata."""
    config = parse_gguf_decoder(fields, factors, "phi3")
    window = _window(fields, "attention.sliding_window")
    return with_windows(config, (window,) * config.num_layers)


def _window(fields: Fields, key: str) -> int | None:
    """Read the window; converters write 0 for none."""
    return (fields.integer(key, low=0, high=MAX_CONTEXT) or None) if key in fields else None


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Compose the decoder."""

    def make_layer(path: str, layer: int) -> Layer:
        attention = FusedAttention(config, weights, f"{path}.self_attn", layer)
        return PreNormLayer(
            config, weights, path, attention, FusedMLP(config, weights, f"{path}.mlp")
        )

    return build_decoder(config, weights, make_layer)


class FusedAttention:
    """Grouped-query attention with q, k and v in one projection."""

    def __init__(self, config: ModelConfig, weights: Weights, path: str, layer: int) -> None:
        queries = config.num_heads * config.head_width
        keys = config.num_kv_heads * config.head_width
        self._sizes = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        self._qkv = weights.linear(f"{path}.qkv_proj", (queries + 2 * keys, config.width))
        self._o = weights.linear(f"{path}.o_proj", (config.width, queries))
        self._layer = layer
        self._head_width = config.head_width

    def __call__(
        self, x: Float[Tensor, "T C"], rotary: RotaryTables, batch: ForwardBatch
    ) -> Float[Tensor, "T C"]:
        """Let every token attend as the batch says."""
        qkv = self._qkv(x, batch.lora).unflatten(-1, (-1, self._head_width))
        q, k, v = qkv.split(self._sizes, dim=1)  # T H D, T K D, T K D
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        mixed = batch.attention.attend(self._layer, q, k, v)
        return self._o(mixed.flatten(-2), batch.lora)


class FusedMLP:
    """A gated feed-forward part with gate and up in one projection."""

    def __init__(self, config: ModelConfig, weights: Weights, path: str) -> None:
        self._gate_up = weights.linear(f"{path}.gate_up_proj", (2 * config.mlp_width, config.width))
        self._down = weights.linear(f"{path}.down_proj", (config.width, config.mlp_width))
        self._activation = ACTIVATIONS[config.activation]

    def __call__(self, x: Float[Tensor, "T C"], lora: LoraView | None) -> Float[Tensor, "T C"]:
        """Apply the feed-forward part to each row."""
        gate, up = self._gate_up(x, lora).chunk(2, dim=-1)
        return self._down(self._activation(gate) * up, lora)
