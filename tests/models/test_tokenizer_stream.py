"""Tokens to text: whole, and one by one, which must be the same."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Reference
from tokenizers import decoders, models

from hyprstream.models.detokenize import Detokenizer, Spelling
from hyprstream.models.tokenizer import Tokenizer
from tests.models.vocabularies import bert_metadata, bpe_metadata, golden, spm_metadata

TOKENIZERS = {
    "bpe": Tokenizer.from_gguf(bpe_metadata()),
    "spm": Tokenizer.from_gguf(spm_metadata()),
    "wordpiece": Tokenizer.from_gguf(bert_metadata()),
}
KINDS = pytest.mark.parametrize("kind", TOKENIZERS)
# Letters of every length in UTF-8, and emoji joined by U+200D and U+FE0F.
LETTERS = "ab z.,!\n\u00e9\u0416\u65e5\u200d\ufe0f\U0001f469\U0001f680"


def _pushed(tokenizer: Tokenizer, ids: list[int], **options: bool) -> list[str]:
    stream = tokenizer.stream(**options)
    return [*map(stream.push, ids), stream.finish()]


@KINDS
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_stream_of_any_tokens_is_the_whole_text(kind, data):
    tokenizer = TOKENIZERS[kind]
    # Beyond the vocabulary too: models have rows that no token has.
    ids = data.draw(st.lists(st.integers(-1, tokenizer.vocab_size + 2), max_size=20))
    options = {name: data.draw(st.booleans()) for name in ("skip_special", "continues")}
    assert "".join(_pushed(tokenizer, ids, **options)) == tokenizer.decode(ids, **options)


@pytest.mark.parametrize("kind", ["bpe", "spm"])
@settings(deadline=None, max_examples=150)
@given(text=st.text(alphabet=LETTERS, max_size=12))
def test_stream_of_a_text_gives_back_its_characters_whole(kind, text):
    tokenizer = TOKENIZERS[kind]
    parts = _pushed(tokenizer, tokenizer.encode(text))
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)


@pytest.mark.parametrize("kind", ["bpe", "spm"])
@settings(deadline=None, max_examples=100)
@given(text=st.text(max_size=12))
def test_any_text_survives_encoding_and_decoding(kind, text):
    tokenizer = TOKENIZERS[kind]
    # U+2581 stands for a blank in SentencePiece, so it comes back as one.
    expected = text.replace("\u2581", " ") if kind == "spm" else text
    assert tokenizer.decode(tokenizer.encode(text)) == expected


@KINDS
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_text_is_the_bytes_of_its_tokens(kind, data):
    tokenizer = TOKENIZERS[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=12))
    spelled = b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace")
    assert tokenizer.decode(ids, skip_special=False, continues=True) == spelled


def test_half_a_character_is_held_back_and_shown_as_damaged_only_at_the_end():
    tokenizer = TOKENIZERS["spm"]
    ids = tokenizer.encode("\u65e5", add_special=False)  # a blank and three bytes
    assert _pushed(tokenizer, ids) == ["", "", "", "\u65e5", ""]
    assert _pushed(tokenizer, ids[:-1]) == ["", "", "", "\ufffd"]


def test_bad_byte_costs_no_characters_but_itself():
    tokenizer = TOKENIZERS["spm"]
    ids = tokenizer.encode("\u65e5", add_special=False)
    assert tokenizer.decode([*ids, ids[1], *ids[1:]]) == "\u65e5\ufffd\u65e5"


def test_first_word_keeps_its_blank_when_the_text_goes_on_from_another():
    tokenizer = TOKENIZERS["spm"]
    ids = tokenizer.encode("time", add_special=False)
    assert tokenizer.decode(ids) == "time"
    assert tokenizer.decode(ids, continues=True) == " time"
    assert "".join(_pushed(tokenizer, ids, continues=True)) == " time"


def test_control_tokens_are_no_text_unless_asked_for():
    tokenizer = TOKENIZERS["bpe"]
    ids = tokenizer.encode("<|im_start|>a<tool><|im_end|>", parse_special=True)
    assert tokenizer.decode(ids) == "a<tool>"
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|>a<tool><|im_end|>"


def test_token_text_shows_the_blank_and_damage():
    tokenizer = TOKENIZERS["bpe"]
    first, *_ = tokenizer.encode("\u65e5")
    assert "\ufffd" in tokenizer.token_text(first)
    assert tokenizer.token_text(tokenizer.encode(" the")[0]).startswith(" ")


def test_ids_outside_the_vocabulary_spell_nothing():
    tokenizer = TOKENIZERS["bpe"]
    assert tokenizer.token_bytes(tokenizer.vocab_size) == b""
    assert tokenizer.token_bytes(-1) == b""


_VOCAB = ["\u2581a", "a", "\u2581", "<0x41>", "##b", "!", "'", "s", "n't", "\u0120x", "\u010a"]


@pytest.mark.parametrize(
    ("decoder", "spelling"),
    [
        (decoders.ByteLevel(), Spelling(byte_letters=True)),
        (decoders.WordPiece(), Spelling(separator=" ", continuation="##", tidy=True)),
        (
            decoders.WordPiece(cleanup=False),
            Spelling(separator=" ", continuation="##"),
        ),
        (None, Spelling(separator=" ")),
        (
            decoders.Sequence(
                [
                    decoders.Replace("\u2581", " "),
                    decoders.ByteFallback(),
                    decoders.Fuse(),
                    decoders.Strip(" ", 1, 0),
                ]
            ),
            Spelling(replacements=(("\u2581", " "),), byte_tokens=True, strip_first_blank=True),
        ),
    ],
)
@settings(deadline=None, max_examples=60)
@given(ids=st.lists(st.integers(0, len(_VOCAB) - 1), max_size=6))
def test_spellings_are_the_decoders_of_the_library(decoder, spelling, ids):
    reference = Reference(models.BPE({token: i for i, token in enumerate(_VOCAB)}, []))
    if decoder is not None:
        reference.decoder = decoder
    ours = Detokenizer(
        token_of=reference.id_to_token,
        spelling=spelling,
        added_ids=frozenset(),
        control_ids=frozenset(),
    )
    assert ours.decode(ids, skip_special=True, continues=False) == reference.decode(ids)


def test_every_byte_has_its_own_token_in_the_alphabet():
    tokens = golden()["bpe"]["metadata"]["tokenizer.ggml.tokens"]
    spelling = Spelling(byte_letters=True)
    single = {
        spelling.spell(token, first=False, added=False) for token in tokens if len(token) == 1
    }
    assert single == {bytes([byte]) for byte in range(256)}


def test_golden_file_names_its_origin():
    assert re.search(r"llama\.cpp", json.dumps(golden()["source"]))
