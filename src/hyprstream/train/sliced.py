"""The passes of `train/backward.py` in pieces of some milliseconds, between which requests run.

A layer is two pieces, and its second part, in which rows do not see one another, is cut into
runs of rows. The head is cut along the vocabulary (`train/sliced_head.py`). What a piece takes
therefore hardly grows with the samples; only attention sees all tokens of a batch at once.
Gradients are those of the whole pass, up to the rounding of sums.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hyprstream.errors import NonFiniteTrainingError
from hyprstream.models.config import ModelConfig
from hyprstream.models.decoder import Decoder, Stage
from hyprstream.models.forward import LoraView
from hyprstream.train.backward import Objective, Sums
from hyprstream.train.collate import Packed, collate, packs
from hyprstream.train.evaluate import SampleScore
from hyprstream.train.sample import Sample
from hyprstream.train.sliced_head import HeadGradient, sliced_losses, sliced_scores
from hyprstream.train.stepwise import PIECE_PRODUCTS, Pieces

_LEAST_ROWS = 16  # fewer make a matrix product wait for its weights


class _Part:
    """A stage on some rows: its graph, or what the graph can be made from again."""

    def __init__(self, stage: Stage, source: Tensor, view: LoraView | None, *, keep: bool) -> None:
        self.source = source
        self._stage = stage
        self._view = view
        self._keep = keep
        self._output: Tensor | None = None
        self.has_gradient = False

    def forward(self) -> Tensor:
        """Compute the rows; the result is cut off from the graph."""
        output = self._stage.run(self.source, self._view)
        self.has_gradient = output.requires_grad
        if self._keep:
            self._output = output
        return output.detach()

    def backward(self, gradient: Tensor) -> Tensor | None:
        """Pass a gradient on, to parameters and to the source; the graph is gone then."""
        if self.has_gradient:
            output = self._output
            if output is None:
                output = self._stage.run(self.source, self._view)
            output.backward(gradient)
        self._output = None
        return self.source.grad


class _Layers:
    """The layers on one packed batch, forward and back.

    Args:
        model: The base model.
        packed: The batch.
        view: What the adapter adds; None for the base model, without gradients.
        keep: Keep what was computed for the way back, instead of computing it again.
    """

    def __init__(
        self, model: Decoder, packed: Packed, view: LoraView | None, *, keep: bool
    ) -> None:
        self._model = model
        self._packed = packed
        self._view = view
        self._keep = keep
        self._trail: list[list[_Part]] = []
        self._last: Tensor | None = None
        self._hidden: Tensor | None = None

    def forward(self) -> Pieces[Tensor]:
        """Return the hidden states of the rows that count, cut off from the graph."""
        model, packed = self._model, self._packed
        x = model.embedded(packed.token_ids)
        has_gradient = False
        for stage in model.stages(packed.batch(model.config, self._view)):
            parts, outputs = [], []
            for rows in _runs(stage, len(x), model.config):
                source = x[rows].detach().requires_grad_(has_gradient)
                view = _seen(self._view, rows, model)
                parts.append(_Part(stage, source, view, keep=self._keep))
                outputs.append(parts[-1].forward())
                yield
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
            has_gradient = any(part.has_gradient for part in parts)
            self._trail.append(parts)
        self._last = x.detach().requires_grad_(has_gradient)
        self._hidden = model.normalised(self._last)[packed.rows]
        return self._hidden.detach()

    def backward(self, gradient: Float[Tensor, "N C"]) -> Pieces[None]:
        """Pass the gradient of what `forward` returned back to the adapter."""
        assert self._hidden is not None, "forward comes first"
        assert self._last is not None
        if not self._hidden.requires_grad:  # an adapter of the head alone
            return
        self._hidden.backward(gradient)
        flowing = self._last.grad
        while self._trail and flowing is not None:
            parts = self._trail.pop()
            sources: list[Tensor | None] = []
            lengths = [len(part.source) for part in parts]
            for part, piece in zip(parts, flowing.split(lengths), strict=True):
                sources.append(part.backward(piece))
                yield
            gradients = [source for source in sources if source is not None]
            if len(gradients) < len(parts):  # the first stage, or below the first adapted layer
                return
            flowing = gradients[0] if len(gradients) == 1 else torch.cat(gradients)


def backward_pieces(
    model: Decoder, view: LoraView, packed: Packed, objective: Objective, *, recompute: bool
) -> Pieces[Sums]:
    """Do what `backward` does, in pieces.

    Raises:
        NonFiniteTrainingError: A loss is no finite number; gradients are incomplete then.
    """
    layers = _Layers(model, packed, view, keep=not recompute)
    hidden = yield from layers.forward()
    base_hidden = None
    if objective.pull:
        base_hidden = yield from hidden_pieces(model, packed, None)
    head = HeadGradient(model, hidden, packed, view.select(packed.rows), objective)
    loss, pull, gradient = yield from head.pieces(base_hidden)
    yield from layers.backward(gradient)
    return Sums(loss=loss, pull=pull, weight=packed.weight, num_tokens=len(packed.token_ids))


def hidden_pieces(model: Decoder, packed: Packed, view: LoraView | None) -> Pieces[Tensor]:
    """Return the hidden states of the rows that count, without a gradient."""
    x = model.embedded(packed.token_ids)
    for stage in model.stages(packed.batch(model.config, view)):
        outputs = []
        for rows in _runs(stage, len(x), model.config):
            with torch.no_grad():
                outputs.append(stage.run(x[rows], _seen(view, rows, model)))
            yield
        x = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    with torch.no_grad():
        return model.normalised(x)[packed.rows]


def loss_pieces(
    model: Decoder, view: LoraView | None, samples: Sequence[Sample], max_tokens: int
) -> Pieces[list[float]]:
    """Return for each sample the mean loss of its tokens that count, in nats, in pieces.

    Raises:
        NonFiniteTrainingError: A loss is no finite number.
    """
    means: list[float] = []
    for pack in packs(samples, max_tokens):
        packed = collate(pack, model.config, model.device)
        hidden = yield from hidden_pieces(model, packed, view)
        head = None if view is None else view.select(packed.rows)
        losses = yield from sliced_losses(model, hidden, packed.targets, head)
        sums = torch.zeros(len(pack), dtype=torch.float64, device=model.device)
        sums.index_add_(0, packed.samples, losses.double())
        means += (sums / packed.samples.bincount(minlength=len(pack))).tolist()
    if not all(map(math.isfinite, means)):
        raise NonFiniteTrainingError("the loss of a sample")
    return means


def score_pieces(
    model: Decoder, view: LoraView | None, samples: Sequence[Sample], max_tokens: int
) -> Pieces[list[SampleScore]]:
    """Do what `sample_scores` does, in pieces.

    Raises:
        NonFiniteTrainingError: A loss is no finite number.
    """
    scores: list[SampleScore] = []
    for pack in packs(samples, max_tokens):
        packed = collate(pack, model.config, model.device)
        hidden = yield from hidden_pieces(model, packed, view)
        head = None if view is None else view.select(packed.rows)
        losses, right = yield from sliced_scores(model, hidden, packed.targets, head)
        sums = torch.zeros(2, len(pack), dtype=torch.float64, device=model.device)
        sums[0].index_add_(0, packed.samples, losses.double())
        sums[1].index_add_(0, packed.samples, right.double())
        counts = packed.samples.bincount(minlength=len(pack)).tolist()
        scores += [
            SampleScore(loss=loss / count, num_tokens=count, num_right=int(number))
            for loss, number, count in zip(*sums.tolist(), counts, strict=True)
        ]
    if not all(math.isfinite(score.loss) for score in scores):
        raise NonFiniteTrainingError("the loss of a sample")
    return scores


def _runs(stage: Stage, num_rows: int, config: ModelConfig) -> list[slice]:
    """Cut the rows of a stage, if they can be, into even runs of bounded work."""
    if not stage.is_by_row:
        return [slice(0, num_rows)]
    products = 3 * config.width * config.mlp_width  # of a row, in a dense layer
    most = max(_LEAST_ROWS, PIECE_PRODUCTS // products)
    step = -(-num_rows // -(-num_rows // most))
    return [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


def _seen(view: LoraView | None, rows: slice, model: Decoder) -> LoraView | None:
    """Return the view of rows that are computed by themselves."""
    if view is None:
        return None
    return view.select(torch.arange(rows.start, rows.stop, device=model.device))
