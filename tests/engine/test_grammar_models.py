"""Grammars on real vocabularies, of GGUF and tokenizer.json, and on a real model."""

import json
import re

import pytest
import torch

from hyprstream.engine.generate import generate
from hyprstream.engine.grammar import tool_call_grammar
from hyprstream.engine.request import Grammar, SamplingParams
from hyprstream.errors import UnsupportedError
from hyprstream.models.checkpoint.gguf import GgufFile
from hyprstream.models.load import open_model
from hyprstream.models.tokenizer import Tokenizer
from tests.engine.grammars import answer, compiler_of

PERSON = Grammar(
    kind="json_schema",
    text=json.dumps(
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 20},
                "age": {"type": "integer", "minimum": 0, "maximum": 150},
                "likes": {"type": "array", "items": {"type": "string", "maxLength": 10}},
            },
            "required": ["name", "age"],
            "additionalProperties": False,
        }
    ),
)
DATE = Grammar(kind="regex", text=r"(19|20)\d\d-[01]\d-[0-3]\d, \w{1,9}")


def _of_gguf(file):
    with GgufFile.open(file) as opened:
        return Tokenizer.from_gguf(opened.metadata)


@pytest.fixture(scope="module")
def smollm2(default_model):
    """The default model, its tokenizer, and a compiler for them."""
    opened = open_model(default_model)
    decoder = opened.load(device=torch.device("cpu"), dtype=torch.float32)
    tokenizer = opened.tokenizer()
    return decoder, tokenizer, compiler_of(tokenizer, decoder.config.vocab_size)


@pytest.fixture(scope="module", params=["smollm2", "sentencepiece", "tokenizer.json"])
def vocabulary(request):
    """A tokenizer, a compiler for it, and the number of logits that its model has."""
    if request.param == "smollm2":
        decoder, tokenizer, compiler = request.getfixturevalue("smollm2")
        return tokenizer, compiler, decoder.config.vocab_size
    folder = request.getfixturevalue("test_data")
    if request.param == "sentencepiece":
        tokenizer = _of_gguf(folder / "vocab/ggml-vocab-llama-spm.gguf")
    else:
        tokenizer = Tokenizer.from_folder(folder / "tokenizers/gpt2")
    num_rows = tokenizer.vocab_size + 64  # models have rows that no token has
    return tokenizer, compiler_of(tokenizer, num_rows), num_rows


def test_random_answers_follow_the_grammar_on_real_vocabularies(vocabulary):
    tokenizer, compiler, vocab_size = vocabulary
    for seed, grammar in enumerate([DATE, PERSON, Grammar(kind="json_object")]):
        events = answer(
            compiler,
            grammar,
            vocab_size=vocab_size,
            eos_ids=tokenizer.eos_ids,
            logits_seed=seed,
            favour={i: 9.0 for piece in ('"', "}", "]") for i in tokenizer.encode(piece)},
        )
        ids = [event.token_id for event in events if not event.is_stop]
        text = tokenizer.decode(ids, continues=True)
        assert events[-1].finish == "stop"
        if grammar is DATE:
            assert re.fullmatch(DATE.text, text)
        else:
            assert isinstance(json.loads(text), dict)


def _continue(model, prompt, grammar, **params):
    decoder, tokenizer, compiler = model
    events = generate(
        decoder,
        tokenizer.encode(prompt, parse_special=True),
        SamplingParams(grammar=grammar, **params),
        eos_ids=tokenizer.eos_ids,
        constraint=compiler.compile(grammar),
    )
    ids = [event.token_id for event in events if not event.is_stop]
    return tokenizer.decode(ids, continues=True)


@pytest.mark.slow
def test_the_default_model_answers_in_json(smollm2):
    wanted = {
        "type": "object",
        "properties": {
            "capital": {"enum": ["London", "Paris"]},
        },
        "required": ["capital"],
        "additionalProperties": False,
    }
    text = _continue(
        smollm2,
        "France in JSON:",
        Grammar(kind="json_schema", text=json.dumps(wanted)),
        temperature=0,
        max_tokens=40,
    )
    assert json.loads(text)["capital"] in {"London", "Paris"}


@pytest.fixture(scope="module")
def stories(test_data):
    opened = open_model(test_data / "stories260K/hf")
    decoder = opened.load(device=torch.device("cpu"), dtype=torch.float32)
    tokenizer = opened.tokenizer()
    return decoder, tokenizer, compiler_of(tokenizer, decoder.config.vocab_size)


@pytest.mark.parametrize("params", [{"temperature": 0}, {"seed": 1}, {"seed": 2}])
def test_a_model_calls_a_tool(stories, params):
    arguments = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    text = _continue(stories, "Once", tool_call_grammar({"weather": arguments}), **params)
    body = text.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    assert json.loads(body)["name"] == "weather"
    assert json.loads(body)["arguments"]["city"] in {"Paris", "Rome"}


def test_a_story_ends_where_its_grammar_ends(stories):
    text = _continue(stories, "Once", Grammar(kind="regex", text=r"[a-z ,]{20,60}\."), seed=3)
    assert re.fullmatch(r"[a-z ,]{20,60}\.", text)


def test_a_grammar_that_nobody_compiled_is_not_ignored(stories):
    decoder, _, _ = stories
    with pytest.raises(UnsupportedError, match="cannot follow a grammar"):
        generate(decoder, [1], SamplingParams(grammar=DATE))
