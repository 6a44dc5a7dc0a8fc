"""The loss of every row whose next token counts, with logits for few rows at a time."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hyprstream.models import native
from hyprstream.models.decoder import Decoder
from hyprstream.models.forward import LoraView

# Logits at a time: 32 MiB in float32, and about four times that with what softmax keeps.
_CHUNK_VALUES = 1 << 23
# Where the gradient takes the place of logits: 32 MiB in bfloat16, and nothing besides.
_CHUNK_VALUES_IN_PLACE = 1 << 24


def row_chunks(num_rows: int, vocab_size: int, *, in_place: bool = False) -> Iterator[slice]:
    """Cut rows into runs whose logits are few enough, more so if nothing is kept beside them."""
    step = max(1, (_CHUNK_VALUES_IN_PLACE if in_place else _CHUNK_VALUES) // vocab_size)
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def cross_entropy(
    model: Decoder,
    hidden: Float[Tensor, "N C"],
    targets: Int[Tensor, " N"],
    lora: LoraView | None,
) -> Float[Tensor, " N"]:
    """Return the loss of each row's next token in nats, in float32.

    Holds the logits of all rows: callers cut rows with `row_chunks`.
    """
    return F.cross_entropy(model.logits(hidden, lora).float(), targets, reduction="none")


def cross_entropy_backward(
    model: Decoder,
    hidden: Float[Tensor, "N C"],
    targets: Int[Tensor, " N"],
    factors: Float[Tensor, " N"],
    lora: LoraView | None,
) -> Float[Tensor, " N"]:
    """Return what `cross_entropy` does; pass the gradient of the losses times factors back.

    Logits are overwritten by their gradient, so nothing of their size is kept beside them.
    """
    logits = model.logits(hidden, lora)
    with torch.no_grad():
        gradient = logits.detach()
        losses = native.cross_entropy(gradient, targets, factors)
        if losses is None:
            wide = logits.float()
            losses = F.cross_entropy(wide, targets, reduction="none")
            wide = wide.softmax(-1)
            wide[torch.arange(len(targets), device=wide.device), targets] -= 1
            gradient = wide.mul_(factors[:, None]).to(logits.dtype)
    if losses.isfinite().all():
        logits.backward(gradient)
    return losses


def scored(
    model: Decoder,
    hidden: Float[Tensor, "N C"],
    targets: Int[Tensor, " N"],
    lora: LoraView | None,
) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """Return each row's loss, as `cross_entropy`, and whether its token is the most likely one."""
    logits = model.logits(hidden, lora).float()
    losses = F.cross_entropy(logits, targets, reduction="none")
    return losses, logits.argmax(-1) == targets


def divergence(
    model: Decoder,
    hidden: Float[Tensor, "N C"],
    base_hidden: Float[Tensor, "N C"],
    lora: LoraView | None,
) -> Float[Tensor, " N"]:
    """Return how far each row's distribution is from the base model's: KL(base, adapted), nats.

    What the base model finds likely stays likely; elsewhere the adapter is free.
    """
    with torch.no_grad():
        base = model.logits(base_hidden).float().log_softmax(-1)
    adapted = model.logits(hidden, lora).float().log_softmax(-1)
    return F.kl_div(adapted, base, reduction="none", log_target=True).sum(-1)
