"""The reference: PEFT on a transformers model, one sample at a time, in float32."""

import warnings
from collections.abc import Sequence
from typing import Any

import peft
import torch
from torch import Tensor

from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.weights import LoraWeights
from hyprstream.train.sample import Sample

PREFIX = "base_model.model.model."
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SPEC = LoraSpec(rank=4, alpha=6, targets=LINEARS)


def wrap(model: Any, *, seed: int = 3, empty: bool = False) -> Any:
    """Put an adapter of random A and B on every linear layer of a transformers model."""
    config = peft.LoraConfig(r=SPEC.rank, lora_alpha=6, target_modules=list(LINEARS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by an old name
        wrapped = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                drawn = torch.randn(parameter.shape, generator=generator) * 0.2
                parameter.copy_(drawn * (0 if empty and "lora_B" in name else 1))
    return wrapped


def modules(wrapped: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """The parameters A (R, I) and B (O, R) of each layer, by our path."""
    found = dict(wrapped.named_parameters())
    return {
        name.removeprefix(PREFIX).removesuffix(".lora_A.default.weight"): (
            parameter,
            found[name.replace("lora_A", "lora_B")],
        )
        for name, parameter in found.items()
        if "lora_A" in name
    }


def to_weights(wrapped: Any) -> LoraWeights:
    """The same adapter as ours."""
    return LoraWeights(
        {
            path: LowRank(a.detach().T, b.detach().T * SPEC.scale)
            for path, (a, b) in modules(wrapped).items()
        }
    )


def mean_loss(wrapped: Any, samples: Sequence[Sample]) -> Tensor:
    """Mean loss over all tokens that count, of all samples together."""
    total, weight = torch.zeros(()), 0.0
    for sample in samples:
        ids = torch.tensor([sample.token_ids])
        logits = wrapped(input_ids=ids, use_cache=False).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        counts = torch.tensor(sample.counts[1:])
        total = total + sample.weight * losses[counts].sum()
        weight += sample.weight * float(counts.sum())
    return total / weight
