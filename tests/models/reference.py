"""Tiny random models made by transformers, and how it and we score tokens with them."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from hyprstream.engine.kv_cache import SequenceCache
from hyprstream.models.attention import PackedAttention
from hyprstream.models.decoder import Decoder
from hyprstream.models.forward import ForwardBatch
from hyprstream.models.load import open_model

GOLDEN = Path(__file__).parents[1] / "golden" / "arch"


def variants(model_type: str) -> dict[str, dict[str, Any]]:
    """The tiny configurations of a family, by what they try."""
    return json.loads((GOLDEN / f"{model_type}.json").read_text())


def make_model(config: dict[str, Any], seed: int = 0) -> Any:
    """A random model whose every parameter matters: norms and biases are random too."""
    torch.manual_seed(seed)
    hf_config = transformers.AutoConfig.for_model(**config)
    is_encoder = config["model_type"] == "bert"
    auto = transformers.AutoModel if is_encoder else transformers.AutoModelForCausalLM
    extra = {"add_pooling_layer": False} if is_encoder else {}
    model = auto.from_config(hf_config, attn_implementation="eager", **extra)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if "norm" in name.lower() or "bias" in name else 0.15
            parameter.add_(torch.randn_like(parameter) * scale)
    return model.eval().float()


@torch.no_grad()
def reference_logits(model: Any, ids: Tensor) -> Tensor:
    """What transformers scores after each token."""
    return model(input_ids=ids[None], use_cache=False).logits[0]


@torch.no_grad()
def packed_logits(model: Decoder, *sequences: Tensor) -> list[Tensor]:
    """What we score after each token of sequences packed into one step, without a cache."""
    lengths = [len(ids) for ids in sequences]
    batch = ForwardBatch(
        token_ids=torch.cat(sequences),
        positions=torch.cat([torch.arange(length) for length in lengths]),
        attention=PackedAttention(model.config.attention, lengths),
    )
    return list(model.logits(model.forward(batch)).split(lengths))


@torch.no_grad()
def cached_logits(model: Decoder, ids: Tensor, piece: int) -> Tensor:
    """What we score when the sequence arrives in pieces, through the cache."""
    cache = SequenceCache(model.config, model.dtype, model.device)
    scores = []
    for tokens in ids.split(piece):
        first = cache.length
        batch = ForwardBatch(
            token_ids=tokens,
            positions=torch.arange(first, first + len(tokens)),
            attention=cache,
        )
        scores.append(model.logits(model.forward(batch)))
        cache.advance(len(tokens))
    return torch.cat(scores)


def load_decoder(path: Path, context_length: int | None = None) -> Decoder:
    """Load a language model in float32 on the CPU."""
    model = open_model(path).load(
        device=torch.device("cpu"), dtype=torch.float32, context_length=context_length
    )
    assert isinstance(model, Decoder)
    return model


def assert_logits_equal(ours: Tensor, theirs: Tensor) -> None:
    """The bound that every family is held to in float32."""
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
