import json
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyprstream.cli.chat_file import ChatLog, load_messages, save_messages
from hyprstream.errors import InvalidRequestError

SYSTEM = {"role": "system", "content": "be brief"}
TURN = [{"role": "user", "content": "caf\u00e9\n?"}, {"role": "assistant", "content": "\x9b yes"}]
LATER = [{"role": "user", "content": "again"}, {"role": "assistant", "content": "no"}]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "chat.jsonl"


def test_what_was_saved_is_loaded(file):
    save_messages(file, [SYSTEM, *TURN])
    assert load_messages(file) == [SYSTEM, *TURN]


def test_each_line_is_one_json_message(file):
    save_messages(file, TURN)
    assert [json.loads(line) for line in file.read_text("utf-8").splitlines()] == TURN


def test_nobody_else_may_read_a_chat(file):
    save_messages(file, TURN)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_save_refuses_a_file_that_exists(file):
    file.write_text("precious")
    with pytest.raises(InvalidRequestError, match="cannot be used"):
        save_messages(file, TURN)
    assert file.read_text() == "precious"


def test_a_new_log_begins_with_what_was_said_before(file):
    log = ChatLog(file, [SYSTEM, *TURN])
    log.append([SYSTEM, *LATER])
    assert load_messages(file) == [SYSTEM, *TURN, *LATER]


def test_a_log_that_goes_on_does_not_repeat_what_it_holds(file):
    ChatLog(file, []).append([SYSTEM, *TURN])
    ChatLog(file, [SYSTEM, *TURN]).append([SYSTEM, *LATER])
    assert load_messages(file) == [SYSTEM, *TURN, *LATER]


def test_a_changed_system_message_is_written_again(file):
    log = ChatLog(file, [SYSTEM])
    changed = {"role": "system", "content": "be long"}
    log.append([SYSTEM, *TURN])
    log.append([changed, *LATER])
    log.append([changed, *TURN])
    assert load_messages(file) == [SYSTEM, *TURN, changed, *LATER, *TURN]


@given(st.data())
def test_a_log_killed_at_any_byte_goes_on_with_the_messages_that_were_whole(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("chat") / "chat.jsonl"
    save_messages(file, [SYSTEM, *TURN])
    whole = file.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    file.write_bytes(whole[:cut])
    kept = load_messages(file)
    assert kept == [SYSTEM, *TURN][: len(kept)]
    # A message whose line end alone is missing is whole.
    assert len(kept) == (whole[:cut] + b"\n").count(b"}\n")
    ChatLog(file, []).append(LATER)
    assert load_messages(file) == [*kept, *LATER]


@pytest.mark.parametrize(
    "line",
    ["not json", "[]", "3", '{"role": "user"}', '{"role": "robot", "content": "x"}', "[" * 100_000],
)
def test_a_line_that_is_no_message_is_named(file, line):
    save_messages(file, TURN)
    file.write_text(file.read_text("utf-8") + line + "\n" + "{}\n", "utf-8")
    with pytest.raises(InvalidRequestError, match=r"line 3 of .*chat\.jsonl"):
        load_messages(file)


def test_a_log_does_not_touch_a_file_that_holds_something_else(file):
    file.write_text("a shopping list\nmilk\n")
    with pytest.raises(InvalidRequestError, match="line 1"):
        ChatLog(file, [])
    assert file.read_text() == "a shopping list\nmilk\n"


def test_a_log_does_not_touch_a_line_that_holds_something_else(file):
    file.write_text("precious")
    with pytest.raises(InvalidRequestError, match="line 1"):
        ChatLog(file, [])
    assert file.read_text() == "precious"


@pytest.mark.parametrize("use", [load_messages, lambda file: ChatLog(file, [])])
def test_a_folder_is_not_a_chat(tmp_path, use):
    with pytest.raises(InvalidRequestError, match="Is a directory"):
        use(tmp_path)


def test_a_file_in_a_missing_folder_cannot_be_written(tmp_path):
    with pytest.raises(InvalidRequestError, match="No such file"):
        ChatLog(tmp_path / "missing" / "chat.jsonl", [])
