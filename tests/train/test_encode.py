"""Records to samples: which tokens count, and what a chat template makes of messages."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.errors import InvalidDatasetError, InvalidInputError
from hyprstream.models.chat import ChatTemplate
from hyprstream.train.dataset import read_samples
from tests.train.makers import BPE, FORGETFUL, SPM, counted, made, maker, whole, write


def test_of_a_chat_what_the_assistant_says_counts_with_its_end():
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "what is <|im_end|> for"},
        {"role": "assistant", "content": "the end"},
        {"role": "user", "content": "thanks"},
        {"role": "assistant", "content": "bye"},
    ]
    (sample,) = made({"messages": messages, "id": 3})
    assert counted(BPE, sample) == "the end<|im_end|>\nbye<|im_end|>\n"
    text = whole(BPE, sample)
    assert text.startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n")
    controls = [i for i in sample.token_ids if i in BPE.control_ids]
    assert len(controls) == 10  # none of them from what the user wrote


def test_alpaca_is_a_chat_where_the_model_knows_chats_and_alpacas_text_elsewhere():
    record = {"instruction": "Add.", "input": "1 2", "output": "3"}
    (sample,) = made(record)
    assert counted(BPE, sample) == "3<|im_end|>\n"
    assert "user\nAdd.\n\n1 2<|im_end|>" in whole(BPE, sample)
    (sample,) = made(record, template=None)
    assert counted(BPE, sample).startswith("3")
    prompt = whole(BPE, sample)
    assert "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n3" in prompt
    (sample,) = made({"instruction": "Go.", "output": "ok"}, template=None)
    assert "### Input" not in whole(BPE, sample)


@pytest.mark.parametrize("tokenizer", [BPE, SPM], ids=["bpe", "spm"])
def test_of_a_completion_the_completion_counts_and_the_end(tokenizer):
    (sample,) = made({"prompt": "once upon", "completion": " a time"}, tokenizer)
    ids = tokenizer.encode("once upon a time")
    assert list(sample.token_ids[: len(ids)]) == ids
    assert len(sample.token_ids) - len(ids) <= 1
    assert set(sample.token_ids[len(ids) :]) <= tokenizer.eos_ids
    assert counted(tokenizer, sample).strip().startswith("a time")


def test_what_a_model_writes_last_is_its_end():
    (sample,) = made({"prompt": "a", "completion": " b"}, SPM)
    assert sample.token_ids[-1] in SPM.eos_ids
    assert sample.counts[-1]


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=80), st.integers(1, 20))
def test_windows_of_a_text_predict_every_token_once(text: str, max_tokens: int):
    try:
        ids = SPM.encode(text)
    except InvalidInputError:  # half a surrogate pair
        return
    found = made({"text": text}, SPM, max_tokens=max_tokens)
    assert all(sample.num_computed <= max_tokens for sample in found)
    assert all(all(sample.counts) for sample in found)
    predicted = [i for sample in found for i in sample.token_ids[1:]]
    assert [found[0].token_ids[0], *predicted][: len(ids)] == ids
    assert len(predicted) + 1 <= len(ids) + 1
    for one, following in pairwise(found):
        assert one.token_ids[-1] == following.token_ids[0]


TOOLS = ChatTemplate(
    "{% for t in tools or [] %}<tool>{{ t.function.name }}</tool>{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}"
    "{% for key, value in c.function.arguments.items() %} {{ key }}={{ value }}{% endfor %}"
    "</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    {},
)


def test_calls_of_tools_count_and_their_results_do_not():
    call = {"id": "1", "function": {"name": "add", "arguments": '{"a": 1, "b": "two"}'}}
    messages = [
        {"role": "user", "content": "sum"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "three", "tool_call_id": "1"},
        {"role": "assistant", "content": "it is three"},
    ]
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    (sample,) = made({"messages": messages, "tools": tools}, template=TOOLS)
    assert counted(BPE, sample) == "<call>add a=1 b=two</call><|im_end|>\nit is three<|im_end|>\n"
    assert whole(BPE, sample).startswith("<tool>add</tool><|im_start|>user\n")


def test_only_the_last_answer_of_a_completion_in_messages_counts():
    before = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    answer = [{"role": "assistant", "content": "four"}]
    (sample,) = made({"prompt": before, "completion": answer})
    assert counted(BPE, sample) == "four<|im_end|>\n"
    assert "two" in whole(BPE, sample)


def test_what_is_too_long_is_refused_skipped_or_cut():
    (sample,) = made({"prompt": "ab" * 5, "completion": "cd" * 40})
    short = maker(max_tokens=sample.counts.index(True) + 3)
    assert short.fitted(sample, "skip") is None
    cut = short.fitted(sample, "cut")
    assert cut is not None
    assert cut.num_computed == short.max_tokens
    assert cut.token_ids == sample.token_ids[: short.max_tokens + 1]
    assert maker(max_tokens=2).fitted(sample, "cut") is None, "of the answer nothing is left"
    with pytest.raises(InvalidInputError, match="more than"):
        short.fitted(sample, "refuse")
    assert maker().fitted(sample, "refuse") is sample


def test_a_weight_reaches_the_sample():
    (sample,) = made({"prompt": "a", "completion": "b", "weight": 0.25})
    assert sample.weight == 0.25


def test_chats_need_a_template_that_keeps_what_was_said(tmp_path):
    turns = [{"role": role, "content": "a b"} for role in ("user", "assistant")]
    file = write(tmp_path, {"messages": turns + turns})
    with pytest.raises(InvalidDatasetError, match="no chat template"):
        read_samples(file, maker(template=None))
    with pytest.raises(InvalidDatasetError, match="changes what was said"):
        read_samples(file, maker(template=FORGETFUL))
