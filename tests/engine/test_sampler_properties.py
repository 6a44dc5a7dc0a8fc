"""RowSampler against the same rules written down once more, in plain Python and float64."""

import math
import random
from collections import Counter

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hyprstream.engine.request import SamplingParams
from hyprstream.engine.sampler import RowSampler

# Binary fractions, of logits and penalties, are exact in single precision: scores are equal or
# clearly different. Halves collide often.
_LOGIT = st.integers(-12, 12).map(lambda x: x / 2) | st.integers(-9216, 9216).map(
    lambda x: x / 1024
)
_PARAMS = {
    "min_tokens": st.integers(0, 2),
    "temperature": st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    "top_k": st.integers(0, 5),
    "top_p": st.just(1.0) | st.floats(0.05, 1.0),
    "min_p": st.just(0.0) | st.floats(0.01, 1.0),
    "typical_p": st.just(1.0) | st.floats(0.05, 1.0),
    "repetition_penalty": st.sampled_from([1.0, 2.0, 0.5]),
    "presence_penalty": st.sampled_from([0.0, 0.5, -0.5]),
    "frequency_penalty": st.sampled_from([0.0, 0.25, -0.25]),
    "seed": st.integers(0, 2**63 - 1),
    "ignore_eos": st.booleans(),
}


@st.composite
def _runs(draw):
    """Draw parameters, a prompt, an end token and some rows of logits."""
    num_tokens = draw(st.integers(2, 9))
    token = st.integers(0, num_tokens - 1)
    params = draw(
        st.fixed_dictionaries(
            {
                **_PARAMS,
                "logit_bias": st.dictionaries(token, st.sampled_from([-100.0, -1.5, 2.0])),
            }
        )
    )
    rows = draw(
        st.lists(st.lists(_LOGIT, min_size=num_tokens, max_size=num_tokens), min_size=1, max_size=4)
    )
    return params, draw(st.lists(token, max_size=4)), draw(token), rows


def _clear(a: float, b: float) -> None:
    """Skip cases that rounding could decide: only exact ties and clear differences remain."""
    assume(a == b or abs(a - b) > 1e-4)


def _adjusted(logits, params, prompt, answer, eos):
    scores = list(logits)
    if len(answer) < params.min_tokens:
        scores[eos] = -math.inf
    for token, bias in params.logit_bias.items():
        scores[token] += bias
    for token in {*prompt, *answer}:
        penalty = params.repetition_penalty
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    for token, count in Counter(answer).items():
        scores[token] -= params.frequency_penalty * count + params.presence_penalty
    return scores


def _probs(scores):
    peak = max(scores.values())
    weights = {token: math.exp(score - peak) for token, score in scores.items()}
    return {token: weight / sum(weights.values()) for token, weight in weights.items()}


def _without_unlikely(scores, fraction):
    least = max(scores.values()) + math.log(fraction)
    for score in scores.values():
        _clear(score, least)
    return {token: score for token, score in scores.items() if score >= least}


def _without_beyond_top_k(scores, k):
    least = sorted(scores.values(), reverse=True)[:k][-1]
    for score in scores.values():
        _clear(score, least)
    return {token: score for token, score in scores.items() if score >= least}


def _without_beyond_top_p(scores, mass):
    kept, total = {}, 0.0
    for token, prob in sorted(_probs(scores).items(), key=lambda item: (-item[1], item[0])):
        assume(abs(total - mass) > 1e-5)
        if total >= mass:
            break
        kept[token] = scores[token]
        total += prob
    return dict(sorted(kept.items()))


def _without_untypical(scores, mass):
    probs = _probs(scores)
    entropy = -sum(prob * math.log(prob) for prob in probs.values() if prob > 0)
    distance = {
        token: abs(-math.log(prob) - entropy) if prob > 0 else math.inf
        for token, prob in probs.items()
    }
    total, last = 0.0, 0.0
    for token in sorted(distance, key=lambda token: distance[token]):
        last = distance[token]
        total += probs[token]
        assume(abs(total - mass) > 1e-5)
        if total >= mass:
            break
    for value in distance.values():
        _clear(value, last)
    return {token: score for token, score in scores.items() if distance[token] <= last}


def _distribution(scores, params):
    """Token -> probability, of the tokens that may come."""
    if params.temperature == 0:
        best = max(scores)
        for score in scores:
            _clear(score, best)
        return {scores.index(best): 1.0}
    kept = {token: score / params.temperature for token, score in enumerate(scores)}
    if params.min_p > 0:
        kept = _without_unlikely(kept, params.min_p)
    if params.top_k > 0:
        kept = _without_beyond_top_k(kept, params.top_k)
    if params.top_p < 1:
        kept = _without_beyond_top_p(kept, params.top_p)
    if params.typical_p < 1:
        kept = _without_untypical(kept, params.typical_p)
    return {token: prob for token, prob in _probs(kept).items() if prob > 0}


def _drawn(distribution, uniform):
    total = 0.0
    for token, prob in distribution.items():
        total += prob
        assume(len(distribution) == 1 or abs(total - uniform) > 1e-5)
        if total > uniform:
            return token
    raise AssertionError("probabilities do not sum up to 1")


@settings(deadline=None, max_examples=300)
@given(run=_runs())
def test_sampling_equals_brute_force(run):
    fields, prompt, eos, rows = run
    params = SamplingParams(**fields)
    sampler = RowSampler(params, prompt, {eos}, len(rows[0]))
    uniforms = random.Random(params.seed)  # noqa: S311
    answer: list[int] = []
    for row in rows:
        logits = torch.tensor(row)
        expected = _distribution(_adjusted(row, params, prompt, answer, eos), params)
        kept = sampler.candidates(logits)
        probs = dict(zip(kept.token_ids.tolist(), kept.scores.softmax(-1).tolist(), strict=True))
        found = {token: prob for token, prob in probs.items() if prob > 1e-30}
        assert found.keys() == {token for token, prob in expected.items() if prob > 1e-30}
        for token, prob in found.items():
            assert math.isclose(prob, expected[token], rel_tol=1e-3, abs_tol=1e-6)
        event = sampler.next(logits, room=9)
        assert event.token_id == _drawn(expected, uniforms.random())
        is_end = event.token_id == eos and not params.ignore_eos
        assert (event.finish, event.is_stop) == (("stop", True) if is_end else (None, False))
        answer.append(event.token_id)
