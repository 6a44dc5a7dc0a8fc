"""One pass over packed samples: the loss and its gradient.

The gradient is that of a sum over rows. It is exact, and memory is bounded: the head is
passed a few rows at a time in both directions before the layers are passed back once.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hyprstream.errors import NonFiniteTrainingError
from hyprstream.models.decoder import Decoder
from hyprstream.models.forward import LoraView
from hyprstream.train.collate import Packed
from hyprstream.train.loss import cross_entropy, cross_entropy_backward, divergence, row_chunks


@contextmanager
def learning() -> Iterator[None]:
    """Let gradients be computed, in whatever mode the thread serves requests."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is summed up over rows.

    Attributes:
        loss: Factor of the loss of the next token.
        pull: Factor of the divergence from the base model.
    """

    loss: float = 1.0
    pull: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """Sums over the rows of a pass, each row times its weight; without the factors.

    Attributes:
        loss: Losses of next tokens, in nats.
        pull: Divergences from the base model, in nats.
        weight: Weights.
        num_tokens: Tokens that were computed.
    """

    loss: float = 0.0
    pull: float = 0.0
    weight: float = 0.0
    num_tokens: int = 0


def backward(
    model: Decoder, view: LoraView, packed: Packed, objective: Objective, *, recompute: bool = False
) -> Sums:
    """Add the gradient of the weighted sum over all rows to what the view has collected.

    Raises:
        NonFiniteTrainingError: A loss is no finite number; gradients are incomplete then.
    """
    batch = packed.batch(model.config, view, recompute=recompute)
    hidden = model.forward(batch)[packed.rows]
    return backward_from(model, view, packed, hidden, objective)


def backward_from(
    model: Decoder,
    view: LoraView,
    packed: Packed,
    hidden: Float[Tensor, "N C"],
    objective: Objective,
) -> Sums:
    """Do what `backward` does, from the hidden states of the rows on.

    Raises:
        NonFiniteTrainingError: As in `backward`.
    """
    base_hidden = _base_hidden(model, packed) if objective.pull else None
    gradients, losses, pulls = [], 0.0, 0.0
    chunks = row_chunks(len(packed.rows), model.config.vocab_size, in_place=base_hidden is None)
    for chunk in chunks:
        part = hidden[chunk].detach().requires_grad_()
        head, weights = view.select(packed.rows[chunk]), packed.weights[chunk]
        targets = packed.targets[chunk]
        if base_hidden is None:
            factors = weights * objective.loss
            loss = weights @ cross_entropy_backward(model, part, targets, factors, head)
            losses += loss.item()
        else:
            total = part.new_zeros((), dtype=torch.float32)
            if objective.loss:
                loss = weights @ cross_entropy(model, part, targets, head)
                losses, total = losses + loss.item(), total + objective.loss * loss
            pull = weights @ divergence(model, part, base_hidden[chunk], head)
            pulls, total = pulls + pull.item(), total + objective.pull * pull
            if math.isfinite(losses + pulls):
                total.backward()
        if not math.isfinite(losses + pulls):
            raise NonFiniteTrainingError("the loss")
        assert part.grad is not None
        gradients.append(part.grad)
    if hidden.requires_grad:  # an adapter of the head alone changes nothing before it
        hidden.backward(torch.cat(gradients))
    return Sums(loss=losses, pull=pulls, weight=packed.weight, num_tokens=len(packed.token_ids))


@torch.no_grad()
def _base_hidden(model: Decoder, packed: Packed) -> Float[Tensor, "N C"]:
    return model.forward(packed.batch(model.config, None))[packed.rows]
