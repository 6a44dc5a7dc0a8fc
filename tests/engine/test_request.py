"""SamplingParams refuses nonsense, naming the field and the value."""

import dataclasses
import importlib.util
from types import ModuleType

import pytest

from hyprstream.engine import request
from hyprstream.engine.request import (
    MAX_LOGPROBS,
    MAX_SEED,
    MAX_STOP_STRINGS,
    Grammar,
    SamplingParams,
)
from hyprstream.errors import InvalidRequestError

_BOUNDS = {
    "max_tokens": [1, 2**40],
    "min_tokens": [0],
    "temperature": [0, 0.0, 1, 100.0],
    "top_k": [0, 2**40],
    "top_p": [1e-9, 1, 1.0],
    "min_p": [0, 1.0],
    "typical_p": [1e-9, 1.0],
    "repetition_penalty": [1e-3, 100],
    "presence_penalty": [-2.0, 2],
    "frequency_penalty": [-2, 2.0],
    "logit_bias": [{}, {0: 100}, {5: -100.0}],
    "seed": [None, 0, MAX_SEED],
    "stop": [(), ("a",) * MAX_STOP_STRINGS],
    "stop_token_ids": [(), (0, 1)],
    "ignore_eos": [True],
    "logprobs": [None, 0, MAX_LOGPROBS],
    "grammar": [None, Grammar(kind="json_object")],
}
_BEYOND = {
    "max_tokens": [0, -1, 2.5, True, "10"],
    "min_tokens": [-1, 0.0, None],
    "temperature": [-0.1, 100.1, float("nan"), float("inf"), "hot", None, True],
    "top_k": [-1, 1.5, None],
    "top_p": [0, 0.0, -0.1, 1.1, float("nan"), None],
    "min_p": [-0.1, 1.1, float("nan")],
    "typical_p": [0.0, 1.1, float("nan")],
    "repetition_penalty": [0, 100.1, -1.0, float("nan")],
    "presence_penalty": [-2.1, 2.1, float("nan")],
    "frequency_penalty": [-2.1, 2.1, float("nan")],
    "logit_bias": [[(0, 1.0)], {0: 100.1}, {0: float("nan")}, {0: "1"}, {-1: 1.0}, {"0": 1.0}],
    "seed": [-1, MAX_SEED + 1, 0.5, "7"],
    "stop": ["\n", ["a"], ("",), (1,), ("a",) * (MAX_STOP_STRINGS + 1)],
    "stop_token_ids": [[1], (-1,), (1.0,), ("1",)],
    "ignore_eos": ["yes", 1],
    "logprobs": [-1, MAX_LOGPROBS + 1, 1.0, True],
    "grammar": ["a", {"kind": "regex", "text": "a"}],
}


def _cases(values):
    return [(name, value) for name, choices in values.items() for value in choices]


def test_the_cases_cover_every_field():
    names = {field.name for field in dataclasses.fields(SamplingParams)}
    assert set(_BOUNDS) == set(_BEYOND) == names


@pytest.fixture(scope="module")
def unchecked() -> ModuleType:
    """The module as users have it: without the type checks that tests add to every call."""
    spec = importlib.util.spec_from_file_location("unchecked_request", request.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "value"), _cases(_BOUNDS))
def test_a_value_at_the_bound_is_taken(name, value):
    assert getattr(SamplingParams(**{name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), _cases(_BEYOND))
def test_a_value_beyond_the_bound_is_refused_with_a_next_step(unchecked, name, value):
    with pytest.raises(InvalidRequestError) as caught:
        unchecked.SamplingParams(**{name: value})
    assert caught.value.hint.startswith("Make it ")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"stop": "\n"}, r"stop is '\\n'"),
        ({"logit_bias": {7: 101}}, r"logit_bias\[7\] is 101"),
    ],
)
def test_the_message_names_the_field_and_the_value(unchecked, params, message):
    with pytest.raises(InvalidRequestError, match=message):
        unchecked.SamplingParams(**params)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"kind": "xml", "text": "a"}, "kind of a grammar is 'xml'"),
        ({"kind": ["regex"], "text": "a"}, "kind of a grammar is "),
        ({"kind": "regex", "text": 5}, "text of a grammar is 5"),
        ({"kind": "regex", "text": b"a"}, "text of a grammar is b'a'"),
    ],
)
def test_a_grammar_of_the_wrong_type_is_refused_by_name(unchecked, fields, problem):
    with pytest.raises(InvalidRequestError, match=problem):
        unchecked.Grammar(**fields)


def test_more_tokens_cannot_be_asked_for_than_are_allowed():
    with pytest.raises(InvalidRequestError, match="min_tokens is 3 and max_tokens is 2"):
        SamplingParams(min_tokens=3, max_tokens=2)


def test_exactly_as_many_tokens_can_be_asked_for_as_are_allowed():
    assert SamplingParams(min_tokens=2, max_tokens=2).min_tokens == 2


@pytest.mark.parametrize("params", [{"logit_bias": {8: 1.0}}, {"stop_token_ids": (8,)}])
def test_a_token_that_the_model_does_not_have_is_named(params):
    checked = SamplingParams(**params)
    checked.check_vocabulary(9)
    with pytest.raises(InvalidRequestError, match=f"{next(iter(params))} names token 8") as caught:
        checked.check_vocabulary(8)
    assert "from 0 to 7" in caught.value.hint
