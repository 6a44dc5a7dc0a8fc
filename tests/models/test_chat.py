"""Chat templates, against transformers."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils import chat_template_utils

from hyprstream.errors import ChatTemplateError, InvalidRequestError
from hyprstream.models.chat import ChatTemplate
from hyprstream.models.template_limits import TemplateLimits
from hyprstream.models.tokenizer import Tokenizer
from tests.models.vocabularies import bpe_metadata

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "  Tell me a <joke> & 'more'\n"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "What it's like <outside> \u00e9",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": 'the "city"'}},
                "required": ["city"],
            },
        },
    }
]


def _theirs(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    rendered, _ = chat_template_utils.render_jinja_template(
        [messages], chat_template=source, add_generation_prompt=True, **SPECIAL, **options
    )
    text: str = rendered[0]
    return text


def _ours(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    return ChatTemplate(source, SPECIAL).render(messages, **options)


FEATURES = {
    "the usual loop": "{{ bos_token }}{% for m in messages %}\n  {%- if loop.first %}!{% endif %}"
    "[{{ m['role'] | upper }}] {{ m.content | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[ASSISTANT]{% endif %}",
    "blocks are trimmed": "  {% if true %}\n  a\n  {% endif %}\nb\n",
    "loop variables": "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ loop.last }}"
    "{{ loop.revindex0 }}{{ (loop.previtem or {}).role }}{{ loop.cycle('a', 'b') }},{% endfor %}",
    "break and continue": "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}"
    "{% if loop.index == 4 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0, last='') %}{% for m in messages %}"
    "{% set ns.n = ns.n + 1 %}{% set ns.last = m.content %}{% endfor %}{{ ns.n }}{{ ns.last }}",
    "macros": "{% macro show(m, tail='.') %}{{ m.role ~ ':' ~ m.content ~ tail }}{% endmacro %}"
    "{% for m in messages %}{{ show(m) }}{{ show(m, tail='!') }}{% endfor %}",
    "call blocks": "{% macro box() %}[{{ caller() }}]{% endmacro %}"
    "{% call box() %}{{ messages[0].content }}{% endcall %}",
    "recursion": "{% for x in [1, [2, [3]]] recursive %}"
    "{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}{% endif %}{% endfor %}",
    "set blocks": "{% set x %}a{{ messages[1].content }}{% endset %}{{ x }}{{ x | length }}",
    "filter blocks": "{% filter upper %}{{ messages[1].content }} ho{% endfilter %}",
    "slices": "{{ messages[1:] | length }}{{ messages[::-1][0].content }}{{ 'abcdef'[2:-1] }}",
    "selection": "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') "
    "| join('|') }}{{ messages | rejectattr('role', 'in', ['user', 'system']) | list | length }}",
    "grouping": "{% for g in messages | groupby('role') %}{{ g.grouper }}{{ g.list | length }}"
    "{% endfor %}",
    "json": "{{ tools | tojson }}{{ tools | tojson(indent=4) }}{{ messages[0] | tojson }}"
    "{{ {'b': 1, 'a': [true, none]} | tojson(sort_keys=true, separators=(',', ':')) }}",
    "tools": "{% for tool in tools or [] %}{% for k, v in tool.function.items() %}{{ k }}={{ v }};"
    "{% endfor %}{{ tool.get('missing', 'none') }}{% endfor %}",
    "text methods": "{% set c = messages[-1].content %}{{ c.strip().split(' ') | join('_') }}"
    "{{ c.startswith('  T') }}{{ c.replace('o', '0') | replace('e', '3', 1) }}"
    "{{ c.upper().find('M') }}"
    "{{ '-'.join(['a', 'b']) }}{{ '{} {x:>4}'.format(1, x=2) }}{{ '%s %03d' % ('a', 7) }}"
    "{{ '%s' | format(c) }}",
    "numbers": "{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 10 }}{{ 1.5 * 2 }}{{ 10 / 4 }}{{ -3 | abs }}"
    "{{ 3.7 | round | int }}{{ range(3) | list }}{{ [1, 2] | sum }}{{ 'ab' * 2 }}{{ [1] + [2] }}",
    "defaults": "{{ nothing }}{{ nothing | default('x') }}{{ nothing is defined }}"
    "{{ messages[0].nothing is none }}{{ none or 'y' }}{{ messages[0]['nothing'] or 'z' }}",
    "html is text": "{{ messages[-1].content | e }}{{ '<b>' | safe }}{{ '<b>' }}",
    "printed containers": "{{ messages[1] }}{{ [1, 'a', none, true] }}{{ {'a': (1, 2)} }}",
    "indent and width": "{{ 'a\nb' | indent(2) }}{{ 'a\n\nb' | indent('> ', true) }}"
    "{{ 'a' | center(5) }}|{{ 'ab'.rjust(4) }}{{ 'x y z' | truncate(4, true, '..') }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% endfor %}",
    "sorting": "{{ [3, 1, 2] | sort | join }}{{ {'b': 1, 'a': 2} | dictsort }}"
    "{{ ['b', 'a', 'b'] | unique | list }}{{ [1, 2, 3] | batch(2) | list }}{{ 'ab' | list }}"
    "{{ [2, 1] | max }}{{ 'ab' | reverse }}{{ [1, 2] | first }}{{ [1, 2] | last }}",
    "dict": "{{ dict(a=1, b=2).items() | list }}{% set j = joiner(',') %}{{ j() }}a{{ j() }}b",
    "variables": "{{ enable_thinking }}{{ documents }}",
}


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_renders_as_transformers(feature, tools):
    options = {"tools": tools, "enable_thinking": False}
    source = FEATURES[feature]
    assert _ours(source, CHAT, **options) == _theirs(source, CHAT, **options)


@settings(deadline=None, max_examples=15)
@given(contents=st.lists(st.text(max_size=8), min_size=1, max_size=4))
def test_any_contents_render_as_in_transformers(contents):
    messages = [{"role": "user", "content": content} for content in contents]
    for feature in ("the usual loop", "macros", "namespace", "selection", "json"):
        source = FEATURES[feature]
        assert _ours(source, messages, tools=TOOLS) == _theirs(source, messages, tools=TOOLS)


@pytest.mark.parametrize(
    "source",
    ["{{ raise_exception('no system role') }}", "{% for t in tools %}{% endfor %}", "{{ x.y.z }}"],
)
def test_what_fails_in_transformers_fails_here_with_its_reason(source):
    with pytest.raises(Exception) as theirs:  # noqa: PT011  whatever it is
        _theirs(source, CHAT)
    with pytest.raises(ChatTemplateError) as ours:
        _ours(source, CHAT)
    assert str(theirs.value) in str(ours.value)


def test_dates_come_from_the_clock_that_was_given():
    template = ChatTemplate(
        "{{ strftime_now('%d %b %Y') }}", {}, clock=lambda: datetime(2024, 7, 26, tzinfo=UTC)
    )
    assert template.render(CHAT) == "26 Jul 2024"


def test_generation_prompt_is_left_out_on_request():
    template = ChatTemplate(FEATURES["the usual loop"], SPECIAL)
    with_prompt = template.render(CHAT)
    assert with_prompt == template.render(CHAT, add_generation_prompt=False) + "[ASSISTANT]"


def test_rendered_examples_of_real_templates_match(test_data):
    folder = test_data / "chat_templates"
    examples = json.loads((folder / "rendered.json").read_text())
    assert len(examples["rendered"]) == 6
    for name, expected in examples["rendered"].items():
        template = ChatTemplate(
            (folder / name).read_text(),
            {key: examples[key] for key in ("bos_token", "eos_token")},
            clock=lambda: datetime(2024, 7, 26, tzinfo=UTC),
        )
        if isinstance(expected, str):
            assert template.render(examples["messages"]) == expected
        else:
            with pytest.raises(ChatTemplateError) as raised:
                template.render(examples["messages"])
            assert expected["error"] in str(raised.value)


def test_real_templates_render_tools_as_in_transformers(test_data):
    for file in sorted((test_data / "chat_templates").glob("*.jinja")):
        source = file.read_text()
        try:
            expected = _theirs(source, CHAT[1:], tools=TOOLS)
        except Exception as error:  # noqa: BLE001  whatever transformers raises
            with pytest.raises(ChatTemplateError, match=str(error)[:20]):
                _ours(source, CHAT[1:], tools=TOOLS)
        else:
            assert _ours(source, CHAT[1:], tools=TOOLS) == expected


def test_template_is_chosen_by_what_the_model_has():
    metadata = bpe_metadata()
    plain = Tokenizer.from_gguf(metadata | {"tokenizer.chat_template": "plain {{ eos_token }}"})
    both = Tokenizer.from_gguf(
        metadata | {"tokenizer.chat_template": "plain", "tokenizer.chat_template.tool_use": "tools"}
    )
    assert ChatTemplate.of(plain).render(CHAT) == "plain <|im_end|>"
    assert ChatTemplate.of(plain, for_tools=True).render(CHAT) == "plain <|im_end|>"
    assert ChatTemplate.of(both).render(CHAT) == "plain"
    assert ChatTemplate.of(both, for_tools=True).render(CHAT) == "tools"


def test_model_without_a_template_is_told_what_else_to_do():
    with pytest.raises(ChatTemplateError) as raised:
        ChatTemplate.of(Tokenizer.from_gguf(bpe_metadata()))
    assert "hyprstream infer" in raised.value.hint


def test_contents_of_text_parts_are_joined_by_newlines():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert _ours("{{ messages[0].content }}", [{"role": "user", "content": parts}]) == "a\nb"


def test_assistant_that_called_a_tool_needs_no_content():
    message = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    source = "{{ messages[0].content is none }}{{ messages[0].tool_calls[0].id }}"
    assert _ours(source, [message]) == "True1"


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "messages is no list"),
        ("Hi", "messages is no list"),
        (["Hi"], r"messages\[0\] is no object but a str"),
        ([*CHAT, {"content": "x"}], r"messages\[4\]\.role is None"),
        ([{"role": "im_start", "content": "x"}], r"messages\[0\]\.role is 'im_start'"),
        ([{"role": ["user"], "content": "x"}], r"messages\[0\]\.role is \['user'\]"),
        ([{"role": "user"}], r"messages\[0\]\.content is missing"),
        ([{"role": "user", "content": 7}], r"messages\[0\]\.content is a int"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            r"messages\[0\]\.content\[0\] is no text part but 'image_url'",
        ),
        ([{"role": "user", "content": ["x"]}], r"content\[0\] is no text part but 'a str'"),
        ([{"role": "user", "content": "x", "extra": object()}], "holds a object"),
    ],
)
def test_what_is_no_chat_is_refused_by_name(messages, problem):
    with pytest.raises(InvalidRequestError, match=problem):
        ChatTemplate("x", {}).render(messages)


def test_nesting_without_end_is_refused():
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(InvalidRequestError, match="nested"):
        ChatTemplate("x", {}).render([{"role": "user", "content": "x", "extra": deep}])


def test_chat_longer_than_the_limit_is_refused():
    template = ChatTemplate("x", {}, limits=TemplateLimits(input_chars=1000))
    template.render([{"role": "user", "content": "a" * 500}])
    with pytest.raises(InvalidRequestError, match="more than 1000"):
        template.render([{"role": "user", "content": "a" * 1000}])


@pytest.mark.parametrize("source", ["{% for %}", "{{ a", "{{ x | pprint }}", "{% nonsense %}"])
def test_what_is_no_jinja_is_refused_with_its_line(source):
    with pytest.raises(ChatTemplateError, match="no Jinja: line 2"):
        ChatTemplate(f"first\n{source}", {})
