"""How answers are chosen: the fields that chats and completions share."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from hyprstream.errors import InvalidRequestError
from hyprstream.refs import adapter_name
from hyprstream.runtime import Grammar, SamplingParams
from hyprstream.runtime.fitting_request import Fit
from hyprstream.runtime.keys import Grant
from hyprstream.runtime.server_config import ServerConfig
from hyprstream.server.errors import REFUSED, ApiError

_MAX_BIASES = 1024

ShortText = Annotated[str, Field(min_length=1, max_length=1024)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Bias = Annotated[float, Field(ge=-100, le=100)]

IGNORED: Mapping[str, str] = {
    "metadata": "kept nowhere",
    "prompt_cache_key": "prompts are shared by their content, within one key",
    "prompt_cache_retention": "as above",
    "service_tier": "there is one",
    "store": "answers are kept nowhere; `learn` says what may be learnt from",
}
"""Fields that are accepted and change nothing, and why."""


class Strict(BaseModel):
    """A body, or a part of one, with no fields but those that are named."""

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, hide_input_in_errors=True, protected_namespaces=()
    )


def refusal(why: str) -> AfterValidator:
    """Make a field one that is known, and refused whatever it asks for."""

    def check(value: Any) -> Any:
        if value not in (None, False):
            raise PydanticCustomError(REFUSED, "{why}", {"why": why})
        return value

    return AfterValidator(check)


def only(*known: str, why: str) -> BeforeValidator:
    """Make what a `type` may be say why there is nothing else."""

    def check(value: Any) -> Any:
        if value is not None and value not in known:
            raise PydanticCustomError(REFUSED, "{why}", {"why": why})
        return value

    return BeforeValidator(check)


def kind_of(value: object) -> str | None:
    """Return the `type` of something that may be one of several."""
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return kind if isinstance(kind, str) else None


class StreamOptions(Strict):
    """How an answer is streamed."""

    include_usage: bool = False
    """End with a chunk that counts tokens."""
    include_obfuscation: bool | None = None
    """Ignored: nothing is added to chunks."""


class JsonSchema(Strict):
    """A JSON schema that the answer has to fulfil."""

    name: Annotated[str, Field(max_length=64)]
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None
    """Ignored: a schema is always enforced."""


class TextFormat(Strict):
    """Free text."""

    type: Literal["text"]


class ObjectFormat(Strict):
    """Some JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Strict):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


Format = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class Extensions(Strict):
    """Fields beyond those of a protocol, by the names that other servers have for them."""

    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    ignore_eos: bool | None = None
    learn: bool = True
    """False keeps the adapter from learning of this exchange, whatever its policy."""
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    """Same seed, same answer. Answer i of several has seed + i; a negative one counts from 2^63."""

    @property
    def extensions(self) -> dict[str, Any]:
        """Those that were given, for another body that has them."""
        return self.model_dump(include=set(Extensions.model_fields), exclude_none=True)


class Adapt(Strict):
    """Steps on the prompt, by which the adapter becomes another one for this request alone."""

    steps: Annotated[int, Field(ge=1)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    keep: Annotated[str, Field(max_length=512)] | None = None
    """Name of a new adapter that becomes what was learnt; for keys of the scope admin."""

    def fit(self, grant: Grant) -> Fit:
        """Return what is asked for.

        Raises:
            InvalidReferenceError: `keep` is no name.
            ApiError: The key may not keep it.
        """
        keep = None if self.keep is None else adapter_name(self.keep)
        if keep is not None and not ("admin" in grant.scopes and grant.may_use(keep)):
            raise ApiError(
                403,
                f"this key may not make an adapter {keep}",
                code="insufficient_permissions",
                param="adapt.keep",
            )
        given = self.model_dump(exclude_none=True, exclude={"keep"})
        return Fit(**given, keep=keep)


class Sampling(Extensions):
    """Fields of chats and completions alike."""

    model: Annotated[str, Field(max_length=512)] | None = None
    """The base model, or an adapter: NAME, NAME@VERSION, NAME:TAG, BASE:NAME."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=64)] = 1
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=_MAX_BIASES)] | None = None
    adapt: Adapt | None = None
    stop: ShortText | Annotated[list[ShortText], Field(max_length=16)] | None = None

    # Accepted and of no effect: see IGNORED.
    metadata: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    store: bool | None = None

    # Whose words the exchange holds, where a sample is made of it.
    user: Annotated[str, Field(max_length=512)] | None = None
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None

    @property
    def spoken_by(self) -> str:
        """Who was named as the user; empty if nobody was."""
        return self.user or self.safety_identifier or ""

    @property
    def includes_usage(self) -> bool:
        """Tell whether a stream is to end with the count of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def params(
        self, config: ServerConfig, *, max_tokens: int | None, **more: Any
    ) -> SamplingParams:
        """Return how to sample.

        Args:
            config: Bounds.
            max_tokens: Most tokens that were asked for; None is no limit.
            more: Further fields of `SamplingParams`.

        Raises:
            InvalidRequestError: A field is out of range.
        """
        if self.n > config.max_answers:
            raise InvalidRequestError(
                f"n is {self.n}", hint=f"Ask for {config.max_answers} answers or fewer at a time."
            )
        most = config.max_tokens or None
        if most is not None and max_tokens is not None and max_tokens > most:
            raise InvalidRequestError(
                f"max_tokens is {max_tokens}", hint=f"This server gives up to {most}."
            )
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError(
                "stream_options is given without stream", hint="Set stream to true, or leave it."
            )
        same = (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "typical_p",
            "repetition_penalty",
            "min_tokens",
            "ignore_eos",
            "presence_penalty",
            "frequency_penalty",
        )
        given = {name: getattr(self, name) for name in same if getattr(self, name) is not None}
        if self.seed is not None:
            given["seed"] = self.seed % (1 << 63)
        if self.stop is not None:
            given["stop"] = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if self.stop_token_ids is not None:
            given["stop_token_ids"] = tuple(self.stop_token_ids)
        if self.logit_bias is not None:
            given["logit_bias"] = _biases(self.logit_bias)
        return SamplingParams(max_tokens=max_tokens or most, **given, **more)


def grammar_of(wanted: Format | None, config: ServerConfig) -> Grammar | None:
    """Return what holds an answer to a format.

    Raises:
        InvalidRequestError: The schema is too long.
    """
    if isinstance(wanted, ObjectFormat):
        return Grammar(kind="json_object")
    if isinstance(wanted, SchemaFormat):
        text = json.dumps(wanted.json_schema.schema_)
        check_schema_size(len(text), config)
        return Grammar(kind="json_schema", text=text)
    return None


def check_schema_size(size_bytes: int, config: ServerConfig) -> None:
    """Refuse a schema that is too long.

    Raises:
        InvalidRequestError: It is.
    """
    if size_bytes > config.max_schema_bytes:
        raise InvalidRequestError(
            f"the schema has {size_bytes} bytes",
            hint=f"Make it {config.max_schema_bytes} or fewer.",
        )


def _biases(given: Mapping[str, float]) -> dict[int, float]:
    biases = {}
    for text, bias in given.items():
        if not (text.isascii() and text.isdigit() and len(text) <= 10):
            raise InvalidRequestError(
                f"logit_bias names the token {text[:40]!a}", hint="Name tokens by their numbers."
            )
        biases[int(text)] = bias
    return biases
