from dataclasses import replace

import pytest

from hyprstream.cli.chat_file import load_messages
from hyprstream.engine.request import SamplingParams


def _said(runtime):
    """What the model was given in its last turn."""
    return [(message["role"], message["content"]) for message in runtime.asked[-1]]


def test_every_piped_line_is_answered_without_decoration(command_line):
    result = command_line("chat", "fake", stdin="one\n\ntwo\n")
    assert (result.code, result.out, result.err) == (0, "echo: one \necho: two \n", "")


def test_the_model_sees_what_was_said_before(command_line, runtime):
    command_line("chat", "fake", "--system", "be brief", stdin="one\ntwo\n")
    assert _said(runtime) == [
        ("system", "be brief"),
        ("user", "one"),
        ("assistant", "echo: one "),
        ("user", "two"),
    ]


def test_a_block_is_one_message(command_line, runtime):
    command_line("chat", "fake", stdin='"""one\ntwo"""\n')
    assert _said(runtime) == [("user", "one\ntwo")]


def test_defaults_are_those_of_a_chat(command_line, runtime):
    command_line("chat", "fake", stdin="one\n")
    assert runtime.params == [SamplingParams(max_tokens=500, temperature=0.7)]


def test_the_defaults_of_the_model_come_before_those_of_a_chat(command_line, runtime):
    runtime.default_params = SamplingParams(max_tokens=7, temperature=0.2, top_k=5)
    command_line("chat", "fake", stdin="one\n")
    assert runtime.params == [runtime.default_params]


def test_options_come_before_the_defaults_of_the_model(command_line, runtime):
    runtime.default_params = SamplingParams(max_tokens=7, temperature=0.2)
    command_line("chat", "fake", "--temperature", "1", "--max-tokens", "9", stdin="one\n")
    assert runtime.params == [SamplingParams(max_tokens=9, temperature=1.0)]


def test_set_changes_the_next_answer(command_line, runtime):
    command_line("chat", "fake", stdin="one\n/set temperature 0\n/set stop END OF IT\ntwo\n")
    first, second = runtime.params
    assert second == replace(first, temperature=0.0, stop=("END OF IT",))


def test_set_alone_lists_the_parameters_on_stderr(command_line):
    result = command_line("chat", "fake", stdin="/set\n")
    assert "temperature 0.7\n" in result.err
    assert result.out == ""


def test_system_and_clear_change_what_the_model_is_told(command_line, runtime):
    command_line("chat", "fake", stdin="one\n/clear\n/system be brief\ntwo\n")
    assert _said(runtime) == [("system", "be brief"), ("user", "two")]


def test_a_line_that_is_not_utf8_is_named(command_line):
    result = command_line("chat", "fake", stdin=b"one\n\xff\n")
    assert (result.code, result.out) == (2, "echo: one \n")
    assert result.err.startswith("error: line 2 of stdin is not UTF-8 text")


def test_bye_leaves(command_line, runtime):
    assert command_line("chat", "fake", stdin="/bye\none\n").code == 0
    assert runtime.asked == []


def test_a_path_is_a_message_and_not_a_command(command_line, runtime):
    command_line("chat", "fake", stdin="/usr/bin is full\n /bye now\n")
    assert _said(runtime)[-1] == ("user", " /bye now")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/dance", "/dance is not a command"),
        ("/set temperature hot", "temperature is 'hot'"),
        ("/set temperature 1000", "temperature is 1000.0"),
        ("/set colour red", "'colour' is not a sampling parameter"),
        ("/save", "/save needs a file name"),
    ],
)
def test_a_wrong_command_in_a_pipe_ends_the_chat_with_an_error(command_line, line, message):
    result = command_line("chat", "fake", stdin=f"{line}\none\n")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: {message}")


def test_help_lists_every_command(command_line, golden):
    golden("chat-commands", command_line("chat", "fake", stdin="/help\n").err)


def test_a_model_without_a_template_cannot_chat(command_line):
    result = command_line("chat", "plain", stdin="one\n")
    assert result.code == 2
    assert "plain has no chat template" in result.err


def test_turns_are_saved_as_they_end(command_line, tmp_path):
    file = tmp_path / "chat.jsonl"
    # The second message breaks the model: what was said before is on disk already.
    assert command_line("chat", "fake", "--save-history", str(file), stdin="one\nbreak\n").code == 1
    assert load_messages(file) == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "echo: one "},
    ]


def test_a_chat_goes_on_where_it_was_left(command_line, runtime, tmp_path):
    file = str(tmp_path / "chat.jsonl")
    command_line("chat", "fake", "--system", "be brief", "--save-history", file, stdin="one\n")
    command_line("chat", "fake", "--history", file, "--save-history", file, stdin="two\n")
    assert _said(runtime) == [
        ("system", "be brief"),
        ("user", "one"),
        ("assistant", "echo: one "),
        ("user", "two"),
    ]
    assert len(load_messages(tmp_path / "chat.jsonl")) == 5


def test_save_writes_the_chat_once(command_line, tmp_path):
    file = tmp_path / "chat.jsonl"
    result = command_line("chat", "fake", stdin=f"one\n/save {file}\n/save {file}\n")
    assert result.code == 2
    assert "File exists" in result.err
    assert [message["content"] for message in load_messages(file)] == ["one", "echo: one "]


def test_a_damaged_history_is_refused_before_a_model_is_loaded(command_line, runtime, tmp_path):
    file = tmp_path / "chat.jsonl"
    file.write_text("nonsense\n")
    assert command_line("chat", "fake", "--history", str(file)).code == 2
    assert runtime.loaded == []


def test_a_chat_that_outgrows_the_context_forgets_the_oldest_and_says_so_once(
    command_line, runtime
):
    runtime.context_length = 16  # 4 tokens are kept for the answer
    result = command_line(
        "chat", "fake", "--system", "be brief", stdin="one a b\ntwo a b\nthree a b\nfour a b\n"
    )
    assert _said(runtime) == [
        ("system", "be brief"),
        ("user", "three a b"),
        ("assistant", "echo: three a b "),
        ("user", "four a b"),
    ]
    assert result.err.count("\n") == 1
    assert result.err.startswith("warning: the chat outgrew the model's context")


def test_a_single_message_beyond_the_context_is_refused(command_line, runtime):
    runtime.context_length = 4
    result = command_line("chat", "fake", stdin="one two three four five\n")
    assert (result.code, result.out) == (2, "")
    assert "the prompt has 5 tokens" in result.err


def test_an_answer_cut_at_its_limit_says_how_to_move_it(command_line):
    result = command_line("chat", "fake", "--max-tokens", "1", stdin="one\n")
    assert "/set max_tokens" in result.err


def test_run_is_chat(command_line):
    assert command_line("run", "fake", stdin="one\n").out == "echo: one \n"
