"""Bodies of completions, embeddings and of what counts tokens."""

from typing import Annotated, Literal, cast

from pydantic import Field

from hyprstream.errors import InvalidRequestError
from hyprstream.runtime import SamplingParams
from hyprstream.runtime.server_config import ServerConfig
from hyprstream.runtime.text_service import Prompt
from hyprstream.server.schemas.chat import Message, Tool
from hyprstream.server.schemas.sampling import Format, Sampling, Strict, TokenId, grammar_of

_USUAL_MAX_TOKENS = 16  # as OpenAI's
_MAX_INPUTS = 2048

Tokens = Annotated[list[TokenId], Field(min_length=1, max_length=1 << 20)]


class CompletionRequest(Sampling):
    """Texts to continue."""

    prompt: (
        str
        | Tokens
        | Annotated[list[str], Field(min_length=1, max_length=64)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=64)]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Literal[False] | None = None
    best_of: int | None = None
    suffix: None = None
    response_format: Format | None = None

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts, one by one."""
        return as_list(self.prompt)

    def sampling(self, config: ServerConfig) -> SamplingParams:
        """Return how to sample.

        Raises:
            InvalidRequestError: Fields are out of range, or contradict each other.
        """
        if self.best_of is not None and self.best_of != self.n:
            raise InvalidRequestError(
                "best_of is not n", hint="Answers are not ranked; leave best_of out."
            )
        if len(self.prompts) * self.n > config.max_answers:
            raise InvalidRequestError(
                f"{len(self.prompts)} prompts with {self.n} answers each",
                hint=f"Ask for {config.max_answers} answers or fewer at a time.",
            )
        usual = min(_USUAL_MAX_TOKENS, config.max_tokens or _USUAL_MAX_TOKENS)
        return self.params(
            config,
            max_tokens=self.max_tokens or usual,
            logprobs=self.logprobs,
            grammar=grammar_of(self.response_format, config),
        )


class EmbeddingRequest(Strict):
    """Texts to make vectors of."""

    model: Annotated[str, Field(max_length=512)] | None = None
    input: (
        str
        | Tokens
        | Annotated[list[str], Field(min_length=1, max_length=_MAX_INPUTS)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=_MAX_INPUTS)]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Refused unless it is the model's own width: vectors are not cut."""
    pooling: Literal["cls", "last", "mean"] | None = None
    """How hidden states become one vector; without it, as the model was made to."""
    user: str | None = None
    """Ignored."""

    @property
    def texts(self) -> list[Prompt]:
        """The texts, one by one."""
        return as_list(self.input)


class TokenizeRequest(Strict):
    """A text or a chat whose tokens are wanted."""

    model: Annotated[str, Field(max_length=512)] | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True


class DetokenizeRequest(Strict):
    """Tokens whose text is wanted."""

    model: Annotated[str, Field(max_length=512)] | None = None
    tokens: Annotated[list[TokenId], Field(max_length=1 << 20)]


def as_list(given: str | list[int] | list[str] | list[list[int]]) -> list[Prompt]:
    """Return one text as a list of one, and several as they are."""
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [given]
    return list(cast("list[Prompt]", given))
