"""What a caller wants of one generation, and what it gets token by token. Plain data, no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from hyprstream.errors import InvalidRequestError
from hyprstream.refs import RequestId, VersionId

FinishReason = Literal["stop", "length"]
GrammarKind = Literal["json_schema", "json_object", "regex", "lark"]

MAX_LOGPROBS = 64
MAX_STOP_STRINGS = 64
MAX_SEED = 2**63 - 1
MAX_GRAMMAR_BYTES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """What an answer has to look like.

    What the kinds mean exactly is written in `engine/grammar.py`.

    Attributes:
        kind: How to read the text; `json_object` is any JSON object and has no text.
        text: A JSON schema, a regular expression, or a grammar in Lark's EBNF.
    """

    kind: GrammarKind
    text: str = ""

    def __post_init__(self) -> None:
        """Reject what cannot be a grammar; whether it is one shows when it is compiled.

        Raises:
            InvalidRequestError: The kind is unknown, or the text missing or too long.
        """
        kinds = get_args(GrammarKind)
        _check("the kind of a grammar", self.kind, f"one of {', '.join(kinds)}", self.kind in kinds)
        _check("the text of a grammar", self.text, "text", isinstance(self.text, str))
        if (self.kind == "json_object") != (self.text == ""):
            raise InvalidRequestError(
                f"a grammar of kind {self.kind} has a text of {len(self.text)} characters",
                hint="A json_object has none, the other kinds are nothing without.",
            )
        # Of 10 million characters, none is looked at: each takes a byte or more.
        too_long = len(self.text) > MAX_GRAMMAR_BYTES
        size = len(self.text if too_long else self.text.encode("utf-8", "surrogatepass"))
        meaning = f"{MAX_GRAMMAR_BYTES} or fewer"
        _check("the size of a grammar in bytes", size, meaning, size <= MAX_GRAMMAR_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen and when to stop.

    The order in which these apply is written in `engine/sampler.py`. Defaults sample from
    the model's own distribution.
    """

    max_tokens: int | None = None
    """Most tokens to generate; None generates until the context is full."""
    min_tokens: int = 0
    """No end-of-sequence or stop token before so many tokens."""
    temperature: float = 1.0
    """Divides the logits; 0 always takes the most likely token."""
    top_k: int = 0
    """Keep so many most likely tokens, and those as likely as the last of them; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose probability reaches this."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as likely as the most likely one."""
    typical_p: float = 1.0
    """Keep the most typical tokens up to this probability (arXiv:2202.00666)."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens of the prompt and the answer less likely (arXiv:1909.05858)."""
    presence_penalty: float = 0.0
    """Subtracted once from every token that the answer already holds."""
    frequency_penalty: float = 0.0
    """Subtracted from every token once per time that the answer already holds it."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id -> what is added to its logit, -100 to 100."""
    seed: int | None = None
    """Same seed, same output; None draws a fresh one."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these strings."""
    stop_token_ids: tuple[int, ...] = ()
    """The answer ends at any of these tokens, besides the model's own end tokens."""
    ignore_eos: bool = False
    """Go on after the model's own end tokens."""
    logprobs: int | None = None
    """Report the log probability of each token and of so many most likely ones."""
    grammar: Grammar | None = None
    """What the answer has to look like."""

    def __post_init__(self) -> None:
        """Reject values of the wrong type or outside their range, naming field and value.

        Raises:
            InvalidRequestError: A field is wrong, or two contradict each other.
        """
        self._check_integers()
        self._check_numbers()
        _check("ignore_eos", self.ignore_eos, "True or False", isinstance(self.ignore_eos, bool))
        self._check_stops()
        is_grammar = self.grammar is None or isinstance(self.grammar, Grammar)
        _check("grammar", self.grammar, "a Grammar", is_grammar)
        _check("logit_bias", self.logit_bias, "a mapping", isinstance(self.logit_bias, Mapping))
        for token_id, bias in self.logit_bias.items():
            _check(
                "a token id of logit_bias",
                token_id,
                "an integer, 0 or more",
                _is_integer(token_id, 0),
            )
            name = f"logit_bias[{token_id}]"
            _check(name, bias, "a number from -100 to 100", _is_number(bias, -100, 100))
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens is {self.min_tokens} and max_tokens is {self.max_tokens}",
                hint="min_tokens must not be above max_tokens.",
            )

    def check_vocabulary(self, vocab_size: int) -> None:
        """Check the token ids against the model that is to answer.

        Raises:
            InvalidRequestError: `logit_bias` or `stop_token_ids` names a token that the
                model does not have.
        """
        for name, token_ids in (
            ("logit_bias", self.logit_bias),
            ("stop_token_ids", self.stop_token_ids),
        ):
            for token_id in token_ids:
                if token_id >= vocab_size:
                    raise InvalidRequestError(
                        f"{name} names token {token_id}",
                        hint=f"This model's token ids run from 0 to {vocab_size - 1}.",
                    )

    def _check_integers(self) -> None:
        for name, value, low in (
            ("max_tokens", self.max_tokens, 1),
            ("min_tokens", self.min_tokens, 0),
            ("top_k", self.top_k, 0),
        ):
            optional = name == "max_tokens" and value is None
            _check(name, value, f"an integer, {low} or more", optional or _is_integer(value, low))
        for name, value, high in (
            ("seed", self.seed, MAX_SEED),
            ("logprobs", self.logprobs, MAX_LOGPROBS),
        ):
            meaning = f"an integer from 0 to {high}"
            _check(name, value, meaning, value is None or _is_integer(value, 0, high))

    def _check_numbers(self) -> None:
        for name, value, low, high in (
            ("temperature", self.temperature, 0, 100),
            ("min_p", self.min_p, 0, 1),
            ("presence_penalty", self.presence_penalty, -2, 2),
            ("frequency_penalty", self.frequency_penalty, -2, 2),
        ):
            _check(name, value, f"a number from {low} to {high}", _is_number(value, low, high))
        for name, value, high in (
            ("top_p", self.top_p, 1),
            ("typical_p", self.typical_p, 1),
            ("repetition_penalty", self.repetition_penalty, 100),
        ):
            meaning = f"a number above 0 and up to {high}"
            _check(name, value, meaning, _is_number(value, 0, high) and value > 0)

    def _check_stops(self) -> None:
        # A single string is a sequence of strings too: it would stop at each of its letters.
        for name, values in (("stop", self.stop), ("stop_token_ids", self.stop_token_ids)):
            _check(name, values, "a tuple", isinstance(values, tuple))
        for text in self.stop:
            _check("a stop string", text, "text that is not empty", _is_text(text))
        num_stops = len(self.stop)
        meaning = f"{MAX_STOP_STRINGS} or fewer"
        _check("the number of stop strings", num_stops, meaning, num_stops <= MAX_STOP_STRINGS)
        for token_id in self.stop_token_ids:
            _check("a stop token id", token_id, "an integer, 0 or more", _is_integer(token_id, 0))


def _is_integer(value: object, low: int, high: float = float("inf")) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _check(name: str, value: object, meaning: str, holds: bool) -> None:  # noqa: FBT001
    if not holds:
        raise InvalidRequestError(f"{name} is {value!r}", hint=f"Make it {meaning}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Log probabilities of the model's own distribution at one position, natural base.

    Attributes:
        chosen: Of the token that was chosen.
        top: The most likely tokens with theirs, most likely first; ties by lower id.
    """

    chosen: float
    top: tuple[tuple[int, float], ...]


class TokenEvent(NamedTuple):
    """One generated token. A tuple, as what else there is for each sequence and step.

    Attributes:
        token_id: The token.
        logprobs: Its log probabilities, if asked for.
        finish: Why generation ends with this token; None while it goes on.
        is_stop: The token is an end or stop token and no part of the text.
    """

    token_id: int
    logprobs: TokenLogprobs | None = None
    finish: FinishReason | None = None
    is_stop: bool = False


MAX_ANSWERS = 64

Pooling = Literal["cls", "last", "mean"]
"""How hidden states become one vector: the first token's, the last one's, or their mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a caller wants; never changes once it is submitted.

    Attributes:
        id: Unique within the engine.
        token_ids: The prompt.
        params: How to sample; of no meaning for a request that embeds.
        adapter: The adapter version to answer with; None is the base model alone.
        num_answers: Independent answers to the same prompt; answer i has seed + i.
        priority: Lower goes first, as in vLLM.
        deadline: On the engine's clock; past it the request fails.
        salt: Requests share cached prefixes only with requests of the same salt.
        prompt_logprobs: Report so many most likely tokens for each prompt position.
        embeds: Want one vector of the prompt instead of an answer.
        pooling: How to embed; None is how the model was made to.
    """

    id: RequestId
    token_ids: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    adapter: VersionId | None = None
    num_answers: int = 1
    priority: int = 0
    deadline: float | None = None
    salt: str = ""
    prompt_logprobs: int | None = None
    embeds: bool = False
    pooling: Pooling | None = None

    def __post_init__(self) -> None:
        """Reject what no engine could serve.

        Raises:
            InvalidRequestError: A field is out of range.
        """
        if not self.token_ids:
            raise InvalidRequestError(
                "the prompt is empty", hint="Give at least one token of text."
            )
        if not 1 <= self.num_answers <= MAX_ANSWERS:
            raise InvalidRequestError(
                f"num_answers is {self.num_answers}", hint=f"It must be from 1 to {MAX_ANSWERS}."
            )
        top = self.prompt_logprobs
        if top is not None and not 0 <= top <= MAX_LOGPROBS:
            raise InvalidRequestError(
                f"prompt_logprobs is {top}", hint=f"It must be from 0 to {MAX_LOGPROBS}."
            )
        if self.pooling not in {None, *get_args(Pooling)}:
            raise InvalidRequestError(
                f"pooling is {self.pooling!r}", hint="Choose cls, last or mean, or leave it out."
            )


def check_tokens(request: Request, vocab_size: int) -> None:
    """Make sure that a model has all tokens of a prompt.

    Raises:
        InvalidRequestError: It lacks one.
    """
    if not all(0 <= token < vocab_size for token in request.token_ids):
        raise InvalidRequestError(
            f"the prompt has a token outside 0 to {vocab_size - 1}",
            hint="Encode the prompt with this model's own tokenizer.",
        )
