"""BERT and the sentence encoders built on it, MiniLM and its family (arXiv:1810.04805)."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from hyprstream.models.config import (
    MAX_CONTEXT,
    MAX_LAYERS,
    MAX_VOCAB,
    AttentionConfig,
    Fields,
    ModelConfig,
    Pooling,
)
from hyprstream.models.encoder import Encoder
from hyprstream.models.forward import ForwardBatch
from hyprstream.models.gguf_config import Factors
from hyprstream.models.hf_config import activation
from hyprstream.models.layers import ACTIVATIONS, LayerNorm, Weights

GGUF_NAMES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "encoder.layer.{}.attention.self.query": "blk.{}.attn_q",
    "encoder.layer.{}.attention.self.key": "blk.{}.attn_k",
    "encoder.layer.{}.attention.self.value": "blk.{}.attn_v",
    "encoder.layer.{}.attention.output.dense": "blk.{}.attn_output",
    "encoder.layer.{}.attention.output.LayerNorm": "blk.{}.attn_output_norm",
    "encoder.layer.{}.intermediate.dense": "blk.{}.ffn_up",
    "encoder.layer.{}.output.dense": "blk.{}.ffn_down",
    "encoder.layer.{}.output.LayerNorm": "blk.{}.layer_output_norm",
}

_GGUF_POOLING: Mapping[int, Pooling] = {1: "mean", 2: "cls", 3: "last"}


def parse(hf: Mapping[str, Any]) -> ModelConfig:
    """Read `config.json`."""
    fields = Fields(hf, "config.json")
    kind = fields.word("position_embedding_type", "absolute")
    if kind != "absolute":
        raise fields.refuse("position_embedding_type", "is not implemented")
    if fields.flag("is_decoder", default=False):
        raise fields.refuse("is_decoder", "is not implemented")
    num_layers = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    num_heads = fields.integer("num_attention_heads")
    width = fields.integer("hidden_size")
    if width % num_heads:
        raise fields.refuse("hidden_size", f"is not a multiple of {num_heads} heads")
    head_width = width // num_heads
    return ModelConfig(
        architecture="bert",
        vocab_size=fields.integer("vocab_size", high=MAX_VOCAB),
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_width=head_width,
        mlp_width=fields.integer("intermediate_size"),
        context_length=fields.integer("max_position_embeddings", 512, high=MAX_CONTEXT),
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        activation=activation(fields, "hidden_act", "gelu"),
        attention=(AttentionConfig(scale=head_width**-0.5),) * num_layers,
        num_token_types=fields.integer("type_vocab_size", 2),
        causal=False,
    )


def parse_gguf(fields: Fields, factors: Factors) -> ModelConfig:  # noqa: ARG001
    """Read GGUF metadata."""
    num_layers = fields.integer("block_count", high=MAX_LAYERS)
    num_heads = fields.integer("attention.head_count")
    width = fields.integer("embedding_length")
    if width % num_heads:
        raise fields.refuse("embedding_length", f"is not a multiple of {num_heads} heads")
    pooling = fields.integer("pooling_type", 1, low=0, high=3)
    return ModelConfig(
        architecture="bert",
        vocab_size=fields.integer("vocab_size", high=MAX_VOCAB),
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_width=width // num_heads,
        mlp_width=fields.integer("feed_forward_length"),
        context_length=fields.integer("context_length", high=MAX_CONTEXT),
        norm_eps=fields.number("attention.layer_norm_epsilon", 1e-12),
        activation="gelu",
        attention=(AttentionConfig(scale=(width // num_heads) ** -0.5),) * num_layers,
        num_token_types=fields.integer("token_type_count", 2),
        pooling=_GGUF_POOLING.get(pooling),
        causal=False,
    )


def build(config: ModelConfig, weights: Weights) -> Encoder:
    """Compose the encoder."""
    width = config.width
    types = weights.embedding("embeddings.token_type_embeddings", (config.num_token_types, width))
    return Encoder(
        config,
        weights,
        tokens=weights.embedding("embeddings.word_embeddings", (config.vocab_size, width)),
        positions=weights.embedding(
            "embeddings.position_embeddings", (config.context_length, width)
        ),
        token_type=types.weight.dequantize(weights.dtype)[0],
        norm=_norm(config, weights, "embeddings.LayerNorm"),
        layers=[
            BertLayer(config, weights, f"encoder.layer.{i}", i) for i in range(config.num_layers)
        ],
    )


def _norm(config: ModelConfig, weights: Weights, path: str) -> LayerNorm:
    scale = weights.vector(f"{path}.weight", config.width)
    return LayerNorm(scale, weights.vector(f"{path}.bias", config.width), config.norm_eps)


class BertLayer:
    """Attention, then a two-layer feed-forward part, each normalised after its residual."""

    def __init__(self, config: ModelConfig, weights: Weights, path: str, layer: int) -> None:
        square = (config.width, config.width)
        inside = f"{path}.attention.self"
        self._q = weights.linear(f"{inside}.query", square, bias=True)
        self._k = weights.linear(f"{inside}.key", square, bias=True)
        self._v = weights.linear(f"{inside}.value", square, bias=True)
        self._o = weights.linear(f"{path}.attention.output.dense", square, bias=True)
        self._attended_norm = _norm(config, weights, f"{path}.attention.output.LayerNorm")
        shape = (config.mlp_width, config.width)
        self._up = weights.linear(f"{path}.intermediate.dense", shape, bias=True)
        self._down = weights.linear(f"{path}.output.dense", shape[::-1], bias=True)
        self._norm = _norm(config, weights, f"{path}.output.LayerNorm")
        self._activation = ACTIVATIONS[config.activation]
        self._head_width = config.head_width
        self._layer = layer

    def __call__(self, x: Float[Tensor, "T C"], batch: ForwardBatch) -> Float[Tensor, "T C"]:
        """Apply the block."""
        lora = batch.lora
        heads = (-1, self._head_width)
        q, k, v = (project(x, lora).unflatten(-1, heads) for project in (self._q, self._k, self._v))
        mixed = batch.attention.attend(self._layer, q, k, v)
        x = self._attended_norm(x + self._o(mixed.flatten(-2), lora))
        return self._norm(x + self._down(self._activation(self._up(x, lora)), lora))
