"""Tokenizers from the vocabulary inside a GGUF, against llama.cpp and brute force."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Reference

from hyprstream.errors import CorruptTokenizerError, UnsupportedTokenizerError
from hyprstream.models.tokenizer import Tokenizer
from tests.models.vocabularies import (
    BERT_TOKENS,
    bert_metadata,
    bpe_metadata,
    golden,
    spm_metadata,
)

GOLDEN = golden()


@pytest.mark.parametrize("pre", GOLDEN["bpe"]["ids"])
def test_byte_level_vocabulary_encodes_as_llama_cpp(pre):
    tokenizer = Tokenizer.from_gguf(bpe_metadata(pre))
    texts, expected = GOLDEN["bpe"]["texts"], GOLDEN["bpe"]["ids"][pre]
    plain = [tokenizer.encode(text, add_special=False) for text in texts]
    special = [tokenizer.encode(text, parse_special=True) for text in texts]
    assert (plain, special) == (expected["plain"], expected["special"])


@pytest.mark.parametrize("variant", GOLDEN["spm"]["variants"])
def test_sentencepiece_vocabulary_encodes_as_llama_cpp(variant):
    expected = GOLDEN["spm"]["variants"][variant]
    tokenizer = Tokenizer.from_gguf(spm_metadata() | expected["metadata"])
    texts = GOLDEN["spm"]["texts"]
    plain = [tokenizer.encode(text, add_special=False) for text in texts]
    special = [tokenizer.encode(text, parse_special=True) for text in texts]
    assert (plain, special) == (expected["plain"], expected["special"])


@pytest.mark.parametrize(("kind", "metadata"), [("bpe", bpe_metadata()), ("spm", spm_metadata())])
def test_tokens_that_end_generation_are_those_of_llama_cpp(kind, metadata):
    assert sorted(Tokenizer.from_gguf(metadata).eos_ids) == GOLDEN[kind]["end_ids"]


@settings(deadline=None, max_examples=60)
@given(
    text=st.text(alphabet=st.sampled_from([*"heloworldunab!.,' \n", "\u65e5", "\u00e9", "\u0130"]))
)
def test_wordpiece_vocabulary_encodes_as_hugging_face(text):
    ours = Tokenizer.from_gguf(bert_metadata()).encode(text)
    assert ours == [2, *_reference_bert().encode(text).ids, 3]


def _reference_bert() -> Reference:
    reference = Reference(
        models.WordPiece(
            {token: i for i, token in enumerate(BERT_TOKENS)},
            unk_token="[UNK]",  # noqa: S106  not that kind of token
        )
    )
    reference.normalizer = normalizers.BertNormalizer()
    reference.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return reference


@settings(deadline=None, max_examples=100)
@given(
    pieces=st.sets(st.text(alphabet="ab\u2581", min_size=2, max_size=5), max_size=12),
    order=st.randoms(use_true_random=False),
    text=st.text(alphabet="ab c\u00e9", max_size=14),
)
def test_sentencepiece_always_joins_the_neighbours_with_the_highest_score(pieces, order, text):
    tokens = ["a", "b", "\u2581", *sorted(pieces)]
    order.shuffle(tokens)
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    texts = ["<unk>", "<s>", "</s>", *byte_tokens, *tokens]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(tokens))]
    tokenizer = Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": texts,
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(tokens),
            "tokenizer.ggml.add_space_prefix": False,
        }
    )
    ids = {token: i for i, token in enumerate(texts)}
    rank = {token: n for n, token in enumerate(tokens)}
    expected: list[int] = []
    for part in _join_best(list(text.replace(" ", "\u2581")), rank):
        spelled = [part] if part in ids else [f"<0x{byte:02X}>" for byte in part.encode()]
        expected += [ids[token] for token in spelled]
    assert tokenizer.encode(text, add_special=False) == expected


def _join_best(parts: list[str], rank: dict[str, int]) -> list[str]:
    while True:
        joined = [a + b for a, b in itertools.pairwise(parts)]
        known = [(rank[text], at) for at, text in enumerate(joined) if text in rank]
        if not known:
            return parts
        at = min(known)[1]
        parts = [*parts[:at], joined[at], *parts[at + 2 :]]


def test_arrays_may_be_numpy():
    metadata = spm_metadata()
    for name, dtype in (("scores", np.float32), ("token_type", np.int32)):
        metadata[f"tokenizer.ggml.{name}"] = np.array(metadata[f"tokenizer.ggml.{name}"], dtype)
    text = "Once upon a time"
    assert Tokenizer.from_gguf(metadata).encode(text) == Tokenizer.from_gguf(spm_metadata()).encode(
        text
    )


def test_control_tokens_in_text_are_text_unless_parsing_is_asked_for():
    tokenizer = Tokenizer.from_gguf(bpe_metadata())
    start = tokenizer.encode("<|im_start|>", parse_special=True)
    plain = tokenizer.encode("<|im_start|>")
    assert len(start) == 1
    assert start[0] not in plain
    assert tokenizer.decode(plain) == "<|im_start|>"


def test_tokens_added_by_users_are_parsed_in_any_text():
    tokenizer = Tokenizer.from_gguf(bpe_metadata())
    tool = tokenizer.encode("<tool>")
    assert len(tool) == 1
    assert tokenizer.decode(tool) == "<tool>"


def test_merges_never_make_a_control_token():
    metadata = bpe_metadata()
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "<q", "<q>"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 1, 3]
    metadata["tokenizer.ggml.merges"] = [*metadata["tokenizer.ggml.merges"], "< q", "<q >"]
    control = len(metadata["tokenizer.ggml.tokens"]) - 1
    tokenizer = Tokenizer.from_gguf(metadata)
    assert control not in tokenizer.encode("<q>")
    assert tokenizer.encode("<q>", parse_special=True) == [control]


def test_text_that_looks_like_an_end_token_ends_nothing_if_merges_make_it():
    metadata = bpe_metadata()
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "</", "</s", "</s>"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 1, 1, 1]
    merges = [*metadata["tokenizer.ggml.merges"], "< /", "</ s", "</s >"]
    html = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.merges": merges})
    mistyped = Tokenizer.from_gguf(metadata)
    last = len(metadata["tokenizer.ggml.tokens"]) - 1
    assert last not in html.eos_ids
    assert last in mistyped.eos_ids


def test_gpt_oss_goes_on_after_the_end_of_a_part():
    metadata = bpe_metadata()
    added = ["<|end|>", "<|return|>", "<|call|>"]
    num_tokens = len(metadata["tokenizer.ggml.tokens"])
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], *added]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 3, 3, 3]
    eos_ids = Tokenizer.from_gguf(metadata).eos_ids
    assert num_tokens not in eos_ids
    assert {num_tokens + 1, num_tokens + 2} <= eos_ids


def test_prompts_begin_and_end_as_the_file_says():
    frame = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    metadata = bpe_metadata() | frame
    tokenizer = Tokenizer.from_gguf(metadata)
    ids = tokenizer.encode("Hello")
    assert ids[0] == tokenizer.bos_id == metadata["tokenizer.ggml.bos_token_id"]
    assert ids[-1] == metadata["tokenizer.ggml.eos_token_id"]
    assert ids[1:-1] == tokenizer.encode("Hello", add_special=False)


def test_templates_and_special_tokens_come_with_the_vocabulary():
    metadata = bpe_metadata() | {
        "tokenizer.chat_template": "plain",
        "tokenizer.chat_template.tool_use": "tools",
    }
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.chat_template == "plain"
    assert tokenizer.chat_templates == {"default": "plain", "tool_use": "tools"}
    assert tokenizer.special_tokens == {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}


def test_vocabulary_says_what_it_is():
    assert Tokenizer.from_gguf(bpe_metadata("qwen2")).description == "BPE (qwen2), 1004 tokens"


@pytest.mark.parametrize("pre", ["gpt5", "", "Qwen2"])
def test_unknown_pre_tokenizer_is_refused_by_name(pre):
    with pytest.raises(UnsupportedTokenizerError, match=repr(pre)):
        Tokenizer.from_gguf(bpe_metadata(pre))


@pytest.mark.parametrize("model", ["t5", "rwkv", "none", "plamo2"])
def test_unknown_kind_of_vocabulary_is_refused_by_name(model):
    with pytest.raises(UnsupportedTokenizerError, match=model):
        Tokenizer.from_gguf(bpe_metadata() | {"tokenizer.ggml.model": model})


def _without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda metadata: {k: v for k, v in metadata.items() if k != f"tokenizer.ggml.{key}"}


def _with(key: str, value: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda metadata: metadata | {f"tokenizer.ggml.{key}": value}


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_without("model"), "model is no string"),
        (_without("tokens"), "tokens is no array"),
        (_without("scores"), "scores is no array"),
        (_with("tokens", ["a", 1]), "tokens is no array of strings"),
        (_with("tokens", ["\ud800"]), "tokens is not Unicode text"),
        (_with("tokens", ["a", "a"]), "token_type is not one number for each of 2 tokens"),
        (_with("scores", [0.0]), "scores is not one number for each of 516 tokens"),
        (_with("scores", [[0.0], [0.0, 1.0]]), "scores is no array of numbers"),
        (_with("scores", ["0"] * 516), "scores is no array of numbers"),
        (_with("scores", [float("nan")] * 516), "scores is not all numbers"),
        (_with("token_type", [1.5] * 516), "token_type is no array of numbers"),
        (_with("token_type", 1), "token_type is no array of numbers"),
        (_with("bos_token_id", 516), "bos_token_id is outside the vocabulary of 516 tokens: 516"),
        (_with("eos_token_id", -1), "eos_token_id is outside"),
        (_with("eos_token_id", "2"), "eos_token_id is no token id"),
        (_with("eos_token_id", True), "eos_token_id is no token id"),
        (_with("add_bos_token", 1), "add_bos_token is no boolean"),
    ],
)
def test_damaged_metadata_is_refused_by_name(damage, problem):
    with pytest.raises(CorruptTokenizerError, match=problem):
        Tokenizer.from_gguf(damage(spm_metadata()))


def test_token_that_is_there_twice_is_refused():
    metadata = spm_metadata()
    tokens: Sequence[str] = metadata["tokenizer.ggml.tokens"]
    with pytest.raises(CorruptTokenizerError, match="twice, as 300 and 301"):
        Tokenizer.from_gguf(
            metadata | {"tokenizer.ggml.tokens": [*tokens[:301], tokens[300], *tokens[302:]]}
        )


@pytest.mark.parametrize("merge", ["a zz", "a", ""])
def test_merge_of_what_is_no_token_is_refused(merge):
    metadata = bpe_metadata()
    metadata["tokenizer.ggml.merges"] = [*metadata["tokenizer.ggml.merges"], merge]
    with pytest.raises(CorruptTokenizerError, match="merges"):
        Tokenizer.from_gguf(metadata)


def test_bos_that_is_wanted_and_missing_is_refused():
    metadata = _without("bos_token_id")(bpe_metadata())
    with pytest.raises(CorruptTokenizerError, match="bos_token"):
        Tokenizer.from_gguf(metadata | {"tokenizer.ggml.add_bos_token": True})


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_value_in_any_key_is_read_or_refused(data):
    metadata = data.draw(st.sampled_from([bert_metadata(), _tiny_spm(), _tiny_bpe()]))
    key = data.draw(st.sampled_from([*metadata, "tokenizer.ggml.pre", "tokenizer.chat_template"]))
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    value = data.draw(scalars | st.lists(scalars, max_size=8))
    try:
        Tokenizer.from_gguf(metadata | {key: value}).encode("a b")
    except (CorruptTokenizerError, UnsupportedTokenizerError) as error:
        assert str(error)  # noqa: PT017  either outcome is right, any other error is not


def _tiny_spm() -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a", "b", "ab"],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -2.0, -3.0],
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1],
        "tokenizer.ggml.bos_token_id": 1,
    }


def _tiny_bpe() -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "b", "ab", "<|end|>"],
        "tokenizer.ggml.token_type": [1, 1, 1, 3],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 3,
    }


def test_added_tokens_of_the_library_still_allow_what_is_built_on():
    """Control tokens in text are text because of this switch of the library."""
    backend = Reference(models.BPE({"<": 0, "s": 1, ">": 2, "<s>": 3}, []))
    backend.add_tokens([AddedToken("<s>", special=True, normalized=False)])
    backend.encode_special_tokens = True
    assert backend.encode("<s>").ids == [0, 1, 2]
