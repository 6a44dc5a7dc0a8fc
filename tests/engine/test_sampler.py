"""RowSampler: the order of its steps, its ends, its edges, its randomness."""

import math

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from hyprstream.engine.request import SamplingParams
from hyprstream.engine.sampler import RowSampler
from hyprstream.errors import InvalidRequestError, NonFiniteLogitsError

_EOS = 0


def _sampler(num_tokens, prompt_ids=(), **params):
    return RowSampler(SamplingParams(**params), prompt_ids, {_EOS}, num_tokens)


def _choose(logits, **params):
    return _sampler(len(logits), **params).next(torch.tensor(logits), room=9).token_id


def _generate(sampler, rows):
    return [sampler.next(row, room=9).token_id for row in rows]


@pytest.mark.parametrize("seed", range(20))
def test_the_steps_come_in_the_order_that_is_documented(seed):
    generator = torch.Generator().manual_seed(seed)
    row = torch.randn(300, generator=generator) * 4
    prompt = torch.randint(1, 300, (40,), generator=generator).tolist()
    bias = {5: 8.0, 6: -3.0, prompt[0]: 4.0, _EOS: 100.0}
    sampler = _sampler(
        300,
        prompt,
        min_tokens=1,
        logit_bias=bias,
        repetition_penalty=1.4,
        temperature=1.7,
        min_p=0.005,
        top_k=60,
        top_p=0.93,
        typical_p=0.9,
    )
    theirs = LogitsProcessorList(
        [
            MinNewTokensLengthLogitsProcessor(len(prompt), 1, _EOS),
            SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()]),
            RepetitionPenaltyLogitsProcessor(1.4),
            TemperatureLogitsWarper(1.7),
            MinPLogitsWarper(0.005),
            TopKLogitsWarper(60),
            TopPLogitsWarper(0.93),
            TypicalLogitsWarper(0.9),
        ]
    )
    expected = theirs(torch.tensor([prompt]), row.double().unsqueeze(0))[0]
    kept = sampler.candidates(row)
    assert kept.token_ids.tolist() == expected.isfinite().nonzero().squeeze(-1).tolist()
    torch.testing.assert_close(
        kept.scores.softmax(-1).double(), expected[kept.token_ids].softmax(-1), atol=1e-6, rtol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_greedy_takes_the_largest_logit_of_every_type(dtype):
    logits = torch.tensor([0.5, -1.0, 2.0, 1.0], dtype=dtype)
    assert _sampler(4, temperature=0).next(logits, room=9).token_id == 2


@pytest.mark.parametrize("num_tokens", [4, 1000, 49152])
def test_greedy_takes_the_lowest_id_of_equals(num_tokens):
    assert _choose([0.0] * (num_tokens - 2) + [1.0, 1.0], temperature=0) == num_tokens - 2


def test_a_tiny_temperature_is_greedy():
    # Half of the temperature apart: drawing would take either.
    logits = [0.0, 5e-7]
    assert {_choose(logits, temperature=1e-6, seed=seed) for seed in range(40)} == {1}


def test_a_small_temperature_does_not_overflow():
    logits = [-3e38, 3e38, 0.0, 2.9e38]
    assert {_choose(logits, temperature=1e-4, seed=seed) for seed in range(20)} == {1}


def test_a_small_temperature_still_draws():
    assert {_choose([0.0, 5e-5], temperature=1e-4, seed=seed) for seed in range(40)} == {0, 1}


def test_a_high_temperature_levels_the_tokens():
    kept = _sampler(2, temperature=100.0).candidates(torch.tensor([0.0, 1.0]))
    assert kept.scores.softmax(-1).tolist() == pytest.approx([0.4975, 0.5025], abs=1e-4)


def test_min_p_sees_the_distribution_after_temperature():
    row = torch.tensor([0.0, -2.0])  # a ratio of 0.135; of 0.368 at temperature 2
    assert len(_sampler(2, min_p=0.3).candidates(row).token_ids) == 1
    assert len(_sampler(2, min_p=0.3, temperature=2.0).candidates(row).token_ids) == 2


def test_top_k_above_the_vocabulary_keeps_all():
    assert len(_sampler(3, top_k=10**6).candidates(torch.zeros(3)).token_ids) == 3


def test_top_p_next_to_nothing_leaves_the_most_likely_token():
    assert {_choose([0.1, 0.0, 0.2], top_p=1e-9, seed=seed) for seed in range(20)} == {2}


def test_a_token_without_probability_is_never_chosen():
    logits = [-math.inf, -math.inf, -5.0, -math.inf]
    assert {_choose(logits, seed=seed) for seed in range(20)} == {2}


def test_repetition_divides_positive_and_multiplies_negative_logits():
    sampler = _sampler(4, [1, 2, 2], repetition_penalty=2.0)
    scores = sampler.candidates(torch.tensor([3.0, 3.0, -3.0, 0.0])).scores
    assert (scores - scores[0]).tolist() == pytest.approx([0.0, -1.5, -9.0, -3.0])


def test_frequency_and_presence_count_the_answer_and_not_the_prompt():
    sampler = _sampler(4, [3, 3], temperature=0, frequency_penalty=0.5, presence_penalty=0.25)
    forced = torch.eye(4) * 50
    _generate(sampler, [forced[1], forced[1], forced[2]])
    same = _sampler(4, [3, 3], frequency_penalty=0.5, presence_penalty=0.25)
    _generate(same, [forced[1], forced[1], forced[2]])
    scores = same.candidates(torch.zeros(4)).scores
    assert (scores - scores[0]).tolist() == pytest.approx([0.0, -1.25, -0.75, 0.0])


def test_greedy_feels_the_penalties():
    sampler = _sampler(3, temperature=0, frequency_penalty=1.0)
    row = torch.tensor([0.0, 1.5, 1.0])
    assert _generate(sampler, [row] * 6) == [1, 2, 1, 0, 2, 1]


def test_a_bias_of_100_decides_and_of_minus_100_excludes():
    assert _choose([0.0, 9.0, 0.0], logit_bias={2: 100}) == 2
    chosen = {_choose([0.0, 9.0, 0.0], logit_bias={1: -100}, seed=seed) for seed in range(40)}
    assert chosen == {0, 2}


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_no_end_token_comes_before_min_tokens(ignore_eos):
    sampler = _sampler(
        4,
        temperature=0,
        min_tokens=2,
        stop_token_ids=(3,),
        logit_bias={_EOS: 100},
        ignore_eos=ignore_eos,
    )
    rows = torch.tensor([[9.0, 0.0, 1.0, 8.0]]).expand(3, 4)
    assert _generate(sampler, rows) == [2, 2, _EOS]


@pytest.mark.parametrize("token_id", [_EOS, 2])
def test_an_end_or_stop_token_ends_the_answer_and_is_no_text(token_id):
    sampler = _sampler(4, temperature=0, stop_token_ids=(2,), max_tokens=1)
    event = sampler.next(torch.eye(4)[token_id], room=0)  # stopping goes before running out
    assert (event.token_id, event.finish, event.is_stop) == (token_id, "stop", True)


def test_an_ignored_end_token_is_an_ordinary_token():
    event = _sampler(4, temperature=0, ignore_eos=True).next(torch.eye(4)[_EOS], room=1)
    assert (event.token_id, event.finish, event.is_stop) == (_EOS, None, False)


def test_an_ignored_end_token_still_ends_as_a_stop_token():
    sampler = _sampler(4, temperature=0, ignore_eos=True, stop_token_ids=(_EOS,))
    assert sampler.next(torch.eye(4)[_EOS], room=1).finish == "stop"


def test_the_answer_ends_at_max_tokens():
    sampler = _sampler(4, temperature=0, max_tokens=3)
    events = [sampler.next(torch.eye(4)[1], room=9) for _ in range(3)]
    assert [event.finish for event in events] == [None, None, "length"]
    assert sampler.num_generated == 3


def test_the_answer_ends_with_the_context():
    sampler = _sampler(4, temperature=0)
    events = [sampler.next(torch.eye(4)[1], room=room) for room in (1, 0)]
    assert [event.finish for event in events] == [None, "length"]


def test_logprobs_ignore_everything_that_was_done_to_the_row():
    row = torch.tensor([1.0, 2.0, 3.0])
    sampler = _sampler(
        3, [2], temperature=0.5, top_k=1, logit_bias={0: 50}, repetition_penalty=2.0, logprobs=1
    )
    found = sampler.next(row, room=9)
    expected = row.log_softmax(-1).tolist()
    assert found.token_id == 0
    assert found.logprobs is not None
    assert found.logprobs.chosen == pytest.approx(expected[0])
    assert found.logprobs.top == ((2, pytest.approx(expected[2])),)


def test_the_row_is_left_as_it_was():
    row = torch.tensor([1.0, 2.0, 3.0])
    sampler = _sampler(3, [2], min_tokens=1, logit_bias={1: 5.0}, repetition_penalty=2.0, top_p=0.5)
    sampler.next(row, room=9)
    assert row.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("params", [{"temperature": 0}, {}, {"top_p": 0.9, "logit_bias": {1: 1}}])
@pytest.mark.parametrize(
    "logits", [[0.0, math.nan, 1.0], [0.0, math.inf, 1.0], [-math.inf, -math.inf, -math.inf]]
)
def test_a_row_without_a_finite_maximum_is_an_error(logits, params):
    with pytest.raises(NonFiniteLogitsError, match=r"the model's largest logit is (nan|inf|-inf)"):
        _choose(logits, **params)


@pytest.mark.parametrize("params", [{"logit_bias": {4: 1.0}}, {"stop_token_ids": (4,)}])
def test_a_token_outside_the_vocabulary_is_refused_by_id(params):
    with pytest.raises(InvalidRequestError, match="names token 4"):
        _sampler(4, **params)


def test_min_tokens_with_nothing_but_stop_tokens_is_refused():
    with pytest.raises(InvalidRequestError, match="every token is a stop token"):
        _sampler(3, min_tokens=1, stop_token_ids=(1, 2))


def test_an_end_token_that_the_model_cannot_produce_does_no_harm():
    sampler = RowSampler(SamplingParams(min_tokens=1, temperature=0), [], {7}, 2)
    assert sampler.next(torch.tensor([0.0, 1.0]), room=9).token_id == 1


def test_the_same_seed_gives_the_same_tokens():
    rows = torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
    assert _generate(_sampler(50, seed=7), rows) == _generate(_sampler(50, seed=7), rows)


def test_seeds_that_differ_in_their_high_bits_alone_differ():
    rows = torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
    assert _generate(_sampler(50, seed=7), rows) != _generate(_sampler(50, seed=7 + 2**40), rows)


def test_without_a_seed_the_one_in_use_can_be_asked_for_and_repeats_the_answer():
    rows = torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
    fresh, other = _sampler(50), _sampler(50)
    assert fresh.seed != other.seed
    assert _generate(fresh, rows) == _generate(_sampler(50, seed=fresh.seed), rows)


def test_a_sequence_does_not_feel_its_neighbours():
    rows = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    alone = [_generate(_sampler(50, seed=seed, top_p=0.9), rows) for seed in (1, 2)]
    both = [_sampler(50, seed=seed, top_p=0.9) for seed in (1, 2)]
    together = [[sampler.next(row, room=9).token_id for sampler in both] for row in rows]
    assert list(map(list, zip(*together, strict=True))) == alone


def test_tokens_are_drawn_as_often_as_they_are_likely():
    num_draws = 10_000
    row = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, -2.0, 1.5, 0.25])
    sampler = _sampler(8, temperature=1.5, top_k=7, seed=1)
    kept = _sampler(8, temperature=1.5, top_k=7).candidates(row)
    drawn = torch.bincount(torch.tensor(_generate(sampler, [row] * num_draws)), minlength=8)
    assert drawn[5] == 0
    expected = (row[kept.token_ids] / 1.5).softmax(-1) * num_draws
    chi_square = float(((drawn[kept.token_ids] - expected) ** 2 / expected).sum())
    assert chi_square < 22.5  # 6 degrees of freedom: exceeded once in a thousand seeds
