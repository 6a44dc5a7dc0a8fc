"""The loss and its gradient in pieces along the vocabulary.

The logits of a row are never there all at once: their normaliser is summed up over pieces
first (as in arXiv:1805.02867), and the gradient p - y of the cross entropy, or p - q of the
divergence from q, is then known piece by piece. A piece of the head's weights is unpacked once
for all rows, which matters where weights are stored in blocks.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyprstream.errors import NonFiniteTrainingError
from hyprstream.models.decoder import Decoder
from hyprstream.models.forward import LoraView
from hyprstream.train.backward import Objective
from hyprstream.train.collate import Packed
from hyprstream.train.stepwise import PIECE_PRODUCTS, Pieces

_MULTIPLE = 64  # of entries at which weights can be cut


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    """What is known of rows once all logits have been seen.

    Attributes:
        normaliser: Logarithm of the sum of the exponentials of a row's logits.
        chosen: The logit of the row's target.
    """

    normaliser: Float[Tensor, " N"]
    chosen: Float[Tensor, " N"]

    @property
    def losses(self) -> Float[Tensor, " N"]:
        """The loss of each row's target, in nats."""
        return self.normaliser - self.chosen


def sliced_losses(
    model: Decoder,
    hidden: Float[Tensor, "N C"],
    targets: Int[Tensor, " N"],
    head: LoraView | None,
) -> Pieces[Tensor]:
    """Return the loss of each row's next token in nats, in float32, without a gradient."""
    scored = yield from _score(model, hidden, targets, head)
    return scored.losses


def sliced_scores(
    model: Decoder,
    hidden: Float[Tensor, "N C"],
    targets: Int[Tensor, " N"],
    head: LoraView | None,
) -> Pieces[tuple[Tensor, Tensor]]:
    """Return each row's loss as `sliced_losses`, and whether its token is the most likely one."""
    normaliser = torch.full((len(hidden),), -math.inf, device=hidden.device)
    chosen, best = torch.zeros_like(normaliser), normaliser.clone()
    winners = torch.zeros_like(targets)
    for entries in _spans(model, len(hidden)):
        with torch.no_grad():
            logits = model.logits(hidden, head, entries).float()
            normaliser = torch.logaddexp(normaliser, logits.logsumexp(-1))
            rows, places = _targets_in(targets, entries)
            chosen[rows] = logits[rows, places]
            largest = logits.argmax(-1)
            values = logits.gather(1, largest[:, None])[:, 0]
            # Of equal ones the first wins, as in `scored`.
            winners = torch.where(values > best, largest + entries.start, winners)
            best = torch.maximum(best, values)
        yield
    return normaliser - chosen, winners == targets


class HeadGradient:
    """The objective of the rows of a batch, and its gradient for their hidden states.

    Args:
        model: The base model.
        hidden: The rows.
        packed: The batch: targets and weights of the rows.
        head: What the adapter adds to the head; its parameters collect gradients.
        objective: Factors of the loss and of the pull.
    """

    def __init__(
        self,
        model: Decoder,
        hidden: Float[Tensor, "N C"],
        packed: Packed,
        head: LoraView | None,
        objective: Objective,
    ) -> None:
        self._model = model
        self._hidden = hidden
        self._packed = packed
        self._head = head
        self._objective = objective

    def pieces(
        self, base_hidden: Float[Tensor, "N C"] | None
    ) -> Pieces[tuple[float, float, Tensor]]:
        """Return the weighted sums of losses and pulls, and the gradient.

        Args:
            base_hidden: The rows of the base model alone, if there is a pull.

        Raises:
            NonFiniteTrainingError: A loss is no finite number.
        """
        model, hidden, packed = self._model, self._hidden, self._packed
        scored = yield from _score(model, hidden, packed.targets, self._head)
        base = None
        if base_hidden is not None:
            base = yield from _score(model, base_hidden, packed.targets, None)
        loss = (packed.weights @ scored.losses).item() if self._objective.loss else 0.0
        if not math.isfinite(loss):
            raise NonFiniteTrainingError("the loss")
        gradient = torch.zeros_like(hidden, dtype=torch.float32)
        pull = 0.0
        for entries in _spans(model, 2 * len(hidden)):  # forward and back
            part = hidden.detach().requires_grad_()
            logits = model.logits(part, self._head, entries).float()
            with torch.no_grad():
                wanted = self._wanted(logits, entries, scored)
                if base is not None and base_hidden is not None:
                    likely = model.logits(base_hidden, None, entries).float()
                    likely -= base.normaliser[:, None]
                    pull += self._pull(logits, likely, scored, wanted)
                wanted *= packed.weights[:, None]
            logits.backward(wanted)
            assert part.grad is not None
            gradient += part.grad
            yield
        if not math.isfinite(pull):
            raise NonFiniteTrainingError("the loss")
        return loss, pull, gradient.to(hidden.dtype)

    def _wanted(
        self, logits: Float[Tensor, "N v"], entries: slice, scored: _Scored
    ) -> Float[Tensor, "N v"]:
        """Return the gradient of the loss for logits."""
        wanted = (logits - scored.normaliser[:, None]).exp_()
        rows, places = _targets_in(self._packed.targets, entries)
        wanted[rows, places] -= 1
        return wanted.mul_(self._objective.loss)

    def _pull(
        self,
        logits: Float[Tensor, "N v"],
        likely: Float[Tensor, "N v"],
        scored: _Scored,
        wanted: Float[Tensor, "N v"],
    ) -> float:
        """Add the gradient of the divergence to `wanted`; return these entries' share of it.

        Args:
            logits: Of the adapted model.
            likely: Logarithms of the base model's probabilities.
            scored: Of the adapted model.
            wanted: Changed.
        """
        adapted = logits - scored.normaliser[:, None]
        share = (likely.exp() * (likely - adapted)).sum(-1)
        wanted += self._objective.pull * (adapted.exp() - likely.exp())
        return (self._packed.weights @ share).item()


def _score(
    model: Decoder,
    hidden: Float[Tensor, "N C"],
    targets: Int[Tensor, " N"],
    head: LoraView | None,
) -> Pieces[_Scored]:
    normaliser = torch.full((len(hidden),), -math.inf, device=hidden.device)
    chosen = torch.zeros_like(normaliser)
    for entries in _spans(model, len(hidden)):
        with torch.no_grad():
            logits = model.logits(hidden, head, entries).float()
            normaliser = torch.logaddexp(normaliser, logits.logsumexp(-1))
            rows, places = _targets_in(targets, entries)
            chosen[rows] = logits[rows, places]
        yield
    return _Scored(normaliser=normaliser, chosen=chosen)


def _targets_in(
    targets: Int[Tensor, " N"], entries: slice
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Return the rows whose target is among the entries, and where."""
    rows = ((targets >= entries.start) & (targets < entries.stop)).nonzero()[:, 0]
    return rows, targets[rows] - entries.start


def _spans(model: Decoder, num_rows: int) -> Iterator[slice]:
    """Cut the vocabulary into runs of bounded work for so many rows."""
    size, width = model.config.vocab_size, model.config.width
    most = PIECE_PRODUCTS // (max(1, num_rows) * width)
    step = max(1, most // _MULTIPLE) * _MULTIPLE
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))
