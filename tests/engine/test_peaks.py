"""Greedy rows: their peaks are found at once, and what follows is what `next` does."""

import math

import pytest
import torch

from hyprstream.engine.logits import peaks
from hyprstream.engine.request import SamplingParams
from hyprstream.engine.sampler import RowSampler

GREEDY = SamplingParams(temperature=0, max_tokens=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 2, 97, 256, 512, 49_152, 1_280])
def test_peaks_are_the_first_largest_scores(num_tokens, dtype):
    generator = torch.Generator().manual_seed(num_tokens)
    scores = torch.randn(5, num_tokens, generator=generator).to(dtype)
    scores[1] = 2.0
    scores[2, num_tokens // 2 :] = 9.0
    expected = scores.max(dim=1)
    assert peaks(scores) == (expected.values.tolist(), expected.indices.tolist())


@pytest.mark.parametrize("place", [0, 300, 511])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_the_peak(value, place):
    scores = torch.zeros(2, 512)
    scores[1, place] = value
    values, token_ids = peaks(scores)
    assert values[0] == 0.0
    assert not math.isfinite(values[1])
    assert token_ids == [0, place]


def test_a_peak_that_is_taken_is_what_next_takes():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 40, generator=generator)
    one, other = (RowSampler(GREEDY, [1], [int(rows[1].argmax())], 40) for _ in range(2))
    for row in rows:
        assert one.takes_peak
        _, (token_id,) = peaks(row[None])
        assert one.take_peak(token_id, room=5) == other.next(row, room=5)
    assert one.num_generated == 3


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0, logprobs=0),
        SamplingParams(temperature=0, logit_bias={1: 1.0}),
        SamplingParams(temperature=0, repetition_penalty=1.1),
        SamplingParams(temperature=0, min_tokens=1),
    ],
)
def test_where_more_than_the_peak_matters_it_is_not_taken(params):
    sampler = RowSampler(params, [1], [2], 40)
    assert not sampler.takes_peak
    with pytest.raises(AssertionError, match="not all that matters"):
        sampler.take_peak(3, room=5)
