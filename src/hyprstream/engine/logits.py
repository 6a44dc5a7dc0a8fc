"""Arithmetic on one row of scores: which tokens stay in play, and which of them is drawn.

Pure functions, one row at a time, so that no row can depend on its neighbours. A filter
takes scores (logits, up to a constant) and returns the indices that it keeps, ascending.
Scores of -inf have no probability and are never drawn; at least one score is finite.
Softmax is float32, sums of probabilities are float64.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyprstream.engine.request import SamplingParams, TokenLogprobs

# keep_top_p sorts so many tokens as they are; of more, it sorts about 1/4000 of the range of
# log probabilities.
_NUM_SORTED = 1024
_NUM_HALVINGS = 12


@dataclass(frozen=True, slots=True)
class Candidates:
    """The tokens still in play, by ascending id, with their scores."""

    token_ids: Int[Tensor, " kept"]
    scores: Float[Tensor, " kept"]

    def keep(self, indices: Int[Tensor, " fewer"]) -> "Candidates":
        """Return those at `indices` alone."""
        return Candidates(self.token_ids[indices], self.scores[indices])


def narrow(scores: Float[Tensor, " V"], params: SamplingParams) -> Candidates:
    """Apply min_p, top_k, top_p and typical_p, in this order, each to what the last one left."""
    kept = Candidates(torch.arange(scores.numel(), device=scores.device), scores)
    if params.min_p > 0:
        kept = kept.keep(keep_min_p(kept.scores, params.min_p))
    if params.top_k > 0:
        kept = kept.keep(keep_top_k(kept.scores, params.top_k))
    if params.top_p < 1:
        kept = kept.keep(keep_top_p(kept.scores, params.top_p))
    if params.typical_p < 1:
        kept = kept.keep(keep_typical(kept.scores, params.typical_p))
    return kept


def keep_min_p(scores: Float[Tensor, " V"], fraction: float) -> Int[Tensor, " kept"]:
    """Keep tokens at least `fraction` (above 0) as likely as the most likely one."""
    return (scores >= scores.amax() + math.log(fraction)).nonzero().squeeze(-1)


def keep_top_k(scores: Float[Tensor, " V"], k: int) -> Int[Tensor, " kept"]:
    """Keep the `k` most likely tokens and all that are as likely as the last of them."""
    least = scores.topk(min(k, scores.numel())).values[-1]
    return (scores >= least).nonzero().squeeze(-1)


def keep_top_p(scores: Float[Tensor, " V"], mass: float) -> Int[Tensor, " kept"]:
    """Keep the smallest set of most likely tokens whose probability reaches `mass`.

    At least one token stays. Of equally likely tokens at the border the lower ids stay.

    A token stays if those before it, most likely first, sum up to less than `mass`. Sorting
    a vocabulary is slow, so halving finds two probabilities with the border between them,
    and only the tokens between the two are sorted.
    """
    probs = scores.softmax(-1)
    high = float(probs.amax())
    # Tokens up to `low` hold less than 1 - mass even if all of them are: the border is above.
    # Halved again to stay clear of rounding.
    low = min(high, (1 - mass) / scores.numel()) / 2
    mass_above_high = 0.0
    for _ in range(_NUM_HALVINGS if len(scores) > _NUM_SORTED else 0):
        middle = math.sqrt(low * high)
        mass_above = float(torch.threshold(probs, middle, 0.0).sum(dtype=torch.float64))
        if mass_above < mass:
            high, mass_above_high = middle, mass_above
        else:
            low = middle
    kept = probs > high
    between = ((probs > low) & ~kept).nonzero().squeeze(-1)
    ranked, order = probs[between].sort(descending=True, stable=True)
    mass_before = mass_above_high + ranked.cumsum(-1, dtype=torch.float64) - ranked
    kept[between[order[mass_before < mass]]] = True
    return kept.nonzero().squeeze(-1)


def keep_typical(scores: Float[Tensor, " V"], mass: float) -> Int[Tensor, " kept"]:
    """Keep tokens whose surprise is nearest to the expected one, up to `mass` (arXiv:2202.00666).

    At least one token stays, and all that are as typical as the last one that does.
    """
    probs = scores.softmax(-1)
    entropy = torch.special.entr(probs).sum()
    distance = (-scores.log_softmax(-1) - entropy).abs()
    ranked, order = distance.sort(stable=True)
    num_below = int((probs[order].cumsum(-1, dtype=torch.float64) < mass).sum())
    last = min(num_below, len(ranked) - 1)  # by rounding, all of them may stay below
    near: Tensor = distance <= ranked[last]
    return near.nonzero().squeeze(-1)


def draw(scores: Float[Tensor, " kept"], uniform: float) -> int:
    """Draw an index with the probabilities of `scores`, from a uniform number in [0, 1).

    The first index at which the summed probability exceeds that number.
    """
    if len(scores) == 1:
        return 0
    summed = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
    # Sums end near 1, not at it. A uniform number below 1 stays below the end by rounding,
    # and right=True passes over tokens without probability.
    return int(torch.searchsorted(summed, summed[-1] * uniform, right=True))


def token_logprobs(logits: Float[Tensor, " V"], token_id: int, num_top: int) -> TokenLogprobs:
    """Report the log probability of `token_id` and the `num_top` most likely tokens."""
    logprobs = logits.log_softmax(-1, dtype=torch.float32)
    top: tuple[tuple[int, float], ...] = ()
    if num_top > 0:
        # topk breaks ties as it likes: take all of them, in order of id, and sort stably.
        token_ids = keep_top_k(logprobs, num_top)
        ranked, order = logprobs[token_ids].sort(descending=True, stable=True)
        ranked, order = ranked[:num_top], order[:num_top]
        top = tuple(zip(token_ids[order].tolist(), ranked.tolist(), strict=True))
    return TokenLogprobs(chosen=float(logprobs[token_id]), top=top)
