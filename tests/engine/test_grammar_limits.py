"""Grammars that want to harm: each is refused, or followed, soon and without a crash."""

import contextlib
import json
import time

import pytest

from hyprstream.engine.request import Grammar
from hyprstream.errors import InvalidRequestError
from tests.engine.grammars import answer, tiny_compiler

_SOON = 20.0  # seconds of a busy machine; alone it takes less than three


def _chain(link):
    return "start: r0\n" + "\n".join(link.format(i, i + 1) for i in range(3000)) + '\nr3000: "a"'


def _refs(count, definition):
    chain = {f"a{i}": json.loads(definition % (i + 1)) for i in range(count)}
    return json.dumps({"$defs": chain | {f"a{count}": {}}, "$ref": "#/$defs/a0"})


def _alternatives(depth):
    value: dict[str, object] = {"type": "string"}
    for _ in range(depth):
        value = {"anyOf": [value, value]}
    return json.dumps(value)


REFUSED = {
    "deep regex": ("regex", "(" * 20_000 + "a" + ")" * 20_000),
    "wide regex": ("regex", "[a-z]?" * 4000),
    "unclosed regex": ("regex", "(a"),
    "lookahead": ("regex", "(?=a)b"),
    "long chain of rules": ("lark", _chain("r{}: r{}")),
    "doubling terminals": ("lark", _chain("r{0}: r{1} r{1}").upper().replace("START: ", "start: ")),
    "deep parentheses": ("lark", "start: " + "(" * 30_000 + '"a"' + ")" * 30_000),
    "circle of rules": ("lark", "start: a\na: b\nb: a"),
    "circle of terminals": ("lark", 'start: A\nA: "a" A'),
    "unknown rule": ("lark", "start: x"),
    "unknown token": ("lark", "start: <|nope|>"),
    "token outside of the vocabulary": ("lark", "start: <[4000000000]>"),
    "unclosed string": ("lark", 'start: "a'),
    "JSON notation of llguidance": ("lark", '{"grammars": [{"lark_grammar": "start: /a/"}]}'),
    "deep schema": ("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000),
    "long chain of references": ("json_schema", _refs(1500, '{"$ref": "#/$defs/a%d"}')),
    "long chain of arrays": ("json_schema", _refs(1000, '{"items": {"$ref": "#/$defs/a%d"}}')),
    "circle of references": ("json_schema", '{"$ref": "#"}'),
    "remote reference": ("json_schema", '{"$ref": "http://127.0.0.1:9/schema"}'),
    "no JSON": ("json_schema", "{"),
    "no number": ("json_schema", '{"const": NaN}'),
    "long number": ("json_schema", '{"const": ' + "1" * 5000 + "}"),
    "lone surrogate": ("json_schema", '{"const": "\\ud800"}'),
    "no schema": ("json_schema", "[]"),
    "nothing fits": ("json_schema", "false"),
    "unknown type": ("json_schema", '{"type": "strin"}'),
    "unknown keyword": ("json_schema", '{"if": {}, "then": {}}'),
    "options that are none": ("json_schema", '{"x-guidance": 5}'),
}
FOLLOWED = {
    "nested quantifiers": ("regex", "(((a{1,1000}){1,1000}){1,1000})"),
    "exponential automaton": ("regex", "(a|b)*a(a|b){60}"),
    "many stars": ("regex", "(.*a){200}"),
    "ambiguous rules": ("lark", 'start: start start | "a" | "aa"'),
    "nested repetition": ("lark", 'start: ((("a"{1,1000}){1,1000}){1,1000}){1,1000}'),
    "doubling rules": ("lark", _chain("r{0}: r{1} r{1}").replace("r30:", 'r30: "b"\nx:')),
    "doubling references": ("json_schema", _alternatives(10)),
    "large arrays": ("json_schema", '{"type": "array", "items": {}, "minItems": 100000}'),
}


@pytest.fixture(scope="module")
def compiler():
    return tiny_compiler()


@pytest.mark.parametrize(("kind", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_built_is_refused_soon(compiler, kind, text):
    start = time.monotonic()
    with pytest.raises(InvalidRequestError, match="cannot be used") as caught:
        compiler.compile(Grammar(kind=kind, text=text))
    assert time.monotonic() - start < _SOON
    assert len(str(caught.value)) < 500
    assert caught.value.hint


@pytest.mark.parametrize(("kind", "text"), FOLLOWED.values(), ids=FOLLOWED.keys())
def test_what_is_hard_to_follow_ends_soon(compiler, kind, text):
    start = time.monotonic()
    with contextlib.suppress(InvalidRequestError):
        answer(compiler, Grammar(kind=kind, text=text), max_tokens=40)
    assert time.monotonic() - start < _SOON


def test_a_stranger_may_not_take_longer_than_is_allowed():
    slow = Grammar(kind="json_schema", text='{"type": "integer", "multipleOf": 9999991}')
    with pytest.raises(InvalidRequestError, match="over 1 seconds"):
        tiny_compiler(compile_seconds=1).compile(slow)


def test_a_refused_grammar_leaves_the_compiler_usable(compiler):
    with pytest.raises(InvalidRequestError):
        compiler.compile(Grammar(kind="regex", text="(a"))
    assert compiler.compile(Grammar(kind="regex", text="a")).can_end is False
