"""Greedy rows: their peaks are found at once, and what follows is what `next` does."""

import math

import pytest
import torch

from hyprstream.engine.peaks import PeakFinder
from hyprstream.engine.request import SamplingParams
from hyprstream.engine.sampler import RowSampler
from hyprstream.kernels.native import open_kernels

GREEDY = SamplingParams(temperature=0, max_tokens=3)


@pytest.fixture(params=["torch", "native"])
def find(request):
    if request.param == "torch":
        return PeakFinder(None).find
    kernels = open_kernels()
    if kernels is None:
        pytest.skip("the native kernels are not compiled: is there a C++ compiler?")
    return PeakFinder(kernels).find


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_tokens", [1, 2, 63, 64, 97, 1024, 1025, 2048 + 65, 49_152])
def test_peaks_are_the_first_largest_scores(num_tokens, dtype, find):
    generator = torch.Generator().manual_seed(num_tokens)
    scores = torch.randn(7, num_tokens, generator=generator).to(dtype)
    scores[1] = 2.0
    scores[2, num_tokens // 2 :] = 9.0
    scores[3] -= 100
    scores[4] = -math.inf
    scores[5, : num_tokens // 2] = -math.inf
    scores[6] = torch.where(scores[6] < 0, -0.0, 0.0)
    expected = scores.max(dim=1)
    assert find(scores) == list(
        zip(expected.values.tolist(), expected.indices.tolist(), strict=True)
    )


@pytest.mark.parametrize("place", [0, 300, 1023, 1500, 1555])
@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_score_that_is_no_number_is_the_peak(value, place, dtype, find):
    scores = torch.randn(2, 1556).to(dtype)
    scores[1, place] = value
    (best, token_id), (strange, strange_id) = find(scores)
    assert (best, token_id) == (float(scores[0].max()), int(scores[0].argmax()))
    assert not math.isfinite(strange)
    assert strange_id == place


def test_of_several_that_are_no_number_the_first_is_the_peak(find):
    scores = torch.zeros(1, 3000)
    scores[0, [100, 2000]] = math.inf
    assert find(scores) == [(math.inf, 100)]
    scores[0, [1500, 2500]] = math.nan
    ((value, place),) = find(scores)
    assert math.isnan(value)
    assert place == 1500


def test_a_peak_that_is_taken_is_what_next_takes():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 40, generator=generator)
    one, other = (RowSampler(GREEDY, [1], [int(rows[1].argmax())], 40) for _ in range(2))
    for row in rows:
        assert one.takes_peak
        ((_, token_id),) = PeakFinder.open().find(row[None])
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
