"""Chats to prompts: messages in OpenAI's form, through the model's own Jinja template.

A template comes with a model and is as untrusted as its weights; it runs in
`template_sandbox`. What users write is untrusted too: `encode_chat` makes sure that their
text does not become control tokens, which only the template may write.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Self

from jinja2 import Template, TemplateError, TemplateSyntaxError
from jinja2.exceptions import SecurityError

from hyprstream.errors import ChatTemplateError, InvalidRequestError
from hyprstream.models.template_limits import Budget, BudgetError, TemplateLimits
from hyprstream.models.template_sandbox import TemplateEnvironment
from hyprstream.models.tokenizer import Tokenizer

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_MAX_ERROR_CHARS = 300
_MAX_DEPTH = 100  # of nested data; JSON schemas of tools have less than 20


def local_time() -> datetime:
    """Return the time that clocks on the wall show."""
    return datetime.now(tz=UTC).astimezone()


class ChatTemplate:
    r"""One model's way to write a chat as text.

    Compiled once; every rendering has its own budget. May be used from several threads.

    Example:
        >>> template = ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}\n"
        ...                         "{% endfor %}", {})
        >>> template.render([{"role": "user", "content": "Hi"}])
        'user: Hi\n'
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        *,
        clock: Callable[[], datetime] = local_time,
        timer: Callable[[], float] = time.monotonic,
        limits: TemplateLimits | None = None,
    ) -> None:
        """Compile a template.

        Args:
            source: Jinja, as Hugging Face models carry it.
            special_tokens: What it may name: `bos_token` -> `<s>`.
            clock: What its `strftime_now` shows.
            timer: Seconds that pass; measures the limit on time.
            limits: What it may cost.

        Raises:
            ChatTemplateError: The source is no Jinja, or too long.
        """
        self._special_tokens = dict(special_tokens)
        self._clock = clock
        self._timer = timer
        self._limits = limits or TemplateLimits()
        if len(source) > self._limits.source_chars:
            raise ChatTemplateError(
                f"the chat template has {len(source)} characters, "
                f"more than {self._limits.source_chars}",
                hint="Give a shorter template.",
            )
        try:
            self._code = self._environment().compile(source)
        except Exception as error:  # templates can fail in any way Python can
            raise _failure(error) from error

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, for_tools: bool = False) -> Self:
        """Compile the template that comes with a model.

        Args:
            tokenizer: Of the model.
            for_tools: Take the one for chats with tools, if the model has it apart.

        Raises:
            ChatTemplateError: The model has no template, or one that does not compile.
        """
        sources = tokenizer.chat_templates
        source = sources.get("tool_use") if for_tools else None
        source = source or sources.get("default")
        if source is None:
            raise ChatTemplateError(
                "the model has no chat template",
                hint="It may be a base model: use `hyprstream infer` to continue plain text.",
            )
        return cls(source, tokenizer.special_tokens)

    def render(
        self,
        messages: Sequence[object],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """Write a chat as text.

        Args:
            messages: The chat so far, in OpenAI's form: mappings with a `role` and a
                `content`, which is text or a list of text parts; parts are joined by newlines.
            add_generation_prompt: End where the assistant's answer begins.
            tools: JSON schemas of what the model may call.
            documents: Texts to answer from, for models that know such.
            **extra: Further variables of the template, as `enable_thinking`.

        Raises:
            InvalidRequestError: The messages are no chat.
            ChatTemplateError: The template refused the chat, failed, took too much or tried
                what it may not.
        """
        return self._write(
            _unchanged,
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            documents=documents,
            **extra,
        )

    def _write(
        self, change: Callable[[str], str], messages: Sequence[object], **variables: Any
    ) -> str:
        """Render with every text that the caller gave changed, except roles."""
        chat = [
            {**_plain(message, "messages", change), "role": message["role"]}
            for message in _checked_messages(messages)
        ]
        given = {**_plain(variables, "the chat", change), "messages": chat}
        environment = self._environment()
        num_chars = environment.budget.measure(given)
        if num_chars > self._limits.input_chars:
            raise InvalidRequestError(
                f"the chat has {num_chars} characters, more than {self._limits.input_chars}",
                hint="Send fewer or shorter messages.",
            )
        try:
            globals_ = environment.make_globals(None)
            template = Template.from_code(environment, self._code, globals_)
            text = template.render({**self._special_tokens, **given})
        except Exception as error:  # templates can fail in any way Python can
            raise _failure(error) from error
        if len(text) > self._limits.output_chars:
            raise ChatTemplateError(
                f"the chat template writes {len(text)} characters, "
                f"more than {self._limits.output_chars}",
                hint="Send fewer or shorter messages, or use another template.",
            )
        return text

    def _environment(self) -> TemplateEnvironment:
        return TemplateEnvironment(budget=Budget(self._limits, self._timer), clock=self._clock)


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[object],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    parse_special_in_content: bool = False,
    **extra: Any,
) -> list[int]:
    """Write a chat as tokens; the control tokens in it are the template's own.

    Control tokens in what users wrote are marked before the template sees them, and the
    tokenizer takes marked ones as text. A chat without any is exactly what encoding the
    rendered text gives. A template that builds a control token from parts of user text, as
    none that we know does, defeats this.

    Args:
        tokenizer: Of the model.
        template: How the model writes chats.
        messages: The chat so far, as for `ChatTemplate.render`.
        add_generation_prompt: End where the assistant's answer begins.
        tools: JSON schemas of what the model may call.
        documents: Texts to answer from.
        parse_special_in_content: Users may write control tokens.
        **extra: Further variables of the template.

    Raises:
        InvalidRequestError: The messages are no chat.
        ChatTemplateError: As from `ChatTemplate.render`.
    """
    text = template._write(
        _unchanged if parse_special_in_content else tokenizer.guard,
        messages,
        add_generation_prompt=add_generation_prompt,
        tools=tools,
        documents=documents,
        **extra,
    )
    return tokenizer.encode_guarded(text)


def _unchanged(text: str) -> str:
    return text


def _checked_messages(messages: Sequence[object]) -> list[dict[str, Any]]:
    if not isinstance(messages, (list, tuple)) or not messages:
        raise InvalidRequestError(
            "messages is no list with at least one message",
            hint='Send messages as [{"role": "user", "content": "..."}].',
        )
    return [_checked_message(message, f"messages[{n}]") for n, message in enumerate(messages)]


def _checked_message(message: object, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequestError(
            f"{where} is no object but {_kind(message)}",
            hint="A message has a role and a content.",
        )
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise InvalidRequestError(
            f"{where}.role is {ascii(role)[:60]}", hint=f"Roles: {', '.join(ROLES)}."
        )
    if isinstance(content, (list, tuple)):
        # As llama.cpp and vLLM do for templates that know only text.
        parts = (_part_text(part, f"{where}.content[{n}]") for n, part in enumerate(content))
        return {**message, "content": "\n".join(parts)}
    if isinstance(content, str) or (content is None and role == "assistant"):
        return dict(message)
    raise InvalidRequestError(
        f"{where}.content is {_kind(content)}",
        hint="A content is text, or a list of text parts; an assistant's may be null.",
    )


def _part_text(part: object, where: str) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text":
        text = part.get("text")
        if isinstance(text, str):
            return text
    kind = part.get("type") if isinstance(part, Mapping) else _kind(part)
    raise InvalidRequestError(
        f"{where} is no text part but {ascii(kind)[:60]}",
        hint='Models here read text only: {"type": "text", "text": "..."}.',
    )


def _kind(value: object) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"


def _plain(value: object, where: str, change: Callable[[str], str], depth: int = 0) -> Any:
    """Rebuild `value` from plain types; objects would bring their methods into the sandbox."""
    if depth > _MAX_DEPTH:
        raise InvalidRequestError(
            f"{where} is nested deeper than {_MAX_DEPTH} levels", hint="Send flatter data."
        )
    if type(value) is str:
        return change(value)
    if value is None or type(value) in (int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {
            change(str(key)): _plain(item, where, change, depth + 1) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item, where, change, depth + 1) for item in value]
    raise InvalidRequestError(
        f"{where} holds a {type(value).__name__}", hint="Send what JSON can express."
    )


def _failure(error: Exception) -> ChatTemplateError:
    text = str(error)
    if len(text) > _MAX_ERROR_CHARS:
        text = f"{text[:_MAX_ERROR_CHARS]}..."
    if isinstance(error, BudgetError):
        return ChatTemplateError(
            f"the chat template was stopped: {text}",
            hint="Use a shorter chat, or another template.",
        )
    if isinstance(error, SecurityError):
        return ChatTemplateError(
            f"the chat template tried what templates may not: {text}",
            hint="Do not trust this model's files; use another template.",
        )
    if isinstance(error, TemplateSyntaxError):
        return ChatTemplateError(
            f"the chat template is no Jinja: line {error.lineno}: {error.message}",
            hint="Correct the template, or use another.",
        )
    if type(error) is TemplateError:  # raise_exception in the template
        return ChatTemplateError(
            f"the chat template refuses the chat: {text}",
            hint="Send the roles in the order that the model knows.",
        )
    return ChatTemplateError(
        f"the chat template failed: {type(error).__name__}: {text}",
        hint="It may need tools or variables that were not given; or use another template.",
    )
