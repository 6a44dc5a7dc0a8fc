"""Grammars on a tiny vocabulary: what comes out, when it ends, what goes before what."""

import ast
import json
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hyprstream.engine.grammar import GrammarCompiler, GrammarConstraint, tool_call_grammar
from hyprstream.engine.request import MAX_GRAMMAR_BYTES, Grammar, SamplingParams
from hyprstream.engine.sampler import RowSampler, TokenConstraint
from hyprstream.errors import InvalidRequestError, UnsupportedError
from tests.engine.grammars import EOS, LETTERS, TINY, TOOL, answer, spelled, tiny_compiler

A, B = TINY.index(b"a"), TINY.index(b"b")
SEEDS = range(5)


@pytest.fixture(scope="module")
def compiler():
    return tiny_compiler()


def regex(text):
    return Grammar(kind="regex", text=text)


def lark(text):
    return Grammar(kind="lark", text=text)


def schema(value):
    return Grammar(kind="json_schema", text=json.dumps(value))


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "(yes|no|maybe)",
        r"\d{3}-\d{4}",
        r"[A-Z][a-z]{0,9}( [a-z]{1,5}){2}\.",
        'a/"b"\\\\',
        "(ab|a)(bc|c)?",
        "[^a-zA-Z]{5}",
        "caf\u00e9",
        "\n+\t?x",
    ],
)
def test_an_answer_matches_its_regular_expression(compiler, text):
    for seed in SEEDS:
        events = answer(compiler, regex(text), logits_seed=seed)
        assert re.fullmatch(text, spelled(events).decode())
        assert events[-1].finish == "stop"


def test_an_answer_parses_by_its_lark_grammar(compiler):
    sums = lark(
        """
        start: sum
        sum: sum "+" product | product
        product: product "*" atom | atom
        atom: NUMBER | "(" sum ")"
        NUMBER: /[1-9][0-9]{0,3}/
        """
    )
    for seed in SEEDS:
        events = answer(compiler, sums, logits_seed=seed, favour={EOS: 3.0}, max_tokens=1000)
        if events[-1].finish == "stop":
            nodes = {type(node) for node in ast.walk(ast.parse(spelled(events), mode="eval"))}
            assert nodes <= {
                *(ast.Expression, ast.BinOp, ast.Add, ast.Mult, ast.Constant, ast.Load)
            }


def test_an_answer_is_a_json_object(compiler):
    for seed in SEEDS:
        events = answer(
            compiler, Grammar(kind="json_object"), logits_seed=seed, favour={TINY.index(b"}"): 5.0}
        )
        assert isinstance(json.loads(spelled(events)), dict)


def test_an_answer_follows_its_schema(compiler):
    wanted = schema(
        {
            "type": "object",
            "properties": {
                "name": {"enum": ["ada", "bob"]},
                "age": {"type": "integer", "minimum": 0, "maximum": 150},
                "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
            },
            "required": ["name", "age", "tags"],
            "additionalProperties": False,
        }
    )
    for seed in SEEDS:
        found = json.loads(spelled(answer(compiler, wanted, logits_seed=seed)))
        assert list(found) == ["name", "age", "tags"]
        assert found["name"] in {"ada", "bob"}
        assert found["age"] in range(151)
        assert len(found["tags"]) <= 2
        assert all(isinstance(tag, bool) for tag in found["tags"])


def test_blanks_in_json_have_an_end(compiler):
    blanks = {TINY.index(piece): 50.0 for piece in (b" ", b"  ", b"\n")}
    events = answer(compiler, schema({"type": "array", "maxItems": 0}), favour=blanks)
    assert re.fullmatch(r"\[\s{40}\]", spelled(events).decode())


def test_no_end_token_before_the_answer_is_complete(compiler):
    events = answer(compiler, regex("ab?"), favour={EOS: 50.0, A: 40.0})
    assert [event.token_id for event in events] == [A, EOS]
    assert (events[-1].finish, events[-1].is_stop) == ("stop", True)


def test_an_answer_that_cannot_go_on_ends_with_its_last_token(compiler):
    events = answer(compiler, regex("abab"), eos_ids=())
    assert spelled(events) == b"abab"
    assert (events[-1].finish, events[-1].is_stop) == ("stop", False)
    assert [event.finish for event in events[:-1]] == [None] * (len(events) - 1)


def test_being_complete_goes_before_running_out(compiler):
    sampler = RowSampler(
        SamplingParams(grammar=regex("a"), max_tokens=1),
        *((), {EOS}, len(TINY)),
        constraint=compiler.compile(regex("a")),
    )
    assert sampler.next(torch.zeros(len(TINY)), room=0).finish == "stop"


def test_min_tokens_holds_back_the_end_of_what_can_go_on(compiler):
    events = answer(compiler, regex("a+"), favour={EOS: 50.0}, min_tokens=3)
    assert [event.token_id for event in events] == [A, A, A, EOS]


def test_min_tokens_does_not_prolong_what_is_complete(compiler):
    events = answer(compiler, regex("(x|y)z"), min_tokens=9)
    assert (len(events), events[-1].finish) == (2, "stop")


def test_a_bias_does_not_admit_what_the_grammar_forbids(compiler):
    events = answer(compiler, regex("[ab]{4}"), logit_bias={TINY.index(b"c"): 100, EOS: 100})
    assert re.fullmatch("[ab]{4}", spelled(events).decode())


def test_a_bias_does_not_exclude_what_the_grammar_requires(compiler):
    assert spelled(answer(compiler, regex("a"), logit_bias={A: -100})) == b"a"


def test_a_bias_chooses_among_what_the_grammar_admits(compiler):
    for seed in SEEDS:
        assert (
            spelled(answer(compiler, regex("a|b"), logits_seed=seed, logit_bias={B: 100})) == b"b"
        )


def test_a_stop_token_waits_for_the_end_as_well(compiler):
    events = answer(compiler, regex("ab?"), favour={TOOL: 50.0, A: 40.0}, stop_token_ids=(TOOL,))
    assert [event.token_id for event in events] == [A, TOOL]


def test_a_stop_token_that_the_grammar_has_ends_the_answer(compiler):
    events = answer(compiler, regex("axb"), stop_token_ids=(TINY.index(b"x"),))
    assert (spelled(events), events[-1].is_stop) == (b"a", True)


def test_an_ignored_end_token_does_not_come(compiler):
    events = answer(compiler, regex("a+"), favour={EOS: 50.0}, ignore_eos=True, max_tokens=6)
    assert spelled(events) == b"aaaaaa"
    assert events[-1].finish == "length"


def test_an_empty_answer_is_an_end_token(compiler):
    assert [event.token_id for event in answer(compiler, lark('start: ""'))] == [EOS]


def test_an_empty_answer_without_an_end_token_is_refused(compiler):
    with pytest.raises(InvalidRequestError, match="leaves no token to choose after 0 tokens"):
        answer(compiler, lark('start: ""'), eos_ids=())


def test_a_lark_grammar_names_control_tokens(compiler):
    for name in ("<tool>", f"<[{TOOL}]>"):
        events = answer(compiler, lark(f'start: "a" {name} "b"'))
        assert [event.token_id for event in events] == [A, TOOL, B]


def test_the_text_of_a_control_token_is_not_the_token(compiler):
    for seed in SEEDS:
        events = answer(compiler, regex("<tool>"), logits_seed=seed, favour={TOOL: 50.0})
        assert (spelled(events), len(events)) == (b"<tool>", 6)


def test_greedy_takes_the_best_of_what_is_admitted(compiler):
    constraint = compiler.compile(regex("[ab]"))
    params = SamplingParams(grammar=regex("[ab]"), temperature=0)
    sampler = RowSampler(params, (), {EOS}, len(TINY), constraint=constraint)
    row = torch.zeros(len(TINY))
    row[EOS], row[A], row[B] = 9.0, 1.0, 2.0
    assert not sampler.takes_peak
    assert sampler.next(row, room=9).token_id == B


def test_the_same_seed_gives_the_same_answer(compiler):
    grammar = regex("[a-z]{20}")
    same = [answer(compiler, grammar, seed=5) for _ in range(2)]
    assert same[0] == same[1]
    assert answer(compiler, grammar, seed=6) != same[0]


def test_answers_to_one_grammar_do_not_feel_each_other(compiler):
    first, second = compiler.compile(regex("ab")), compiler.compile(regex("ab"))
    before = second.forbidden()
    first.accept(A)
    assert torch.equal(second.forbidden(), before)
    assert not torch.equal(first.forbidden(), before)
    assert isinstance(first, TokenConstraint)
    assert isinstance(first, GrammarConstraint)


def test_the_row_is_left_as_it_was(compiler):
    grammar = regex("a")
    params = SamplingParams(grammar=grammar)
    sampler = RowSampler(params, (), {EOS}, len(TINY), constraint=compiler.compile(grammar))
    row = torch.ones(len(TINY))
    sampler.next(row, room=9)
    assert torch.equal(row, torch.ones(len(TINY)))


def test_logprobs_are_those_of_the_model(compiler):
    events = answer(compiler, regex("a"), favour={EOS: 50.0}, logprobs=1)
    logprobs = events[0].logprobs
    assert logprobs is not None
    assert logprobs.chosen < -40
    assert logprobs.top[0][0] == EOS


@pytest.mark.parametrize("text", ["a\u4e2d", "ab\u4e2d"])
def test_a_grammar_that_the_vocabulary_cannot_follow_says_so(compiler, text):
    with pytest.raises(InvalidRequestError, match="no token can come next"):
        answer(compiler, regex(text))


def test_a_grammar_that_the_vocabulary_cannot_begin_is_refused_when_compiled(compiler):
    with pytest.raises(InvalidRequestError, match="no token can come next"):
        compiler.compile(regex("\u4e2d"))


def test_a_grammar_without_a_constraint_is_not_ignored():
    with pytest.raises(UnsupportedError, match="here a json_object"):
        RowSampler(SamplingParams(grammar=Grammar(kind="json_object")), (), (), 9)


def test_what_was_compiled_is_kept_and_the_oldest_forgotten():
    small = tiny_compiler(max_cached=2)

    def seconds(text):
        start = time.perf_counter()
        small.compile(regex(text))
        return time.perf_counter() - start

    new = [seconds("a"), seconds("b")]
    kept = seconds("a")  # and used again, so that "b" is now the oldest
    new += [seconds("c"), seconds("b")]
    assert kept < min(new) / 5


def test_what_is_in_use_is_not_built_again():
    small = tiny_compiler(max_cached=1)
    held = small.compile(regex("a"))
    small.compile(regex("b"))
    assert small.compile(regex("a"))._built is held._built


def test_no_token_costs_more_than_a_step_can_spare():
    letters = "|".join(f'"{letter}"' for letter in "abcdefgh,")
    nested = Grammar(kind="lark", text=f"start: e\ne: e e e | e e | l\nl: {letters}")
    rng = random.Random(0)  # noqa: S311 - a vocabulary
    words = ["".join(rng.choices("abcdefgh,", k=rng.randint(2, 8))) for _ in range(20_000)]
    large = GrammarCompiler([*LETTERS, *(w.encode() for w in words)], special_ids=())
    with pytest.raises(InvalidRequestError, match="Too many items"):
        large.compile(nested)


def test_threads_may_share_a_compiler():
    small = tiny_compiler(max_cached=1)
    texts = [text for _ in range(5) for text in "abc"]

    def first_tokens(text):
        return (~small.compile(regex(text)).forbidden()).nonzero().squeeze(-1).tolist()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(first_tokens, texts))
    assert found == [[TINY.index(text.encode())] for text in texts]


def test_an_end_token_that_the_model_cannot_produce_does_no_harm():
    compiler = GrammarCompiler([b"a", b"b"], special_ids={7})
    events = answer(compiler, regex("ab"), vocab_size=2, eos_ids={7})
    assert [event.token_id for event in events] == [0, 1]


CALL = re.compile(r'<tool_call>\n(\{"name": "\w+", "arguments": .*?\})\n</tool_call>', re.DOTALL)
TOOLS = {
    "weather": {
        "type": "object",
        "properties": {"day": {"$ref": "#/$defs/day"}},
        "required": ["day"],
        "additionalProperties": False,
        "$defs": {"day": {"enum": ["mon", "tue"]}},
    },
    "wait": {
        "type": "object",
        "properties": {"seconds": {"type": "integer", "minimum": 1, "maximum": 60}},
        "required": ["seconds"],
        "additionalProperties": False,
    },
}


def check_call(text):
    call = json.loads(text)
    assert list(call) == ["name", "arguments"]
    match call:
        case {"name": "weather", "arguments": {"day": "mon" | "tue"}}:
            return
        case {"name": "wait", "arguments": {"seconds": int(seconds)}}:
            assert 1 <= seconds <= 60
        case _:
            pytest.fail(text)


def test_a_tool_call_names_a_tool_and_follows_its_schema(compiler):
    for seed in SEEDS:
        text = spelled(answer(compiler, tool_call_grammar(TOOLS), logits_seed=seed)).decode()
        found = CALL.fullmatch(text)
        assert found
        check_call(found[1])


def test_tools_are_called_once_or_as_often_as_is_wanted(compiler):
    newline = {TINY.index(b"\n"): 5.0, EOS: 3.0}
    events = answer(compiler, tool_call_grammar(TOOLS, parallel=True), favour=newline)
    calls = CALL.findall(spelled(events).decode())
    assert len(calls) > 1
    for call in calls:
        check_call(call)


@pytest.mark.parametrize("value", [float("nan"), b"a"])
def test_a_tool_whose_schema_is_no_json_is_refused_by_name(value):
    with pytest.raises(InvalidRequestError, match="the tool 'odd' is not JSON"):
        tool_call_grammar({"odd": {"const": value}})


@pytest.mark.parametrize("schema", [
    {"enum": [1, 2**53 + 1]},
    {"type": "object", "properties": {"enum": {"const": -(2**60)}}},
    {"anyOf": [{"type": "null"}, {"const": [{"deep": 2**64}]}]},
])  # fmt: skip
def test_values_that_would_be_written_as_others_are_refused(compiler, schema):
    grammar = Grammar(kind="json_schema", text=json.dumps(schema))
    with pytest.raises(InvalidRequestError, match="not told from their neighbours"):
        compiler.compile(grammar)
    with pytest.raises(InvalidRequestError, match="not told from their neighbours"):
        tool_call_grammar({"tool": schema})


def test_wide_bounds_are_no_values(compiler):
    bounded = {"type": "integer", "minimum": -(2**60), "maximum": 2**60}
    schema = {"type": "object", "properties": {"enum": bounded, "const": {"enum": [2**53]}}}
    compiler.compile(Grammar(kind="json_schema", text=json.dumps(schema)))


def test_a_call_of_no_tool_is_refused():
    with pytest.raises(InvalidRequestError, match="there are no tools"):
        tool_call_grammar({})


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"kind": "regex"}, "kind regex has a text of 0 characters"),
        ({"kind": "json_object", "text": "{}"}, "has a text of 2 characters"),
        ({"kind": "regex", "text": "a" * (MAX_GRAMMAR_BYTES + 1)}, "in bytes is 65537"),
        ({"kind": "regex", "text": "\u4e2d" * 30_000}, "in bytes is 90000"),
        ({"kind": "json_schema", "text": "x" * 10_000_000}, "in bytes is 10000000"),
    ],
)
def test_what_cannot_be_a_grammar_is_refused_by_name(fields, problem):
    with pytest.raises(InvalidRequestError, match=problem):
        Grammar(**fields)
