import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyprstream.catalog.card import model_entries
from hyprstream.catalog.hub.selection import Choice, choose, quant_of
from hyprstream.errors import (
    HyprstreamError,
    InvalidReferenceError,
    ModelNotFoundError,
    UnsupportedFormatError,
)

QWEN = [
    *(".gitattributes", "LICENSE", "README.md", "config.json", "generation_config.json"),
    *("merges.txt", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
]
GGUFS = ["README.md", "x-Q2_K.gguf", "x-Q4_K_M.gguf", "x-Q4_K_S.gguf", "x-Q8_0.gguf", "x-f16.gguf"]


def test_a_folder_model_is_chosen_without_its_readme():
    choice = choose("org/x", QWEN, tag=None)
    assert choice == Choice(
        names=tuple(sorted(set(QWEN) - {".gitattributes", "README.md"})), entry=""
    )


def test_shards_come_with_their_index_and_nothing_that_repeats_them():
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    names = [
        *("config.json", "tokenizer.json", "model.safetensors.index.json", *shards),
        *("consolidated.safetensors", "pytorch_model.bin", "onnx/model.onnx", "x-Q4_K_M.gguf"),
        *("flax_model.msgpack", "tf_model.h5", "original/consolidated.00.pth"),
    ]
    assert choose("org/x", names, tag=None).names == (
        *("config.json", *shards, "model.safetensors.index.json", "tokenizer.json"),
    )


def test_an_embedder_comes_with_its_last_layers():
    names = [
        *("1_Pooling/config.json", "2_Dense/model.safetensors", "2_Dense/pytorch_model.bin"),
        *("config.json", "model.safetensors", "modules.json", "openvino/openvino_model.xml"),
    ]
    chosen = choose("org/x", names, tag=None).names
    assert set(names) - set(chosen) == {"2_Dense/pytorch_model.bin", "openvino/openvino_model.xml"}


@pytest.mark.parametrize(
    ("file", "quant"),
    [
        ("gguf/Qwen3-0.6B-q4_k_m.gguf", "Q4_K_M"),
        ("Llama-3.2-1B-Instruct-IQ3_XXS.gguf", "IQ3_XXS"),
        ("Qwen3-8B-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("tinyllama-1.1b-chat-v1.0.Q5_0.gguf", "Q5_0"),
        ("Phi-3-mini-4k-instruct-q4.gguf", "Q4"),
        ("model_q8_0.gguf", "Q8_0"),
        ("x-BF16-00001-of-00003.gguf", "BF16"),
        ("gpt-oss-20b-MXFP4.gguf", "MXFP4"),
        ("Qwen3-0.6B.gguf", ""),
        ("ggml-model.gguf", ""),
    ],
)
def test_a_file_name_tells_the_quantisation(file, quant):
    assert quant_of(file) == quant


@pytest.mark.parametrize("tag", ["Q8_0", "q8_0", "x-Q8_0.gguf", "X-q8_0", None])
def test_a_tag_chooses_in_capitals_or_not(tag):
    expected = "x-Q4_K_M.gguf" if tag is None else "x-Q8_0.gguf"
    assert choose("org/x", GGUFS, tag=tag) == Choice(names=(expected,), entry=expected)


def test_the_only_gguf_file_needs_no_tag():
    assert choose("org/x", ["a/x-F16.gguf", "mmproj-F16.gguf"], tag=None).entry == "a/x-F16.gguf"


def test_a_folder_is_meant_unless_a_tag_says_gguf():
    names = [*QWEN, "x-Q4_K_M.gguf"]
    assert choose("org/x", names, tag=None).entry == ""
    assert choose("org/x", names, tag="q4_k_m").entry == "x-Q4_K_M.gguf"


@pytest.mark.parametrize(
    ("names", "tag", "error", "says"),
    [
        (["x-Q8_0.gguf", "x-Q6_K.gguf"], None, InvalidReferenceError, "Q6_K, Q8_0"),
        (GGUFS, "Q5_K_M", ModelNotFoundError, "F16, Q2_K, Q4_K_M, Q4_K_S, Q8_0"),
        (["a-Q8_0.gguf", "b-Q8_0.gguf"], "Q8_0", InvalidReferenceError, "a-Q8_0.gguf"),
        (
            ["x-Q8_0-00001-of-00002.gguf", "x-Q8_0-00002-of-00002.gguf", "x-Q4_0.gguf"],
            *("Q8_0", UnsupportedFormatError, "Q4_0"),
        ),
        (
            ["x-Q8_0-00001-of-00002.gguf", "x-Q8_0-00002-of-00002.gguf"],
            *(None, UnsupportedFormatError, "llama-gguf-split"),
        ),
        (QWEN, "Q4_K_M", ModelNotFoundError, "without a tag"),
        (["pytorch_model.bin", "config.json"], None, UnsupportedFormatError, "runs code"),
        (
            ["adapter_config.json", "adapter_model.safetensors"],
            *(None, UnsupportedFormatError, "lora import"),
        ),
        (["README.md"], None, ModelNotFoundError, "README.md"),
        ([], None, ModelNotFoundError, "empty"),
    ],
)
def test_what_cannot_be_chosen_is_said_with_what_can(names, tag, error, says):
    with pytest.raises(error) as caught:
        choose("org/x", names, tag=tag)
    assert says in f"{caught.value} {caught.value.hint}"


def test_patterns_choose_instead():
    names = [*QWEN, "model.fp16.safetensors", "pytorch_model.bin"]
    patterns = ["*.json", "model.fp16.safetensors"]
    assert choose("org/x", names, tag=None, patterns=patterns).names == (
        *("config.json", "generation_config.json", "model.fp16.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "vocab.json"),
    )


@pytest.mark.parametrize(
    ("patterns", "error"),
    [
        (["*.onnx"], ModelNotFoundError),
        (["*.json"], InvalidReferenceError),
        (["x-Q*.gguf"], InvalidReferenceError),
    ],
)
def test_patterns_that_choose_no_model_are_refused(patterns, error):
    with pytest.raises(error):
        choose("org/x", [*GGUFS, "config.json"], tag=None, patterns=patterns)


_NAMES = st.lists(
    st.sampled_from(
        [
            *(*QWEN, *GGUFS, "x-Q4_K_M-00001-of-00002.gguf", "pytorch_model.bin", "a/weights.pt"),
            *("model.safetensors.index.json", "model-00001-of-00001.safetensors"),
            *("adapter_model.safetensors", "sub/config.json", "sub/model.safetensors"),
        ]
    ),
    unique=True,
)


@given(names=_NAMES, tag=st.sampled_from([None, "Q4_K_M", "q8_0", "zzz"]))
def test_whatever_is_there_a_choice_is_one_model_without_pickles_or_an_error_of_ours(names, tag):
    try:
        choice = choose("org/x", names, tag=tag)
    except HyprstreamError:
        return
    assert set(choice.names) <= set(names)
    assert not [name for name in choice.names if re.search(r"\.(bin|pt)$", name)]
    assert choice.entry in model_entries(choice.names)
