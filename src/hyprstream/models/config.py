"""What a model is made of: numbers read from `config.json` or GGUF metadata, frozen.

`Fields` reads an untrusted mapping: every value is checked for type and range when it is
taken, so that an architecture's `parse` is a list of names and nothing else.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from hyprstream.errors import UnsupportedArchitectureError

RopeKind = Literal["default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"]
Activation = Literal["silu", "gelu", "gelu_tanh"]
Pooling = Literal["mean", "cls", "last"]

# No published model comes near these; they bound what a lying file can make us allocate.
MAX_LAYERS = 1_024
MAX_WIDTH = 1 << 20
MAX_VOCAB = 1 << 24
MAX_CONTEXT = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding of a set of layers (arXiv:2104.09864) and its scaling.

    Field names follow the `rope_parameters` of transformers.
    """

    theta: float
    rotary_width: int
    """How many of a head's channels rotate."""
    kind: RopeKind = "default"
    factor: float = 1.0
    original_context: int = 0
    """Context the model was trained with, before scaling."""
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeConfig:
    """Mixture of experts in place of the feed-forward layer."""

    num_experts: int
    num_active: int
    width: int
    normalize: bool
    """Scale the weights of the chosen experts to sum to 1."""
    dense_layers: frozenset[int] = frozenset()
    """Layers that keep an ordinary feed-forward part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionConfig:
    """How one layer attends; read by every implementation of `Attention`."""

    scale: float
    window: int | None = None
    """See only so many positions, oneself included; None sees all earlier ones."""
    softcap: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything about a model that is not a weight."""

    architecture: str
    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    mlp_width: int
    context_length: int
    norm_eps: float
    activation: Activation = "silu"
    ropes: tuple[RopeConfig, ...] = ()
    """Distinct rotary embeddings; `rope_of_layer` says which layer uses which."""
    rope_of_layer: tuple[int, ...] = ()
    attention: tuple[AttentionConfig, ...] = ()
    """One per layer."""
    tied: bool | None = None
    """The output head is the embedding table; None: where the file has no head of its own."""
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    embedding_scale: float = 1.0
    logit_softcap: float | None = None
    moe: MoeConfig | None = None
    num_token_types: int = 0
    pooling: Pooling | None = None
    normalize: bool = True
    """Embeddings have unit length."""
    embedding_tokens: int | None = None
    """Longer texts are cut to so many tokens before they are embedded; None: the context."""
    causal: bool = True

    def with_context(self, context_length: int) -> "ModelConfig":
        """Return the same model serving at most `context_length` positions."""
        return replace(self, context_length=context_length)

    def with_pooling(
        self, pooling: Pooling, *, normalize: bool, max_tokens: int | None
    ) -> "ModelConfig":
        """Return the same model with another way from hidden states to a vector."""
        return replace(self, pooling=pooling, normalize=normalize, embedding_tokens=max_tokens)


class Fields:
    """Typed, range-checked access to an untrusted mapping of a model's numbers.

    Args:
        values: Parsed `config.json`, or GGUF metadata.
        origin: What an error message calls the mapping.
        prefix: Put before every key, as GGUF puts the architecture's name.
    """

    def __init__(self, values: Mapping[str, Any], origin: str, prefix: str = "") -> None:
        self._values = values
        self._origin = origin
        self._prefix = prefix

    def __contains__(self, key: str) -> bool:
        return self._values.get(self._prefix + key) is not None

    def at(self, key: str) -> "Fields":
        """Enter a nested mapping; an absent one reads as empty."""
        value = self._values.get(self._prefix + key)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise self._wrong(key, value, "a mapping")
        return Fields(value, f"{self._origin}: {key}")

    def integer(
        self, key: str, default: int | None = None, *, low: int = 1, high: int = MAX_WIDTH
    ) -> int:
        """Take a whole number from `low` to `high`."""
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(key, value, f"a whole number from {low} to {high}")
        return value

    def number(self, key: str, default: float | None = None, *, low: float = 0.0) -> float:
        """Take a finite number of at least `low`."""
        value = self._take(key, default)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value < low:
            raise self._wrong(key, value, f"a finite number from {low}")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """Take a finite number, or None where the key is absent or null."""
        return self.number(key) if key in self else None

    def flag(self, key: str, default: bool | None = None) -> bool:  # noqa: FBT001
        """Take a truth value."""
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def word(self, key: str, default: str | None = None) -> str:
        """Take a text."""
        value = self._take(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a text")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        """Take a list of finite numbers; empty where the key is absent."""
        value = self._values.get(self._prefix + key)
        if value is None:
            return ()
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            raise self._wrong(key, value, "a list of numbers")
        if not all(isinstance(v, (int, float)) and math.isfinite(v) for v in value):
            raise self._wrong(key, "...", "a list of finite numbers")
        return tuple(float(v) for v in value)

    def words(self, key: str) -> tuple[str, ...]:
        """Take a list of texts; empty where the key is absent."""
        value = self._values.get(self._prefix + key)
        if value is None:
            return ()
        if not isinstance(value, Sequence) or not all(isinstance(v, str) for v in value):
            raise self._wrong(key, value, "a list of texts")
        return tuple(value)

    def refuse(self, key: str, reason: str) -> UnsupportedArchitectureError:
        """Make the error for a value that is well-formed and not implemented."""
        value = self._values.get(self._prefix + key)
        return UnsupportedArchitectureError(f"{self._origin}: {key} = {value!r} {reason}")

    def _take(self, key: str, default: object) -> Any:
        value = self._values.get(self._prefix + key)
        if value is None:
            value = default
        if value is None:
            raise UnsupportedArchitectureError(
                f"{self._origin} lacks {self._prefix + key!r}",
                hint="The file is not a complete model description of a supported family.",
            )
        return value

    def _wrong(self, key: str, value: object, wanted: str) -> UnsupportedArchitectureError:
        return UnsupportedArchitectureError(
            f"{self._origin}: {self._prefix + key} is {value!r}, not {wanted}",
            hint="The model description is damaged or from an unknown variant of the family.",
        )
