"""Rows of the forms that data sets have, and the one record that they all become."""

from typing import Any

import pytest

from hyprstream.errors import InvalidRequestError
from hyprstream.train.records import (
    Chat,
    Completion,
    Instruction,
    Preference,
    Rated,
    Text,
    content_of,
    parse_record,
    prompt_of,
)

USER, BOT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
SYSTEM = {"role": "system", "content": "be brief"}
BAD = {"role": "assistant", "content": "go away"}


@pytest.mark.parametrize(
    ("row", "record"),
    [
        ({"messages": [USER, BOT]}, Chat(messages=(USER, BOT))),
        (
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
            Chat(messages=(USER, BOT)),
        ),
        (
            {
                "system": "be brief",
                "conversations": [{"from": "user", "value": "hi"}, {"from": "gpt", "value": "ho"}],
            },
            Chat(messages=(SYSTEM, USER, BOT)),
        ),
        ({"conversations": [USER, BOT]}, Chat(messages=(USER, BOT))),
        (
            {"instruction": "a", "input": "b", "output": "c"},
            Instruction(instruction="a", context="b", answer="c"),
        ),
        (
            {"instruction": "a", "context": "", "response": "c", "category": "x"},
            Instruction(instruction="a", context="", answer="c"),
        ),
        ({"prompt": "a", "completion": "b"}, Completion(prompt="a", answer="b")),
        ({"prompt": "a", "response": "b"}, Completion(prompt="a", answer="b")),
        ({"question": "a", "answer": "b"}, Completion(prompt="a", answer="b")),
        ({"prompt": [USER], "completion": [BOT]}, Chat(messages=(USER, BOT), begin=1)),
        ({"text": "a", "weight": 2}, Text(text="a", weight=2.0)),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            Preference(
                chosen=Completion(prompt="a", answer="b"),
                rejected=Completion(prompt="a", answer="c"),
            ),
        ),
        (
            {"chosen": [USER, BOT], "rejected": [USER, BAD]},
            Preference(
                chosen=Chat(messages=(USER, BOT), begin=1),
                rejected=Chat(messages=(USER, BAD), begin=1),
            ),
        ),
        (
            {"prompt": "hi", "chosen": [USER, BOT], "rejected": [USER, BAD], "score": 3},
            Preference(
                chosen=Chat(messages=(USER, BOT), begin=1),
                rejected=Chat(messages=(USER, BAD), begin=1),
            ),
        ),
        (
            {"prompt": [SYSTEM, USER], "chosen": [BOT], "rejected": [BAD]},
            Preference(
                chosen=Chat(messages=(SYSTEM, USER, BOT), begin=2),
                rejected=Chat(messages=(SYSTEM, USER, BAD), begin=2),
            ),
        ),
        (
            {"prompt": "a", "completion": "b", "label": True},
            Rated(lesson=Completion(prompt="a", answer="b"), liked=True),
        ),
        (
            {"messages": [USER, BOT], "thumbs": "down"},
            Rated(lesson=Chat(messages=(USER, BOT)), liked=False),
        ),
        ({"text": "a", "label": 1}, Text(text="a")),
    ],
)
def test_the_keys_of_a_row_show_its_form(row, record):
    assert parse_record(row) == record


def test_a_named_form_is_taken_where_keys_would_show_another():
    row = {"messages": [USER, BOT], "text": "a"}
    assert parse_record(row, "text") == Text(text="a")
    with pytest.raises(InvalidRequestError, match="instruction is missing"):
        parse_record(row, "alpaca")


def test_what_is_null_in_a_table_is_left_out():
    turn = {"role": "assistant", "content": "ho", "tool_calls": None, "name": None}
    assert parse_record({"messages": [USER, turn], "tools": None}) == Chat(messages=(USER, BOT))


def test_arguments_of_calls_are_objects_whatever_way_they_are_written():
    calls = [
        {"function": {"name": "f", "arguments": '{"x": [1]}'}, "id": "7"},
        {"function": {"name": "f", "arguments": {"x": [1]}}, "id": "7", "type": "function"},
        {"name": "f", "arguments": '{"x": [1]}', "id": "7"},
    ]
    for call in calls:
        turn = {"role": "assistant", "tool_calls": [call]}
        chat = parse_record({"messages": [USER, turn], "tools": '[{"name": "f"}]'})
        assert isinstance(chat, Chat)
        assert chat.tools == ({"name": "f"},)
        calls_found: Any = chat.messages[1]["tool_calls"]
        [found] = calls_found
        assert found["function"]["arguments"] == {"x": [1]}
        assert (found["function"]["name"], found["id"], found["type"]) == ("f", "7", "function")
        assert chat.messages[1]["content"] is None


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": [{"content": "a"}]}, r"messages\[0\].role is missing"),
        ({"messages": ["a"]}, r"messages\[0\] is no object"),
        ({"conversations": [{"from": "dog", "value": "wuff"}]}, "from is 'dog'"),
        ({"messages": [USER], "tools": "{"}, "tools is no JSON"),
        ({"messages": [USER], "tools": {}}, "tools is no list"),
        ({"messages": [USER], "tools": [1]}, r"tools\[0\] is no object"),
        ({"messages": [{**BOT, "tool_calls": "f"}]}, "tool_calls is no list"),
        ({"messages": [{**BOT, "tool_calls": [{"id": "1"}]}]}, "names no function"),
        (
            {"messages": [{**BOT, "tool_calls": [{"name": "f", "arguments": "{"}]}]},
            r"tool_calls\[0\].arguments is no JSON",
        ),
        ({"text": "a", "weight": 0}, "weight is 0"),
        ({"text": "a", "weight": True}, "weight is True"),
        ({"text": "a", "weight": float("inf")}, "weight is inf"),
        ({"text": "a", "thumbs": "sideways"}, "thumbs is 'sideways'"),
        ({"chosen": [USER, BOT], "rejected": [BOT, BAD]}, "begin with different messages"),
        ({"chosen": [BOT], "rejected": [BAD]}, "begin with different messages"),
        ({"chosen": "a", "rejected": "b"}, "prompt is missing"),
    ],
)
def test_what_is_wrong_is_named(row, problem):
    with pytest.raises(InvalidRequestError, match=problem):
        parse_record(row)


def test_records_that_ask_the_same_have_one_prompt():
    first, *others = (
        parse_record(row)
        for row in (
            {"messages": [USER, BOT]},
            {"messages": [USER, BAD]},
            {"messages": [USER, BAD, USER, BOT]},
            {"prompt": [USER], "completion": [BOT]},
            {"chosen": [USER, BOT], "rejected": [USER, BAD]},
            {"messages": [USER, BOT], "thumbs": "up"},
        )
    )
    assert {prompt_of(record) for record in others} == {prompt_of(first)}
    assert len({content_of(record) for record in (first, *others)}) == 1 + len(others)
