"""Learning from preferences: answers that are better than others, and answers that were rated.

Pairs are learnt by DPO (arXiv:2305.18290). Rated answers without a counterpart are learnt by
the unpaired losses of APO-zero (arXiv:2408.06266), which are those of KTO (arXiv:2402.01306)
with a reference point of zero. Both compare the adapter with a reference: how likely the same
answers were before, which is measured once and kept in the pairs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from hyprstream.errors import NonFiniteTrainingError
from hyprstream.models.decoder import Decoder
from hyprstream.models.forward import LoraView
from hyprstream.train.backward import Objective, Sums, backward_from
from hyprstream.train.collate import Packed, collate
from hyprstream.train.loss import cross_entropy, row_chunks
from hyprstream.train.sample import Judged, Pair, Sample

Choice = Pair | Judged
_Choice = TypeVar("_Choice", Pair, Judged)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What is thought of one choice.

    Attributes:
        loss: Its loss, in nats for pairs; between 0 and 1 for rated answers.
        slopes: The derivative of the loss for the log probability of each of its samples.
        is_right: The better answer has become likelier by more, or a rated one has moved to
            where it should.
    """

    loss: float
    slopes: tuple[float, ...]
    is_right: bool


def samples_of(choices: Sequence[Choice]) -> list[Sample]:
    """Return the samples of choices, in order: of pairs the chosen one first."""
    return [sample for choice in choices for sample in choice.samples]


def outcomes(
    choices: Sequence[Choice], log_probabilities: Sequence[float], beta: float
) -> list[Outcome]:
    """Judge an adapter by how likely it finds the samples of choices.

    Args:
        choices: With their references.
        log_probabilities: One for each of `samples_of(choices)`, in nats.
        beta: How much a change of one nat counts.
    """
    coming = iter(log_probabilities)
    return [
        _pair(choice, next(coming), next(coming), beta)
        if isinstance(choice, Pair)
        else _judged(choice, next(coming), beta)
        for choice in choices
    ]


def referenced(choices: Sequence[_Choice], log_probabilities: Sequence[float]) -> list[_Choice]:
    """Return the choices with what the reference makes of their samples."""
    coming = iter(log_probabilities)
    return [choice.against(*islice(coming, len(choice.samples))) for choice in choices]


def prefer(
    model: Decoder,
    view: LoraView,
    choices: Sequence[Choice],
    beta: float,
    *,
    recompute: bool = False,
) -> Sums:
    """Add the gradient of the sum over choices to what the view has collected.

    The samples are passed forward once. Their log probabilities decide how much each row
    counts, and the rows are passed back with these weights: the same gradient, in the memory
    of `backward`.

    Raises:
        NonFiniteTrainingError: A loss is no finite number; gradients are incomplete then.
    """
    samples = samples_of(choices)
    packed = collate(samples, model.config, model.device)
    hidden = model.forward(packed.batch(model.config, view, recompute=recompute))[packed.rows]
    judged = outcomes(choices, _log_probabilities(model, view, packed, hidden), beta)
    weights = [choice.weight for choice in choices]
    loss = math.fsum(w * outcome.loss for w, outcome in zip(weights, judged, strict=True))
    if not math.isfinite(loss):
        raise NonFiniteTrainingError("the loss")
    # A log probability is minus the sum of the losses of rows.
    slopes = [-w * s for w, outcome in zip(weights, judged, strict=True) for s in outcome.slopes]
    counts = torch.tensor(slopes, dtype=torch.float32, device=model.device)[packed.samples]
    weighted = replace(packed, weights=counts)
    backward_from(model, view, weighted, hidden, Objective())
    return Sums(loss=loss, weight=math.fsum(weights), num_tokens=len(packed.token_ids))


@torch.no_grad()
def _log_probabilities(
    model: Decoder, view: LoraView, packed: Packed, hidden: Float[Tensor, "N C"]
) -> list[float]:
    sums = torch.zeros(len(packed.lengths), dtype=torch.float64, device=model.device)
    for chunk in row_chunks(len(packed.rows), model.config.vocab_size):
        head = view.select(packed.rows[chunk])
        losses = cross_entropy(model, hidden[chunk], packed.targets[chunk], head)
        sums.index_add_(0, packed.samples[chunk], -losses.double())
    values: list[float] = sums.tolist()
    return values


def _pair(pair: Pair, chosen: float, rejected: float, beta: float) -> Outcome:
    margin = beta * (chosen - rejected - pair.reference)
    slope = beta * _sigmoid(-margin)
    return Outcome(loss=_softplus(-margin), slopes=(-slope, slope), is_right=margin > 0)


def _judged(judged: Judged, log_probability: float, beta: float) -> Outcome:
    change = beta * (log_probability - judged.reference)
    wanted = change if judged.liked else -change
    slope = beta * _sigmoid(change) * _sigmoid(-change)
    return Outcome(
        loss=_sigmoid(-wanted),
        slopes=(-slope if judged.liked else slope,),
        is_right=wanted > 0,
    )


def _sigmoid(x: float) -> float:
    if x < 0:
        grown = math.exp(max(x, -700.0))  # 1e-304: below it there is no float
        return grown / (1 + grown)
    return 1 / (1 + math.exp(-min(x, 700.0)))


def _softplus(x: float) -> float:
    """Return log(1 + e^x), which is -log sigmoid(-x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
