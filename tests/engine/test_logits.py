"""Each filter against transformers' processor of that name, and the draw against its formula."""

import math

import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from hyprstream.engine.logits import (
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    token_logprobs,
)

# Some rows are small enough to be sorted whole, others are halved first.
_ROWS = [(num_tokens, spread) for num_tokens in (2, 50, 5000) for spread in (0.0, 0.3, 3.0, 20.0)]


def _row(num_tokens, spread, *, dtype=torch.float32):
    generator = torch.Generator().manual_seed(num_tokens)
    row = torch.randn(num_tokens, generator=generator) * spread
    return row.to(dtype).float()  # bfloat16 makes many ties


def _theirs(warper, scores):
    """Indices that a transformers processor keeps, computed in float64."""
    processed = warper(torch.zeros(1, 1, dtype=torch.long), scores.double().unsqueeze(0))
    return processed[0].isfinite().nonzero().squeeze(-1).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_tokens", "spread"), _ROWS)
@pytest.mark.parametrize("k", [1, 7, 49, 6000])
def test_top_k_keeps_what_transformers_keeps(num_tokens, spread, dtype, k):
    scores = _row(num_tokens, spread, dtype=dtype)
    assert keep_top_k(scores, k).tolist() == _theirs(TopKLogitsWarper(k), scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_tokens", "spread"), _ROWS)
@pytest.mark.parametrize("fraction", [1e-6, 0.05, 0.6, 1.0])
def test_min_p_keeps_what_transformers_keeps(num_tokens, spread, dtype, fraction):
    scores = _row(num_tokens, spread, dtype=dtype)
    assert keep_min_p(scores, fraction).tolist() == _theirs(MinPLogitsWarper(fraction), scores)


@pytest.mark.parametrize(("num_tokens", "spread"), [row for row in _ROWS if row[1] > 0])
@pytest.mark.parametrize("mass", [1e-9, 0.05, 0.5, 0.9, 0.999])
def test_top_p_keeps_what_transformers_keeps(num_tokens, spread, mass):
    scores = _row(num_tokens, spread)
    assert keep_top_p(scores, mass).tolist() == _theirs(TopPLogitsWarper(mass), scores)


@pytest.mark.parametrize(("num_tokens", "spread"), _ROWS)
@pytest.mark.parametrize("mass", [1e-9, 0.33005, 0.61005, 0.99905])  # no multiples of 1/5000
def test_top_p_keeps_as_many_of_each_score_as_transformers_and_those_first(
    num_tokens, spread, mass
):
    scores = _row(num_tokens, spread, dtype=torch.bfloat16)
    kept = keep_top_p(scores, mass)
    theirs = _theirs(TopPLogitsWarper(mass), scores)
    assert scores[kept].sort().values.tolist() == scores[theirs].sort().values.tolist()
    border = (scores == scores[kept].amin()).nonzero().squeeze(-1)
    num_border_kept = int(torch.isin(border, kept).sum())
    assert torch.isin(border[:num_border_kept], kept).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_tokens", "spread"), _ROWS)
@pytest.mark.parametrize("mass", [1e-9, 0.2, 0.7, 0.95])
def test_typical_keeps_what_transformers_keeps(num_tokens, spread, dtype, mass):
    scores = _row(num_tokens, spread, dtype=dtype)
    assert keep_typical(scores, mass).tolist() == _theirs(TypicalLogitsWarper(mass), scores)


@pytest.mark.parametrize("num_tokens", [3, 3000])
@pytest.mark.parametrize(
    ("keep", "value"),
    [(keep_min_p, 0.5), (keep_top_k, 1), (keep_top_p, 0.5), (keep_typical, 0.5)],
)
def test_the_only_possible_token_stays(keep, value, num_tokens):
    scores = torch.full((num_tokens,), -math.inf)
    scores[2] = -7.0
    assert keep(scores, value).tolist() == [2]


def test_top_k_keeps_all_ties_at_the_border():
    assert keep_top_k(torch.tensor([1.0, 3.0, 1.0, 0.0, 1.0]), 2).tolist() == [0, 1, 2, 4]


def test_top_p_keeps_the_first_of_the_ties_at_the_border():
    assert keep_top_p(torch.tensor([0.0, 0.0, 0.0, 0.0]), 0.5).tolist() == [0, 1]


def test_top_p_that_is_reached_exactly_needs_no_further_token():
    assert keep_top_p(torch.tensor([0.5, 0.25, 0.25]).log(), 0.75).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("uniform", "index"),
    [(0.0, 1), (0.2499, 1), (0.25, 3), (0.7499, 3), (0.75, 4), (1 - 2**-53, 4)],
)
def test_a_draw_takes_the_first_index_whose_summed_probability_exceeds_the_number(uniform, index):
    # Indices 0, 2 and 5 have no probability and are never drawn, not even at the ends.
    probs = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    assert draw(probs.log(), uniform) == index


def test_logprobs_are_those_of_the_row_in_float32():
    logits = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.bfloat16)
    total = math.log(sum(math.exp(x) for x in logits.tolist()))
    found = token_logprobs(logits, 2, 3)
    assert found.chosen == pytest.approx(0.5 - total, abs=1e-6)
    assert [token_id for token_id, _ in found.top] == [3, 0, 2]
    assert [value for _, value in found.top] == pytest.approx(
        [3.0 - total, 1.0 - total, 0.5 - total], abs=1e-6
    )


def test_logprobs_of_no_top_tokens_report_the_chosen_one_alone():
    found = token_logprobs(torch.zeros(4), 1, 0)
    assert found.top == ()
    assert found.chosen == pytest.approx(-math.log(4))


def test_equal_logprobs_are_reported_by_lower_id():
    logits = torch.tensor([0.0, 2.0, 1.0, 2.0, 1.0, 1.0])
    found = token_logprobs(logits, 0, 4)
    assert [token_id for token_id, _ in found.top] == [1, 3, 2, 4]


def test_more_top_tokens_than_there_are_gives_all():
    found = token_logprobs(torch.tensor([0.0, 1.0]), 0, 5)
    assert [token_id for token_id, _ in found.top] == [1, 0]
