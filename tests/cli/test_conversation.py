from hypothesis import given
from hypothesis import strategies as st

from hyprstream.cli.conversation import Conversation


def _spoken(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def test_system_message_comes_first():
    conversation = Conversation("be brief")
    conversation.ask("hello")
    assert [message["content"] for message in conversation.messages] == ["be brief", "hello"]


def test_resumed_messages_bring_their_last_system_message():
    told = [{"role": "system", "content": "a"}, {"role": "system", "content": "b"}]
    assert Conversation(None, [*told, *_spoken("q")]).system == "b"


def test_a_system_message_given_now_replaces_the_resumed_one():
    told = [{"role": "system", "content": "a"}]
    assert Conversation("b", told).messages == [{"role": "system", "content": "b"}]


def test_clear_keeps_the_system_message():
    conversation = Conversation("a", _spoken("q", "r"))
    conversation.clear()
    assert conversation.messages == [{"role": "system", "content": "a"}]


def test_last_turn_is_the_system_message_and_the_newest_exchange():
    conversation = Conversation("a", _spoken("q1", "r1", "q2", "r2"))
    assert [message["content"] for message in conversation.last_turn] == ["a", "q2", "r2"]


def test_retract_takes_back_the_question():
    conversation = Conversation(None, _spoken("q1", "r1"))
    conversation.ask("q2")
    conversation.retract()
    assert conversation.messages == _spoken("q1", "r1")


@given(st.integers(0, 6), st.booleans())
def test_dropping_leaves_whole_exchanges_and_the_newest_question(num_exchanges, has_system):
    texts = [text for i in range(num_exchanges) for text in (f"q{i}", f"r{i}")]
    conversation = Conversation("s" if has_system else None, _spoken(*texts))
    conversation.ask("newest")
    dropped = 0
    while conversation.drop_oldest():
        dropped += 1
        spoken = [message for message in conversation.messages if message["role"] != "system"]
        assert spoken == _spoken(*texts[2 * dropped :], "newest")
    assert dropped == num_exchanges
    assert conversation.system == ("s" if has_system else None)
