"""`hyprstream chat`: a conversation, on a terminal or through a pipe.

On a terminal Ctrl-C stops the answer and not the chat. What was said before the stop stays
in the conversation, since the user has read it.
"""

import dataclasses
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from hyprstream.cli.chat_file import ChatLog, load_messages, save_messages
from hyprstream.cli.conversation import Conversation
from hyprstream.cli.lines import Lines, PipeLines, TerminalLines
from hyprstream.cli.options import (
    AdapterOption,
    ForceOption,
    LoadOptions,
    ModelArgument,
    SamplingOptions,
    grouped,
    parse_sampling,
    require_text,
)
from hyprstream.cli.output import Output
from hyprstream.cli.session import (
    Context,
    Generation,
    Model,
    SamplingParams,
    Session,
    load_model,
    session_of,
)
from hyprstream.errors import ChatTemplateError, HyprstreamError, InvalidRequestError

_MAX_TOKENS = 500
_TEMPERATURE = 0.7
_ANSWER_SHARE = 4  # of the context, at most one part in so many is kept free for the answer
_COMMAND = re.compile(r"/([a-z]+)(?:\s|$)")  # "/usr/bin is full" is a message


@dataclass(frozen=True, slots=True, kw_only=True)
class TalkOptions:
    """What a chat begins with, and where it is kept."""

    system: Annotated[
        str | None, typer.Option(help="What the model is told before the chat.", metavar="TEXT")
    ] = None
    history: Annotated[
        Path | None, typer.Option(help="Go on with the chat in this file.", metavar="FILE")
    ] = None
    save_history: Annotated[
        Path | None,
        typer.Option(help="Add every turn to this file, as JSON lines.", metavar="FILE"),
    ] = None


@grouped
def chat(
    ctx: Context,
    *,
    model: ModelArgument = None,
    talking: TalkOptions,
    adapter: AdapterOption = None,
    force: ForceOption = False,
    sampling: SamplingOptions,
    loading: LoadOptions,
) -> None:
    """Talk with a model.

    Enter sends, Alt-Enter adds a line, text between triple quotes may have many lines.

    Ctrl-C stops an answer, Ctrl-D or /bye leaves, /help lists the commands.

    From a pipe, every line is a message.

    Unless the model says otherwise: --max-tokens 500 and --temperature 0.7.
    """
    session = session_of(ctx)
    talk(
        session,
        talking,
        sampling,
        lambda: load_model(session, model, loading, adapter=adapter, force=force),
    )


def talk(
    session: Session, talking: TalkOptions, sampling: SamplingOptions, load: Callable[[], Model]
) -> None:
    """Talk with the model that `load` gives, once all else is found to be sound."""
    from hyprstream.runtime import SamplingParams

    SamplingParams(**sampling.overrides())  # refuse nonsense before weights are loaded
    if talking.system is not None:
        require_text("--system", talking.system)
    history, file = talking.history, talking.save_history
    conversation = Conversation(talking.system, load_messages(history) if history else ())
    log = ChatLog(file, conversation.messages) if file else None
    served = load()
    if not served.has_chat_template:
        raise ChatTemplateError(
            f"{served.ref} has no chat template, so it cannot chat",
            hint="Use `hyprstream infer`, which continues a text.",
        )
    interactive = sys.stdin.isatty() and sys.stderr.isatty()
    chatting = Chat(
        served,
        params=_params(served, sampling),
        conversation=conversation,
        output=session.output,
        log=log,
        interactive=interactive,
    )
    chatting.run(TerminalLines() if interactive else PipeLines())


def _params(model: Model, sampling: SamplingOptions) -> SamplingParams:
    """Join the options with the model's defaults, and those with ours where it has none."""
    defaults = model.default_params
    ours: dict[str, Any] = {}
    if defaults.max_tokens is None:
        ours["max_tokens"] = _MAX_TOKENS
    if defaults.temperature == type(defaults)().temperature:
        ours["temperature"] = _TEMPERATURE
    return dataclasses.replace(defaults, **{**ours, **sampling.overrides()})


class Chat:
    """Answers messages with one model, and obeys the commands among them.

    Tested with a model of a few lines: through pipes in `test_chat.py`, on a
    pseudo-terminal in `test_chat_terminal.py`.
    """

    def __init__(
        self,
        model: Model,
        *,
        params: SamplingParams,
        conversation: Conversation,
        output: Output,
        log: ChatLog | None,
        interactive: bool,
    ) -> None:
        self._model = model
        self._params = params
        self._conversation = conversation
        self._output = output
        self._log = log
        self._interactive = interactive
        self._told_of_dropping = False

    def run(self, lines: Lines) -> None:
        """Answer messages until there are no more.

        Raises:
            HyprstreamError: Something failed and nobody is there to try again.
        """
        if self._interactive:
            adapter = f" with {self._model.adapter}" if self._model.adapter else ""
            self._output.done(f"{self._model.ref}{adapter}: /help lists the commands, /bye leaves.")
        while (text := self._read(lines)) is not None:
            try:
                if not self._turn(text):
                    return
            except HyprstreamError as error:
                if not self._interactive:
                    raise
                self._output.failure(error)

    def _read(self, lines: Lines) -> str | None:
        while True:
            try:
                return lines.read()
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                self._output.hint("Ctrl-D or /bye leaves.")

    def _turn(self, text: str) -> bool:
        """Answer or obey one message; False if it says goodbye."""
        command = _COMMAND.match(text)
        if command is None:
            if text.strip():
                self._answer(text)
            return True
        name = command[1]
        if name == "bye":
            return False
        if name not in _COMMANDS:
            raise InvalidRequestError(
                f"/{name} is not a command",
                hint="/help lists the commands; a blank before the slash makes it a message.",
            )
        _COMMANDS[name](self, text[command.end() :].strip())
        return True

    def _answer(self, text: str) -> None:
        self._conversation.ask(text)
        parts: list[str] = []
        finish = None
        try:
            with self._start() as generation:
                for delta in generation:
                    parts.append(delta.text)
                    self._output.text(delta.text)
                finish = generation.completion.finish_reason
        except KeyboardInterrupt:
            if not self._interactive:
                raise
        except HyprstreamError:
            self._conversation.retract()
            raise
        self._output.text("\n")
        if finish is None and not parts:  # stopped before it said anything
            self._conversation.retract()
            return
        if finish == "length":
            self._output.hint("The answer reached its limit; /set max_tokens N moves it.")
        self._conversation.answer("".join(parts))
        if self._log is not None:
            self._log.append(self._conversation.last_turn)

    def _start(self) -> Generation:
        """Begin to answer, forgetting the oldest exchanges as far as the context demands."""
        context = self._model.context_length
        room = min(self._params.max_tokens or context, context // _ANSWER_SHARE)
        messages = self._conversation.messages
        while len(self._model.chat_tokens(messages)) + room > context:
            if not self._conversation.drop_oldest():
                break  # one question alone: the model says whether it fits
            messages = self._conversation.messages
            if not self._told_of_dropping:
                self._told_of_dropping = True
                self._output.warn("the chat outgrew the model's context: it forgets what is oldest")
        return self._model.chat_stream(messages, self._params)

    def set_system(self, text: str) -> None:
        """Tell the model TEXT from now on; without TEXT, nothing."""
        self._conversation.system = text or None

    def set_parameter(self, text: str) -> None:
        """Change how answers are sampled; without NAME, show it."""
        name, _, value = text.partition(" ")
        if name:
            overrides = parse_sampling(name, value.strip())
            self._params = dataclasses.replace(self._params, **overrides)
            return
        for field in dataclasses.fields(self._params):
            self._output.done(f"{field.name} {getattr(self._params, field.name)}")

    def clear(self, _: str) -> None:
        """Forget what was said; a file of --save-history keeps it."""
        self._conversation.clear()

    def save(self, text: str) -> None:
        """Write the chat to FILE, as JSON lines."""
        if not text:
            raise InvalidRequestError("/save needs a file name", hint="Write /save FILE.")
        save_messages(Path(text).expanduser(), self._conversation.messages)
        self._output.done(f"saved to {text}")

    def help(self, _: str) -> None:
        """List the commands."""
        for name, command in _COMMANDS.items():
            argument = _ARGUMENTS.get(name, "")
            self._output.done(f"/{name} {argument}".ljust(18) + (command.__doc__ or ""))
        self._output.done("/bye".ljust(18) + "Leave; so does Ctrl-D.")


_COMMANDS: Mapping[str, Callable[[Chat, str], None]] = {
    "system": Chat.set_system,
    "set": Chat.set_parameter,
    "clear": Chat.clear,
    "save": Chat.save,
    "help": Chat.help,
}
_ARGUMENTS = {"system": "[TEXT]", "set": "[NAME VALUE]", "save": "FILE"}
