"""A causal language model: embed, layers, norm, logits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hyprstream.models.config import ModelConfig
from hyprstream.models.forward import ForwardBatch, LoraView
from hyprstream.models.layers import (
    Embedding,
    GatedMLP,
    Linear,
    PreNormLayer,
    RMSNorm,
    RotaryTables,
    SelfAttention,
    Weights,
    rms_norm,
)
from hyprstream.models.native_layers import NativeLayers
from hyprstream.models.rotary import Rotary


@runtime_checkable
class Layer(Protocol):
    """One block of a decoder: hidden states in, hidden states out."""

    def __call__(
        self, x: Float[Tensor, "T C"], rotary: RotaryTables, batch: ForwardBatch
    ) -> Float[Tensor, "T C"]:
        """Apply attention and feed-forward parts with their residuals."""
        ...

    def attended(
        self, x: Float[Tensor, "T C"], rotary: RotaryTables, batch: ForwardBatch
    ) -> Float[Tensor, "T C"]:
        """Apply the first of the two parts."""
        ...

    def transformed(self, x: Float[Tensor, "T C"], lora: LoraView | None) -> Float[Tensor, "T C"]:
        """Apply the second part, in which each row depends on itself alone."""
        ...


@dataclass(frozen=True, slots=True)
class Stage:
    """A piece of the forward pass: hidden states in, hidden states out.

    Attributes:
        run: Computes it, with what adapters add to these rows.
        is_by_row: Rows depend on themselves alone, so any few may be computed at a time.
    """

    run: Callable[[Float[Tensor, "T C"], LoraView | None], Float[Tensor, "T C"]]
    is_by_row: bool


class Decoder:
    """A causal language model whose weights are constants.

    Safe to share: `forward` changes nothing, so one decoder serves requests, embeds text
    and is the base of adapters under training at the same time.

    Attributes:
        config: What the model is made of.
        dtype: Dtype of activations.
        device: Where weights and activations live.
        linears: Logical shape (O, I) of each linear layer by path: what adapters can change.
        weights: W of each of them, as the layer holds it.
        table: The embedding's table, one row per entry of the vocabulary.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        embedding: Embedding,
        layers: Sequence[Layer],
        norm: RMSNorm,
        head: Linear,
    ) -> None:
        self.config = config
        self.dtype = weights.dtype
        self.device = weights.device
        self.linears = dict(weights.linears)
        self.weights = dict(weights.linear_weights)
        self.table = embedding.weight
        self._embedding = embedding
        self._layers = tuple(layers)
        self._norm = norm
        self._head = head
        self._native = NativeLayers.of(config, self._layers)
        self._rotary = [
            Rotary(rope, config.head_width, config.context_length, weights.device)
            for rope in config.ropes
        ]

    def forward(self, batch: ForwardBatch) -> Float[Tensor, "T C"]:
        """Compute the normalised hidden state of every token of the batch."""
        x = self.embedded(batch.token_ids)
        tables = self._tables(batch)
        y = None if self._native is None else self._native.apply(x, tables, batch)
        return self.normalised(self._layered(x, tables, batch) if y is None else y)

    def _layered(
        self, x: Float[Tensor, "T C"], tables: Sequence[RotaryTables], batch: ForwardBatch
    ) -> Float[Tensor, "T C"]:
        """Apply one layer after the other."""
        for layer, rope in zip(self._layers, self.config.rope_of_layer, strict=True):
            if batch.recompute and torch.is_grad_enabled():
                x = checkpoint(
                    layer, x, tables[rope], batch, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x = layer(x, tables[rope], batch)
        return x

    def embedded(self, token_ids: Int[Tensor, " T"]) -> Float[Tensor, "T C"]:
        """Return the vectors of tokens: what `forward` begins with."""
        x = self._embedding(token_ids)
        if self.config.embedding_scale != 1.0:
            # Rounded to the model's dtype first, as Gemma was trained.
            x = x * torch.tensor(self.config.embedding_scale, dtype=x.dtype, device=x.device)
        return x

    def stages(self, batch: ForwardBatch) -> list[Stage]:
        """Return what `forward` does between `embedded` and `normalised`, in two a layer."""
        tables = self._tables(batch)
        stages = []
        for layer, rope in zip(self._layers, self.config.rope_of_layer, strict=True):
            attend = partial(_attended, layer, tables[rope], batch)
            stages += [Stage(attend, is_by_row=False), Stage(layer.transformed, is_by_row=True)]
        return stages

    def normalised(self, x: Float[Tensor, "T C"]) -> Float[Tensor, "T C"]:
        """Normalise rows: what `forward` ends with."""
        return self._norm(x)

    def logits(
        self,
        hidden: Float[Tensor, "N C"],
        lora: LoraView | None = None,
        entries: slice | None = None,
    ) -> Float[Tensor, "N V"]:
        """Score the vocabulary for hidden states that `forward` returned.

        Args:
            hidden: The rows.
            lora: What adapters add to the head.
            entries: Entries of the vocabulary to score; it starts at a multiple of 64. None
                scores all.
        """
        scores = self._head(hidden, lora, entries)
        cap = self.config.logit_softcap
        return scores if cap is None else torch.tanh(scores / cap) * cap

    def peaks(
        self, hidden: Float[Tensor, "N C"], lora: LoraView | None = None
    ) -> list[tuple[float, int]] | None:
        """Return the largest of each row of `logits`, and the first entry that has it.

        None where finding it takes the logits.
        """
        if self.config.logit_softcap is not None:
            return None
        return self._head.peaks(hidden, lora)

    def _tables(self, batch: ForwardBatch) -> list[RotaryTables]:
        return [rotary.tables(batch.positions, self.dtype) for rotary in self._rotary]


def _attended(
    layer: Layer,
    rotary: RotaryTables,
    batch: ForwardBatch,
    x: Float[Tensor, "T C"],
    _lora: LoraView | None,
) -> Float[Tensor, "T C"]:
    return layer.attended(x, rotary, batch)


def build_decoder(
    config: ModelConfig, weights: Weights, make_layer: Callable[[str, int], Layer]
) -> Decoder:
    """Compose a decoder from the usual parts and the layers that `make_layer` builds.

    Args:
        config: What the model is made of.
        weights: Where the constants come from.
        make_layer: Builds the layer of a path and an index.
    """
    table = (config.vocab_size, config.width)
    embedding = weights.embedding("embed_tokens", table)
    return Decoder(
        config,
        weights,
        embedding=embedding,
        layers=[make_layer(f"layers.{i}", i) for i in range(config.num_layers)],
        norm=rms_norm(weights, "norm", config.width, config.norm_eps),
        head=weights.head("lm_head", embedding, tied=config.tied),
    )


def build_usual_decoder(
    config: ModelConfig, weights: Weights, *, head_norm: bool = False
) -> Decoder:
    """Compose the decoder that Llama, Mistral and the dense Qwen models share.

    Args:
        config: What the model is made of.
        weights: Where the constants come from.
        head_norm: Normalise the heads of q and k.
    """

    def make_layer(path: str, layer: int) -> Layer:
        attention = SelfAttention(config, weights, f"{path}.self_attn", layer, head_norm=head_norm)
        mlp = GatedMLP(config, weights, f"{path}.mlp", config.mlp_width)
        return PreNormLayer(config, weights, path, attention, mlp)

    return build_decoder(config, weights, make_layer)
