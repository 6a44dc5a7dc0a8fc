"""The messages of a chat: what the model is told, and what is forgotten first. Plain Python."""

from collections.abc import Sequence

Message = dict[str, str]


class Conversation:
    """A system message and what was said since.

    The system message is kept apart, because it outlives `clear` and `drop_oldest`.
    Dropping takes a user message with everything that answered it; the newest question is
    never dropped. Checked by `test_conversation.py`.

    Attributes:
        system: What the model is told before the chat, if anything.
    """

    def __init__(self, system: str | None = None, messages: Sequence[Message] = ()) -> None:
        told = [message["content"] for message in messages if message["role"] == "system"]
        self.system = system if system is not None else (told[-1] if told else None)
        self._spoken = [message for message in messages if message["role"] != "system"]

    @property
    def messages(self) -> list[Message]:
        """Everything, as a chat template takes it."""
        system = [] if self.system is None else [_message("system", self.system)]
        return [*system, *self._spoken]

    @property
    def last_turn(self) -> list[Message]:
        """The system message and the newest exchange."""
        return [message for message in self.messages if message["role"] == "system"] + (
            self._spoken[-2:]
        )

    def ask(self, text: str) -> None:
        """Add what the user says."""
        self._spoken.append(_message("user", text))

    def answer(self, text: str) -> None:
        """Add what the model says."""
        self._spoken.append(_message("assistant", text))

    def retract(self) -> None:
        """Take back a question that got no answer."""
        assert self._spoken[-1]["role"] == "user", "only a question can be taken back"
        self._spoken.pop()

    def clear(self) -> None:
        """Forget everything but the system message."""
        self._spoken.clear()

    def drop_oldest(self) -> bool:
        """Forget the oldest exchange; False if only the newest question is left."""
        for index, message in enumerate(self._spoken):
            if index > 0 and message["role"] == "user":
                del self._spoken[:index]
                return True
        return False


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
