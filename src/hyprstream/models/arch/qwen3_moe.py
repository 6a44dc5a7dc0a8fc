"""Qwen 3 mixture of experts: each token visits a few of many small feed-forward parts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hyprstream.models.config import Fields, ModelConfig, MoeConfig
from hyprstream.models.decoder import Decoder, Layer, build_decoder
from hyprstream.models.forward import LoraView
from hyprstream.models.gguf_config import DECODER_NAMES, Factors, parse_gguf_decoder
from hyprstream.models.hf_config import parse_decoder, qwen_windows, with_windows
from hyprstream.models.layers import GatedMLP, PreNormLayer, SelfAttention, Weights

GGUF_NAMES = {
    **DECODER_NAMES,
    "layers.{}.mlp.gate": "blk.{}.ffn_gate_inp",
    # One stacked tensor holds a projection of all experts; the second {} picks the expert.
    "layers.{}.mlp.experts.{}.gate_proj": "blk.{}.ffn_gate_exps",
    "layers.{}.mlp.experts.{}.up_proj": "blk.{}.ffn_up_exps",
    "layers.{}.mlp.experts.{}.down_proj": "blk.{}.ffn_down_exps",
}

MAX_EXPERTS = 4096


def parse(hf: Mapping[str, Any]) -> ModelConfig:
    """Read `config.json`."""
    fields = Fields(hf, "config.json")
    bias = fields.flag("attention_bias", default=False)
    config = parse_decoder(hf, attention_bias=bias, output_bias=bias)
    step = fields.integer("decoder_sparse_step", 1)
    listed = {int(layer) for layer in fields.numbers("mlp_only_layers")}
    dense = {i for i in range(config.num_layers) if i in listed or (i + 1) % step}
    key = "num_experts" if "num_experts" in fields else "num_local_experts"
    moe = _checked(
        fields,
        MoeConfig(
            num_experts=fields.integer(key, high=MAX_EXPERTS),
            num_active=fields.integer("num_experts_per_tok", 8),
            width=fields.integer("moe_intermediate_size"),
            normalize=fields.flag("norm_topk_prob", default=False),
            dense_layers=frozenset(dense),
        ),
    )
    windows = qwen_windows(fields, config.num_layers)
    return replace(with_windows(config, windows), moe=moe)


def parse_gguf(fields: Fields, factors: Factors) -> ModelConfig:
    """Read GGUF metadata."""
    moe = MoeConfig(
        num_experts=fields.integer("expert_count", high=MAX_EXPERTS),
        num_active=fields.integer("expert_used_count"),
        width=fields.integer("expert_feed_forward_length"),
        normalize=True,  # GGUF has no key for it; llama.cpp always normalises this family
    )
    return parse_gguf_decoder(fields, factors, "qwen3_moe", moe=_checked(fields, moe))


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Compose the decoder."""
    moe = config.moe
    assert moe is not None

    def make_layer(path: str, layer: int) -> Layer:
        attention = SelfAttention(config, weights, f"{path}.self_attn", layer, head_norm=True)
        if layer in moe.dense_layers:
            dense = GatedMLP(config, weights, f"{path}.mlp", config.mlp_width)
            return PreNormLayer(config, weights, path, attention, dense)
        experts = MixtureOfExperts(config, moe, weights, f"{path}.mlp")
        return PreNormLayer(config, weights, path, attention, experts)

    return build_decoder(config, weights, make_layer)


class MixtureOfExperts:
    """A router and its experts; the router's softmax is float32."""

    def __init__(self, config: ModelConfig, moe: MoeConfig, weights: Weights, path: str) -> None:
        self._gate = weights.linear(f"{path}.gate", (moe.num_experts, config.width))
        self._experts = [
            GatedMLP(config, weights, f"{path}.experts.{i}", moe.width)
            for i in range(moe.num_experts)
        ]
        self._num_active = moe.num_active
        self._normalize = moe.normalize

    def __call__(self, x: Float[Tensor, "T C"], lora: LoraView | None) -> Float[Tensor, "T C"]:
        """Send each token through its chosen experts."""
        shares = self._gate(x, lora).softmax(dim=-1, dtype=torch.float32)
        share, chosen = shares.topk(self._num_active, dim=-1)  # T E
        if self._normalize:
            share = share / share.sum(dim=-1, keepdim=True)
        share = share.to(x.dtype)
        mixed = torch.zeros_like(x)
        for expert in chosen.unique().tolist():
            rows, place = torch.where(chosen == expert)
            added = None if lora is None else lora.select(rows)
            y = self._experts[expert](x[rows], added) * share[rows, place, None]
            mixed = mixed.index_add(0, rows, y)
        return mixed


def _checked(fields: Fields, moe: MoeConfig) -> MoeConfig:
    if moe.num_active > moe.num_experts:
        raise fields.refuse("num_experts_per_tok", f"exceeds {moe.num_experts} experts")
    return moe
