"""Files of JSON lines to samples, and files that are none."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyprstream.errors import InvalidDatasetError, InvalidInputError
from hyprstream.models.chat import ChatTemplate
from hyprstream.models.tokenizer import Tokenizer
from hyprstream.train.dataset import MAX_LINE_BYTES, SampleMaker, read_samples
from hyprstream.train.sample import Sample
from tests.models.vocabularies import bpe_metadata, spm_metadata

CHATML = ChatTemplate(
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    {},
)
FORGETFUL = ChatTemplate(
    "{% for m in messages %}{% if m.role == 'user' or loop.last %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}",
    {},
)
BPE = Tokenizer.from_gguf(bpe_metadata())
SPM = Tokenizer.from_gguf(spm_metadata())


def maker(tokenizer=BPE, template=CHATML, max_tokens: int = 500) -> SampleMaker:
    return SampleMaker(tokenizer=tokenizer, template=template, max_tokens=max_tokens)


def counted(tokenizer: Tokenizer, sample: Sample) -> str:
    """The text that counts, control tokens included."""
    pairs = zip(sample.token_ids, sample.counts, strict=True)
    return tokenizer.decode([i for i, counts in pairs if counts], skip_special=False)


def whole(tokenizer: Tokenizer, sample: Sample) -> str:
    return tokenizer.decode(sample.token_ids, skip_special=False)


def test_of_a_chat_what_the_assistant_says_counts_with_its_end():
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "what is <|im_end|> for"},
        {"role": "assistant", "content": "the end"},
        {"role": "user", "content": "thanks"},
        {"role": "assistant", "content": "bye"},
    ]
    (sample,) = maker().samples({"messages": messages, "id": 3})
    assert counted(BPE, sample) == "the end<|im_end|>\nbye<|im_end|>\n"
    text = whole(BPE, sample)
    assert text.startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n")
    controls = [i for i in sample.token_ids if i in BPE.control_ids]
    assert len(controls) == 10  # none of them from what the user wrote


def test_alpaca_is_a_chat_where_the_model_knows_chats_and_alpacas_text_elsewhere():
    record = {"instruction": "Add.", "input": "1 2", "output": "3"}
    (sample,) = maker().samples(record)
    assert counted(BPE, sample) == "3<|im_end|>\n"
    assert "user\nAdd.\n\n1 2<|im_end|>" in whole(BPE, sample)
    (sample,) = maker(template=None).samples(record)
    assert counted(BPE, sample).startswith("3")
    prompt = whole(BPE, sample)
    assert "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n3" in prompt
    (sample,) = maker(template=None).samples({"instruction": "Go.", "output": "ok"})
    assert "### Input" not in whole(BPE, sample)


@pytest.mark.parametrize("tokenizer", [BPE, SPM], ids=["bpe", "spm"])
def test_of_a_completion_the_completion_counts_and_the_end(tokenizer):
    (sample,) = maker(tokenizer).samples({"prompt": "once upon", "completion": " a time"})
    ids = tokenizer.encode("once upon a time")
    assert list(sample.token_ids[: len(ids)]) == ids
    assert len(sample.token_ids) - len(ids) <= 1
    assert set(sample.token_ids[len(ids) :]) <= tokenizer.eos_ids
    assert counted(tokenizer, sample).strip().startswith("a time")


def test_what_a_model_writes_last_is_its_end():
    (sample,) = maker(SPM).samples({"prompt": "a", "completion": " b"})
    assert sample.token_ids[-1] in SPM.eos_ids
    assert sample.counts[-1]


@settings(max_examples=50)
@given(st.text(min_size=1, max_size=80), st.integers(1, 20))
def test_windows_of_a_text_predict_every_token_once(text: str, max_tokens: int):
    try:
        ids = SPM.encode(text)
    except InvalidInputError:  # half a surrogate pair
        return
    found = maker(SPM, max_tokens=max_tokens).samples({"text": text})
    assert all(sample.num_computed <= max_tokens for sample in found)
    assert all(all(sample.counts) for sample in found)
    predicted = [i for sample in found for i in sample.token_ids[1:]]
    assert [found[0].token_ids[0], *predicted][: len(ids)] == ids
    assert len(predicted) + 1 <= len(ids) + 1
    for one, following in pairwise(found):
        assert one.token_ids[-1] == following.token_ids[0]


def test_real_files_are_read(test_data):
    corpora = test_data / "corpora"
    found = read_samples(corpora / "wikisql_mlx" / "valid.jsonl", maker(SPM))
    lines = (corpora / "wikisql_mlx" / "valid.jsonl").read_text().splitlines()
    assert len(found) == len(lines)
    assert json.loads(lines[0])["text"] in SPM.decode(found[0].token_ids)


def write(folder: Path, *lines: object) -> Path:
    file = folder / "samples.jsonl"
    data = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    file.write_bytes(b"\n".join(data) + b"\n")
    return file


def test_empty_lines_and_a_byte_order_mark_are_skipped(tmp_path):
    file = write(tmp_path, b'\xef\xbb\xbf{"text": "one two"}', b"", b"  \r", {"text": "three"})
    assert len(read_samples(file, maker(SPM))) == 2


SOUND = {"text": "one two"}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "no JSON"),
        (b"[1]", "no JSON object"),
        (b"\xff", "no JSON"),
        (b'{"text": NaN}', "NaN"),
        (b"[" * 100_000, "no JSON"),
        (b'{"text": "' + b"a" * MAX_LINE_BYTES + b'"}', "longer than"),
        ({}, "neither messages"),
        ({"text": 3}, "text is no text"),
        ({"text": ""}, "cannot be learnt"),
        (b'{"text": "\\ud800"}', "surrogate"),
        ({"prompt": "a"}, "completion is missing"),
        ({"prompt": "a" * 3000, "completion": "b"}, "more than 500"),
        ({"instruction": "a", "output": None}, "output is missing"),
        ({"messages": []}, "no list of 1 to"),
        ({"messages": "hi"}, "no list of 1 to"),
        ({"messages": [{"role": "user", "content": "a"}]}, "cannot be learnt"),
        ({"messages": [{"role": "user", "content": 3}]}, "content"),
        ({"messages": [{"role": "user", "content": "a"}] * 257}, "no list of 1 to"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path, line, problem):
    file = write(tmp_path, SOUND, SOUND, line)
    with pytest.raises(InvalidDatasetError, match=problem) as failure:
        read_samples(file, maker())
    assert failure.value.line == 3
    assert failure.value.file == str(file)
    assert f"{file}, line 3: " in str(failure.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)
ROLES = st.sampled_from(["user", "assistant", "system", "tool", ""])
MESSAGES = st.lists(st.fixed_dictionaries({"role": ROLES | JSON, "content": JSON}), max_size=4)
KEYS = st.sampled_from(["messages", "instruction", "input", "output", "prompt", "completion"])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=60)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(KEYS, JSON | MESSAGES).map(lambda value: json.dumps(value).encode())
)
def test_any_file_gives_samples_or_names_what_is_wrong(tmp_path, data: bytes):
    file = tmp_path / "any.jsonl"
    file.write_bytes(data)
    try:
        found = read_samples(file, maker())
    except InvalidDatasetError:  # and nothing else
        return
    assert all(sample.num_computed <= 500 for sample in found)


def test_files_that_are_none_and_files_without_end_are_refused(tmp_path):
    with pytest.raises(InvalidDatasetError, match="cannot be read"):
        read_samples(tmp_path / "missing.jsonl", maker())
    with pytest.raises(InvalidDatasetError, match="no samples"):
        read_samples(write(tmp_path, b""), maker())
    with pytest.raises(InvalidDatasetError, match="more than 2 samples") as failure:
        read_samples(write(tmp_path, SOUND, SOUND, SOUND, b"{"), maker(), max_samples=2)
    assert failure.value.line == 3


def test_chats_need_a_template_that_keeps_what_was_said(tmp_path):
    turns = [{"role": role, "content": "a b"} for role in ("user", "assistant")]
    file = write(tmp_path, {"messages": turns + turns})
    with pytest.raises(InvalidDatasetError, match="no chat template"):
        read_samples(file, maker(template=None))
    with pytest.raises(InvalidDatasetError, match="changes what was said"):
        read_samples(file, maker(template=FORGETFUL))
