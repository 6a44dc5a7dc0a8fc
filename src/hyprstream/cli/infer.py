"""`hyprstream infer`: one prompt in, one answer out."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from hyprstream.cli.options import (
    AdapterOption,
    ForceOption,
    LoadOptions,
    ModelArgument,
    SamplingOptions,
    grouped,
    require_text,
)
from hyprstream.cli.output import Format
from hyprstream.cli.session import (
    Completion,
    Context,
    Generation,
    Model,
    Session,
    load_model,
    session_of,
)
from hyprstream.errors import InvalidRequestError

_STDIN = Path("-")


class AnswerFormat(StrEnum):
    """How an answer is printed."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class AskOptions:
    """What to ask, and how to print the answer."""

    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The prompt.", metavar="TEXT")
    ] = None
    input_file: Annotated[
        Path | None,
        typer.Option(
            help="Read the prompt from a UTF-8 file; - is stdin, which is also read "
            "when it is piped and there is no --prompt.",
            metavar="FILE",
        ),
    ] = None
    system: Annotated[
        str | None, typer.Option(help="What the model is told before the prompt.", metavar="TEXT")
    ] = None
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Continue the prompt as it is, without the chat template."),
    ] = False
    stream: Annotated[
        bool,
        typer.Option("--stream/--no-stream", help="Print the answer as it is made, or at its end."),
    ] = True
    format: Annotated[
        AnswerFormat,
        typer.Option(
            help="json prints one object with text, usage, timings and log probabilities."
        ),
    ] = AnswerFormat.TEXT


@grouped
def infer(
    ctx: Context,
    *,
    model: ModelArgument = None,
    asking: AskOptions,
    adapter: AdapterOption = None,
    force: ForceOption = False,
    sampling: SamplingOptions,
    loading: LoadOptions,
) -> None:
    """Answer one prompt.

    The prompt goes through the model's chat template if it has one, unless --raw is given.
    """
    session = session_of(ctx)
    answer(
        session,
        asking,
        sampling,
        lambda: load_model(session, model, loading, adapter=adapter, force=force),
    )


def answer(
    session: Session, asking: AskOptions, sampling: SamplingOptions, load: Callable[[], Model]
) -> None:
    """Answer one prompt with the model that `load` gives, once all else is found to be sound."""
    from hyprstream.runtime import SamplingParams

    output = session.output
    overrides = sampling.overrides()
    SamplingParams(**overrides)  # refuse nonsense before weights are loaded
    text = _read_prompt(asking.prompt, asking.input_file)
    if asking.raw and asking.system is not None:
        raise InvalidRequestError(
            "--system needs the chat template that --raw switches off",
            hint="Leave out one of the two.",
        )
    served = load()
    with _answer(served, text, asking.system, raw=asking.raw, overrides=overrides) as generation:
        for delta in generation:
            if asking.stream and asking.format is AnswerFormat.TEXT:
                output.text(delta.text)
    completion = generation.completion
    if asking.format is AnswerFormat.JSON:
        output.record(_record(served, completion), Format.JSON)
    else:
        output.text("\n" if asking.stream else f"{completion.text}\n")


def _answer(
    model: Model, prompt: str, system: str | None, *, raw: bool, overrides: dict[str, Any]
) -> Generation:
    if raw or (system is None and not model.has_chat_template):
        return model.stream(prompt, **overrides)
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": require_text("--system", system)})
    return model.chat_stream(messages, **overrides)


def _record(model: Model, completion: Completion) -> dict[str, object]:
    timings = completion.timings
    return {
        "model": model.ref,
        "adapter": model.adapter or None,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "usage": completion.usage,
        "timings": {
            "load_s": model.load_s,
            "prompt_s": timings.prompt_s,
            "generate_s": timings.generate_s,
            "prompt_tokens_per_s": timings.prompt_tokens_per_s,
            "tokens_per_s": timings.tokens_per_s,
        },
        "seed": completion.seed,
        "logprobs": _logprobs(model, completion),
    }


def _logprobs(model: Model, completion: Completion) -> list[dict[str, object]] | None:
    """List the tokens of the answer with their log probabilities, if they were asked for."""
    reported = [(token, token.logprobs) for token in completion.tokens if token.logprobs]
    return [
        {
            "token": token.text,
            "token_id": token.token_id,
            "logprob": logprobs.chosen,
            "top": [
                {
                    "token": model.tokenizer.token_text(token_id),
                    "token_id": token_id,
                    "logprob": value,
                }
                for token_id, value in logprobs.top
            ],
        }
        for token, logprobs in reported
    ] or None


def _read_prompt(prompt: str | None, input_file: Path | None) -> str:
    if prompt is not None:
        if input_file is not None:
            raise InvalidRequestError(
                "--prompt and --input-file both give a prompt", hint="Leave out one of the two."
            )
        return require_text("--prompt", prompt)
    if input_file is None and sys.stdin.isatty():
        raise InvalidRequestError(
            "there is no prompt", hint="Add --prompt TEXT or --input-file FILE, or pipe text in."
        )
    name = "stdin" if input_file in (None, _STDIN) else str(input_file)
    try:
        if input_file is None or input_file == _STDIN:
            return sys.stdin.buffer.read().decode()
        return input_file.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidRequestError(
            f"{name} cannot be read: {error.strerror}", hint="Name a text file with the prompt."
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"{name} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}",
            hint="Convert it, for instance with iconv.",
        ) from error
