"""Real vocabularies on the test strings of llama.cpp, from both sources."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from hyprstream.models.checkpoint.gguf import GgufFile
from hyprstream.models.tokenizer import Tokenizer

GGUF = {
    "llama-spm": "ggml-vocab-llama-spm.gguf",
    "gpt-2": "ggml-vocab-gpt-2.gguf",
    "bert-bge": "ggml-vocab-bert-bge.gguf",
    "qwen2": "vocab-qwen2-own.gguf",
    "llama-bpe": "vocab-llama-bpe-own.gguf",
}
FOLDERS = {"qwen2": "qwen2.5", "gpt-2": "gpt2", "bert-bge": "bert"}


def _load(test_data: Path, source: str, name: str) -> Tokenizer:
    if source == "gguf":
        return Tokenizer.from_gguf(GgufFile.open(test_data / "vocab" / GGUF[name]).metadata)
    return Tokenizer.from_folder(test_data / "tokenizers" / FOLDERS[name])


@pytest.mark.parametrize(
    ("source", "name"),
    [*(("gguf", name) for name in GGUF), *(("folder", name) for name in FOLDERS)],
)
def test_all_vectors_of_llama_cpp_match(test_data, source, name):
    tokenizer = _load(test_data, source, name)
    vectors = json.loads((test_data / "vocab" / "vectors.json").read_text())[name]
    assert len(vectors) == 47
    for vector in vectors:
        text, ids = vector["text"], vector["ids"]
        assert tokenizer.encode(text, add_special=False) == ids
        if name != "bert-bge":  # which lowers and drops
            assert tokenizer.decode(ids) == text
        stream = tokenizer.stream()
        parts = [*map(stream.push, ids), stream.finish()]
        assert "".join(parts) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", GGUF)
def test_no_control_token_of_a_real_vocabulary_comes_from_text(test_data, name):
    tokenizer = _load(test_data, "gguf", name)
    metadata = GgufFile.open(test_data / "vocab" / GGUF[name]).metadata
    types, texts = metadata["tokenizer.ggml.token_type"], metadata["tokenizer.ggml.tokens"]
    assert isinstance(types, list)
    assert isinstance(texts, list)
    controls = {i: texts[i] for i, kind in enumerate(types) if kind == 3}
    # BERT has no other way to say that it does not know a text.
    unknown = {tokenizer.encode("\U0001f680\u0085\ue000", add_special=False)[0]}
    for token_id, text in controls.items():
        assert tokenizer.encode(str(text), parse_special=True, add_special=False) == [token_id]
        plain = set(tokenizer.encode(str(text), add_special=False))
        assert not plain & (controls.keys() - unknown)


def test_both_sources_of_stories260k_agree_with_transformers(test_data):
    folder = test_data / "stories260K"
    gguf = GgufFile.open(folder / "gguf" / "stories260K-F16.gguf").metadata
    ours = [Tokenizer.from_folder(folder / "hf"), Tokenizer.from_gguf(gguf)]
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "hf" / "tokenizer.json"))

    @settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
    @given(text=st.text(max_size=20) | st.text(alphabet="Once upon\n <s>/", max_size=20))
    def agree(text: str) -> None:
        expected = theirs.encode(text, split_special_tokens=True)
        assert [tokenizer.encode(text) for tokenizer in ours] == [expected] * 2
        assert [tokenizer.decode(expected) for tokenizer in ours] == [
            theirs.decode(expected, skip_special_tokens=True)
        ] * 2

    agree()
