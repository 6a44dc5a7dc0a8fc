"""Grammars against brute force, and schemas that nobody chose."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.engine.grammar import GrammarCompiler
from hyprstream.engine.request import Grammar
from hyprstream.errors import InvalidRequestError
from tests.engine.grammars import EOS, TINY, answer, spelled, tiny_compiler

_WORD = st.text("abc", min_size=1, max_size=5)
_TOKENS = st.lists(st.text("abc", max_size=3), max_size=8).map(
    lambda more: [b"a", b"b", b"c", *(text.encode() for text in more)]
)


@settings(max_examples=15, deadline=None)
@given(st.sets(_WORD, min_size=1, max_size=5), _TOKENS, st.data())
def test_what_may_follow_equals_brute_force(words, tokens, data):
    compiler = GrammarCompiler([*tokens, b"c"], special_ids={len(tokens)})
    constraint = compiler.compile(Grammar(kind="regex", text="|".join(sorted(words))))
    language = {word.encode() for word in words}
    prefix = b""
    while True:
        rest = {word.removeprefix(prefix) for word in language if word.startswith(prefix)}
        fitting = [
            i for i, token in enumerate(tokens) if token and any(w.startswith(token) for w in rest)
        ]
        assert constraint.can_end == (b"" in rest)
        assert constraint.is_finished == (rest == {b""})
        if constraint.is_finished:
            break
        assert (~constraint.forbidden()).nonzero().squeeze(-1).tolist() == fitting
        chosen = data.draw(st.sampled_from(fitting))
        constraint.accept(chosen)
        prefix += tokens[chosen]


def _objects(values):
    return st.dictionaries(st.text("xyz", min_size=1, max_size=3), values, max_size=3).map(
        lambda properties: {
            "type": "object",
            "properties": properties,
            "required": list(properties)[::2],
            "additionalProperties": False,
        }
    )


def _arrays(values):
    return st.tuples(values, st.integers(0, 2), st.integers(0, 2)).map(
        lambda drawn: {
            "type": "array",
            "items": drawn[0],
            "minItems": drawn[1],
            "maxItems": drawn[1] + drawn[2],
        }
    )


_LEAVES = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}]),
    st.integers(-50, 50).map(lambda low: {"type": "integer", "minimum": low, "maximum": low + 20}),
    st.integers(0, 5).map(lambda low: {"type": "string", "minLength": low, "maxLength": low + 3}),
    st.lists(st.text('ab"\\/\n', max_size=3) | st.integers() | st.none(), min_size=1).map(
        lambda values: {"enum": values}
    ),
)
_SCHEMAS = st.recursive(
    _LEAVES,
    lambda inner: (
        _objects(inner)
        | _arrays(inner)
        | st.lists(inner, min_size=1, max_size=3).map(lambda of: {"anyOf": of})
    ),
    max_leaves=6,
)


def _fits(value, schema):  # noqa: PLR0911 - a table
    """Validate, once more and by hand, what the strategies above can ask for."""
    match schema:
        case {"anyOf": of}:
            return any(_fits(value, choice) for choice in of)
        case {"enum": values}:
            return any(type(value) is type(choice) and value == choice for choice in values)
        case {"type": "object", "properties": properties, "required": required}:
            return (
                isinstance(value, dict)
                and set(required) <= set(value) <= set(properties)
                and all(_fits(item, properties[name]) for name, item in value.items())
            )
        case {"type": "array", "items": items, "minItems": low, "maxItems": high}:
            return (
                isinstance(value, list)
                and low <= len(value) <= high
                and all(_fits(item, items) for item in value)
            )
        case {"type": "integer", "minimum": low, "maximum": high}:
            return type(value) is int and low <= value <= high
        case {"type": "string", "minLength": low, "maxLength": high}:
            return isinstance(value, str) and low <= len(value) <= high
        case {"type": "boolean"}:
            return isinstance(value, bool)
        case _:
            return schema == {"type": "null"} and value is None


def _is_exact(schema):
    """Whether all integers to choose from are those that a double tells apart."""
    match schema:
        case {"enum": values}:
            return all(abs(value) <= 2**53 for value in values if isinstance(value, int))
        case {"anyOf": parts} | {"properties": dict() as parts}:
            return all(map(_is_exact, parts.values() if isinstance(parts, dict) else parts))
        case {"items": items}:
            return _is_exact(items)
    return True


@pytest.fixture(scope="module")
def compiler():
    return tiny_compiler()


@settings(max_examples=20, deadline=None)
@given(schema=_SCHEMAS, seed=st.integers(0, 2**31))
def test_any_answer_fits_its_schema(compiler, schema, seed):
    grammar = Grammar(kind="json_schema", text=json.dumps(schema))
    if not _is_exact(schema):
        with pytest.raises(InvalidRequestError, match="are not told from their neighbours"):
            compiler.compile(grammar)
        return
    fewer_blanks = {i: -5.0 for i, token in enumerate(TINY) if token and not token.strip()}
    events = answer(compiler, grammar, favour=fewer_blanks | {EOS: 5.0}, logits_seed=seed)
    assert events[-1].finish == "stop"
    assert _fits(json.loads(spelled(events)), schema)
