"""Chats to tokens: the control tokens are the template's, never the user's."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.models.chat import ChatTemplate, encode_chat
from hyprstream.models.tokenizer import Tokenizer
from tests.models.vocabularies import bpe_metadata, golden, spm_metadata

CHATML = ChatTemplate(
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n"
    "{% endfor %}{% for t in tools or [] %}{{ t | tojson }}{% endfor %}<|im_start|>assistant\n",
    {},
)
PHI3 = ChatTemplate(
    "{{ bos_token }}{% for m in messages %}<|user|>\n{{ m.content }}<|end|>\n{% endfor %}",
    {"bos_token": "<s>"},
)
BPE = Tokenizer.from_gguf(bpe_metadata())
SPM = Tokenizer.from_gguf(spm_metadata())
PHI = Tokenizer.from_gguf(spm_metadata() | golden()["spm"]["variants"]["phi-3"]["metadata"])
MODELS = pytest.mark.parametrize(
    ("tokenizer", "template"), [(BPE, CHATML), (SPM, PHI3), (PHI, PHI3)], ids=["bpe", "spm", "phi3"]
)

CONTROLS = ("<|im_start|>", "<|im_end|>", "<|user|>", "<|end|>", "<s>", "</s>", "<unk>")
PARTS = ("<|im_", "start|>", "<", "|>", "<tool>", " a ", "\n", "\u65e5", "<|im_s", "tart|>", "s>")


def _controls(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Keep the control tokens of `ids`: those that are no text."""
    shown = (tokenizer.decode([i], continues=True) for i in ids)
    return [i for i, text in zip(ids, shown, strict=True) if not text]


def _chat(*contents: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content} for content in contents]


@MODELS
@settings(deadline=None, max_examples=40)
@given(contents=st.lists(st.text(max_size=10) | st.sampled_from(PARTS), min_size=1, max_size=3))
def test_chat_without_control_tokens_is_the_rendered_text_encoded(tokenizer, template, contents):
    messages = _chat(*contents)
    ids = encode_chat(tokenizer, template, messages)
    rendered = template.render(messages).replace("\ufdd0", "")
    assert ids == tokenizer.encode(rendered, add_special=False, parse_special=True)


@MODELS
@settings(deadline=None, max_examples=60)
@given(parts=st.lists(st.sampled_from([*CONTROLS, *PARTS]), max_size=8))
def test_control_tokens_in_contents_stay_text(tokenizer, template, parts):
    content = "".join(parts)
    ids = encode_chat(tokenizer, template, _chat(content))
    harmless = encode_chat(tokenizer, template, _chat("x"))
    assert _controls(tokenizer, ids) == _controls(tokenizer, harmless)
    shown = tokenizer.decode(ids, skip_special=False)
    # SentencePiece puts a blank after an added token; Phi-3 drops white space there.
    assert "".join(content.split()) in "".join(shown.split())
    assert "\ufdd0" not in shown


def test_text_around_a_marked_token_is_encoded_as_if_nothing_were_special():
    ids = encode_chat(BPE, CHATML, _chat("say <|im_end|> now"))
    inside = BPE.encode("user\nsay <|im_end|> now", add_special=False)
    assert ids[1 : 1 + len(inside)] == inside


def test_control_tokens_in_contents_are_parsed_on_request():
    messages = _chat("a<|im_end|>")
    ids = encode_chat(BPE, CHATML, messages, parse_special_in_content=True)
    assert ids == BPE.encode(CHATML.render(messages), add_special=False, parse_special=True)
    assert len(_controls(BPE, ids)) == 1 + len(_controls(BPE, encode_chat(BPE, CHATML, _chat("a"))))


def test_tokens_added_by_users_are_parsed_in_contents():
    (tool,) = BPE.encode("<tool>")
    assert tool in encode_chat(BPE, CHATML, _chat("a <tool> b"))


def test_control_tokens_in_text_parts_tools_and_names_stay_text():
    parts = [{"type": "text", "text": "<|im_start|>"}, {"type": "text", "text": "x"}]
    message = {"role": "user", "content": parts, "name": "<|im_end|>"}
    tools = [{"<|im_start|>": "<|im_end|>", "list": ["<|im_start|>"]}]
    template = ChatTemplate(
        "{% for m in messages %}<|im_start|>{{ m.name }}{{ m.content }}{% endfor %}"
        "{{ tools | tojson }}{{ note }}",
        {},
    )
    ids = encode_chat(BPE, template, [message], tools=tools, note="<|im_end|>")
    assert len(_controls(BPE, ids)) == 1


def test_control_tokens_that_overlap_are_all_found():
    metadata = bpe_metadata()
    added = ["<a><b>", "<b><c>", "<a>", "<c>"]
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], *added]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], *[3] * 4]
    tokenizer = Tokenizer.from_gguf(metadata)
    ids = encode_chat(tokenizer, ChatTemplate("{{ messages[0].content }}", {}), _chat("<a><b><c>"))
    assert not _controls(tokenizer, ids)


def test_templates_still_see_what_contents_hold():
    template = ChatTemplate("{{ '<think>' in messages[0].content }}", {})
    assert BPE.decode(encode_chat(BPE, template, _chat("<think><|im_end|></think>"))) == "True"
