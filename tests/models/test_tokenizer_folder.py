"""Tokenizers from the files of a model folder, against transformers."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Reference
from transformers import PreTrainedTokenizerFast

from hyprstream.errors import (
    CorruptTokenizerError,
    InvalidRequestError,
    ModelNotFoundError,
    UnsupportedTokenizerError,
)
from hyprstream.models import tokenizer_files
from hyprstream.models.tokenizer import Tokenizer
from tests.models.vocabularies import bpe_metadata

CONTROLS = ("<|im_start|>", "<|im_end|>")


def _reference(**flags: bool) -> Reference:
    """Build a byte-level tokenizer like Qwen's, with the tokens of the golden vocabulary."""
    metadata = bpe_metadata()
    tokens = metadata["tokenizer.ggml.tokens"][:-4]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    backend = Reference(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = flags.get("special", True)
    backend.add_tokens([AddedToken(text, special=special, normalized=False) for text in CONTROLS])
    backend.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    return backend


def _write(folder: Path, name: str, value: object) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    (folder / name).write_text(text, encoding="utf-8")


def _loaded(backend: Reference) -> Tokenizer:
    with TemporaryDirectory() as folder:
        backend.save(str(Path(folder) / "tokenizer.json"))
        return Tokenizer.from_folder(Path(folder))


OURS = _loaded(_reference())
THEIRS = PreTrainedTokenizerFast(tokenizer_object=_reference())
TEXTS = st.text(max_size=20) | st.lists(
    st.sampled_from([*CONTROLS, "<tool_call>", "<|im_", " the", "\n", "\u65e5", "12"])
).map("".join)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _reference().save(str(tmp_path / "tokenizer.json"))
    _write(tmp_path, "tokenizer_config.json", {"eos_token": "<|im_end|>"})
    return tmp_path


@settings(deadline=None, max_examples=100)
@given(text=TEXTS)
def test_encodes_and_decodes_as_transformers(text):
    ids = OURS.encode(text, parse_special=True)
    assert ids == THEIRS.encode(text)
    assert OURS.encode(text) == THEIRS.encode(text, split_special_tokens=True)
    for skip in (False, True):
        assert OURS.decode(ids, skip_special=skip) == THEIRS.decode(ids, skip_special_tokens=skip)


def test_tokens_around_a_prompt_are_those_of_the_file(folder):
    backend = _reference()
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>",
        special_tokens=[(text, backend.token_to_id(text)) for text in CONTROLS],
    )
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode("the") == backend.encode("the").ids
    assert tokenizer.encode("the", add_special=False) == OURS.encode("the")


def test_truncation_and_padding_in_the_file_are_switched_off(folder):
    backend = _reference()
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    backend.save(str(folder / "tokenizer.json"))
    text = "what, ho! " * 20
    assert Tokenizer.from_folder(folder).encode(text) == OURS.encode(text)


def test_token_with_a_role_is_a_control_token_even_if_the_file_forgot(folder):
    backend = _reference(special=False)
    backend.save(str(folder / "tokenizer.json"))
    end = OURS.encode("<|im_end|>", parse_special=True)[0]
    tokenizer = Tokenizer.from_folder(folder)
    assert end not in tokenizer.encode("<|im_end|>")
    assert tokenizer.encode("<|im_end|>", parse_special=True) == [end]
    assert tokenizer.decode([end]) == ""


def test_end_tokens_are_collected_from_all_files(folder):
    start, end = (OURS.encode(text, parse_special=True)[0] for text in CONTROLS)
    _write(folder, "config.json", {"eos_token_id": 3})
    _write(folder, "generation_config.json", {"eos_token_id": [start, 5, None, "7", True, -1]})
    assert Tokenizer.from_folder(folder).eos_ids == {3, start, 5, end}


@pytest.mark.parametrize("end", ["<|im_end|>", {"content": "<|im_end|>", "lstrip": False}])
def test_special_tokens_are_named_as_text_or_with_their_flags(folder, end):
    _write(folder, "special_tokens_map.json", {"bos_token": "<|im_start|>", "eos_token": "x"})
    _write(folder, "tokenizer_config.json", {"eos_token": end, "pad_token": None})
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert tokenizer.bos_id == OURS.encode("<|im_start|>", parse_special=True)[0]


NAMED = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]


@pytest.mark.parametrize(
    ("files", "templates"),
    [
        ({}, {}),
        ({"tokenizer_config.json": {"chat_template": "plain"}}, {"default": "plain"}),
        (
            {"tokenizer_config.json": {"chat_template": NAMED}},
            {"default": "plain", "tool_use": "tools"},
        ),
        ({"chat_template.json": {"chat_template": "plain"}}, {"default": "plain"}),
        (
            {
                "tokenizer_config.json": {"chat_template": NAMED},
                "chat_template.json": {"chat_template": "newer"},
                "chat_template.jinja": "newest",
                "additional_chat_templates/rag.jinja": "rag",
            },
            {"default": "newest", "tool_use": "tools", "rag": "rag"},
        ),
    ],
)
def test_chat_templates_are_found_wherever_they_are_kept(folder, files, templates):
    (folder / "additional_chat_templates").mkdir()
    for name, value in files.items():
        _write(folder, name, value)
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.chat_templates == templates
    assert tokenizer.chat_template == templates.get("default")


def test_folder_without_a_tokenizer_is_said_to_have_none(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"has no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": {"type": "Odd"}}', "{" * 100_000])
def test_damaged_tokenizer_is_refused(folder, text):
    _write(folder, "tokenizer.json", text)
    with pytest.raises(CorruptTokenizerError, match=r"tokenizer\.json is no tokenizer"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_damaged_file_beside_it_is_refused_by_name(folder, name, text):
    _write(folder, name, text)
    with pytest.raises(CorruptTokenizerError, match=name):
        Tokenizer.from_folder(folder)


def test_file_that_is_no_text_is_refused(folder):
    (folder / "tokenizer_config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(CorruptTokenizerError, match="cannot be read"):
        Tokenizer.from_folder(folder)


def test_file_larger_than_any_tokenizer_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(tokenizer_files, "_MAX_FILE_BYTES", 1000)
    with pytest.raises(CorruptTokenizerError, match="more than any tokenizer file"):
        Tokenizer.from_folder(folder)


def test_decoder_that_is_not_understood_is_refused_by_name(folder):
    backend = _reference()
    backend.decoder = decoders.CTC()
    backend.save(str(folder / "tokenizer.json"))
    with pytest.raises(UnsupportedTokenizerError, match="CTC"):
        Tokenizer.from_folder(folder)


def test_text_with_a_lone_surrogate_is_refused():
    with pytest.raises(InvalidRequestError, match=r"\\ud800"):
        OURS.encode("a\ud800")


def test_panic_of_the_library_is_an_error_like_others(folder):
    damaged = json.loads((folder / "tokenizer.json").read_text())
    damaged["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "nowhere", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    }
    _write(folder, "tokenizer.json", damaged)
    with pytest.raises(CorruptTokenizerError, match="cannot encode"):
        Tokenizer.from_folder(folder).encode("the")


def _model(value: Any) -> Any:
    return {"version": "1.0", "model": value, "added_tokens": []}


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_json_is_read_or_refused(data):
    leaf = st.none() | st.integers(-1, 3) | st.text("ab", max_size=2)
    value = data.draw(
        st.recursive(
            leaf,
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["type", "vocab", "merges", "a"]), inner)
            ),
            max_leaves=8,
        )
    )
    with TemporaryDirectory() as name:
        _write(Path(name), "tokenizer.json", _model(value))
        try:
            Tokenizer.from_folder(Path(name)).encode("ab")
        except CorruptTokenizerError as error:
            assert str(error)  # noqa: PT017  either outcome is right, any other error is not
