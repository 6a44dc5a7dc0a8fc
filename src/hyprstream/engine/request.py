"""What a caller wants of one generation, and what it gets token by token. Plain data, no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hyprstream.errors import InvalidRequestError

FinishReason = Literal["stop", "length"]

MAX_LOGPROBS = 64
MAX_STOP_STRINGS = 64


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
    """Keep so many most likely tokens; 0 keeps all."""
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

    def __post_init__(self) -> None:
        """Reject values outside their range, naming the field and the value.

        Raises:
            InvalidRequestError: A field is out of range.
        """
        _check(
            "max_tokens",
            self.max_tokens,
            self.max_tokens is None or self.max_tokens >= 1,
            "1 or more",
        )
        _check("min_tokens", self.min_tokens, self.min_tokens >= 0, "0 or more")
        for name, value, low, high, meaning in (
            ("temperature", self.temperature, 0.0, 100.0, "from 0 to 100"),
            ("min_p", self.min_p, 0.0, 1.0, "from 0 to 1"),
            ("presence_penalty", self.presence_penalty, -2.0, 2.0, "from -2 to 2"),
            ("frequency_penalty", self.frequency_penalty, -2.0, 2.0, "from -2 to 2"),
        ):
            _check(name, value, low <= value <= high, meaning)
        for name, value in (("top_p", self.top_p), ("typical_p", self.typical_p)):
            _check(name, value, 0.0 < value <= 1.0, "above 0 and up to 1")
        _check("top_k", self.top_k, self.top_k >= 0, "0 (off) or more")
        penalty = self.repetition_penalty
        _check("repetition_penalty", penalty, 0.0 < penalty <= 100.0, "above 0 and up to 100")
        for token, bias in self.logit_bias.items():
            _check(
                f"logit_bias[{token}]",
                bias,
                math.isfinite(bias) and abs(bias) <= 100,
                "from -100 to 100",
            )
        seed = self.seed
        _check("seed", seed, seed is None or 0 <= seed < 2**63, "from 0 to 2**63 - 1")
        _check(
            "stop",
            len(self.stop),
            len(self.stop) <= MAX_STOP_STRINGS,
            f"{MAX_STOP_STRINGS} strings or fewer",
        )
        _check("stop", '""', all(self.stop), "strings that are not empty")
        top = self.logprobs
        _check(
            "logprobs", top, top is None or 0 <= top <= MAX_LOGPROBS, f"from 0 to {MAX_LOGPROBS}"
        )


def _check(name: str, value: object, holds: bool, meaning: str) -> None:  # noqa: FBT001
    if not holds:
        raise InvalidRequestError(f"{name} is {value}", hint=f"{name} must be {meaning}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Log probabilities of the model's own distribution at one position, natural base.

    Attributes:
        chosen: Of the token that was chosen.
        top: The most likely tokens with theirs, most likely first; ties by lower id.
    """

    chosen: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """One generated token.

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
