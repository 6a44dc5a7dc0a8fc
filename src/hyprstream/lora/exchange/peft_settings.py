"""`adapter_config.json` of PEFT: what of it is understood, and what is refused by name.

A setting that changes the result of the adapter is either applied exactly or refused. Those
of training alone are passed over. `fan_in_fan_out` says how the base model stores W, which
concerns neither A nor B.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

from hyprstream.errors import InvalidAdapterError, UnsupportedError
from hyprstream.lora.exchange.targets import Targets

# Settings that make something else of the adapter than a product of two matrices.
_REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA, which also scales the columns of W",
    "modules_to_save": "whole modules beside the adapter",
    "lora_bias": "biases of its own",
    "layer_replication": "layers that are repeated",
    "use_qalora": "QALoRA, which pools its inputs",
    "use_bdlora": "block-diagonal matrices",
    "alora_invocation_tokens": "an adapter that begins to act at a token",
    "trainable_token_indices": "tokens of its own",
    "target_parameters": "parameters that belong to no linear layer",
    "arrow_config": "a router between adapters",
    "monteclora_config": "random samples",
    "kasa_config": "KaSA, which rewrites W",
    "ensure_weight_tying": "a head and an embedding that change together",
    "enable_lora": "grouped matrices of an early version",
}
# Ways to begin that leave W as it is. All others (PiSSA, OLoRA, CorDA, LoftQ...) rewrite it.
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_UNDERSTOOD = frozenset(
    {
        *("r", "lora_alpha", "use_rslora", "lora_dropout", "target_modules", "exclude_modules"),
        *("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "bias"),
        *("peft_type", "init_lora_weights"),
    }
)
# Of training, or about the base model, or notes.
_HARMLESS = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "corda_config"),
        *("eva_config", "fan_in_fan_out", "inference_mode", "loftq_config", "lora_ga_config"),
        *("megatron_config", "megatron_core", "merge_weights", "peft_version", "revision"),
        *("qalora_group_size", "runtime_config", "task_type", "velora_config"),
    }
)
_MAX_RANK = 1 << 20
_OTHER_HINT = (
    "Merge the adapter into its base model with PEFT's merge_and_unload, and use that model."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftSettings:
    """What the settings say, before it is known which modules there are.

    Attributes:
        rank: Of modules that no pattern names.
        alpha: The same.
        use_rslora: Scales are alpha over the root of the rank.
        dropout: In training.
        targets: Which modules of the base model are changed.
        rank_pattern: Expression for names -> rank.
        alpha_pattern: Expression for names -> alpha.
        ignored: Settings that are not known here.
    """

    rank: int
    alpha: float
    targets: Targets
    use_rslora: bool = False
    dropout: float = 0.0
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def scale(self, alpha: float, rank: int) -> float:
        """Return what the product of a module is multiplied with."""
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def alpha_for(self, scale: float, rank: int) -> float:
        """Return the alpha with which a module of that rank has that scale."""
        return scale * (math.sqrt(rank) if self.use_rslora else rank)


def parse(values: Mapping[str, object], origin: object) -> PeftSettings:
    """Read the settings of an adapter.

    Raises:
        InvalidAdapterError: A setting is missing, or not of its type.
        UnsupportedError: It is another kind of adapter, or has a part that is not supported.
    """
    read = _Reader(values, origin)
    _refuse(values, origin)
    rank = read.whole("r", 8)
    return PeftSettings(
        rank=rank,
        alpha=read.positive("lora_alpha", 8),
        use_rslora=read.flag("use_rslora"),
        dropout=read.share("lora_dropout"),
        targets=Targets(
            names=read.names("target_modules"),
            excluded=read.names("exclude_modules"),
            layers=read.layers("layers_to_transform"),
            layer_lists=read.words("layers_pattern"),
        ),
        rank_pattern={
            key: _whole(f"{origin}: rank_pattern[{key!r}]", value)
            for key, value in read.mapping("rank_pattern").items()
        },
        alpha_pattern={
            key: _positive(f"{origin}: alpha_pattern[{key!r}]", value)
            for key, value in read.mapping("alpha_pattern").items()
        },
        ignored=tuple(
            key
            for key, value in values.items()
            if value and key not in _UNDERSTOOD | _HARMLESS | _REFUSED.keys()
        ),
    )


def _refuse(values: Mapping[str, object], origin: object) -> None:
    kind = values.get("peft_type", "LORA")
    if kind != "LORA":
        raise UnsupportedError(
            f"{origin} describes an adapter of type {kind!r}; LORA is supported", hint=_OTHER_HINT
        )
    for key, what in _REFUSED.items():
        if values.get(key):
            raise UnsupportedError(
                f"{origin} has {key}: {what}; this is not supported", hint=_OTHER_HINT
            )
    bias = values.get("bias", "none")
    if bias not in ("none", None):
        raise UnsupportedError(
            f"{origin} has bias {bias!r}: biases of the base model are trained too; "
            "this is not supported",
            hint=_OTHER_HINT,
        )
    start = values.get("init_lora_weights")
    if not any(start is known or start == known for known in _STARTS):
        raise UnsupportedError(
            f"{origin} has init_lora_weights {start!r}, for which PEFT rewrites the base model; "
            "this is not supported",
            hint="Save it with path_initial_model_for_weight_conversion, which makes it an "
            "ordinary adapter.",
        )


class _Reader:
    """Typed access to settings from outside; every failure is an InvalidAdapterError."""

    def __init__(self, values: Mapping[str, object], origin: object) -> None:
        self._values = values
        self._origin = origin

    def whole(self, key: str, default: int) -> int:
        return _whole(f"{self._origin}: {key}", self._get(key, default))

    def positive(self, key: str, default: float) -> float:
        return _positive(f"{self._origin}: {key}", self._get(key, default))

    def share(self, key: str) -> float:
        value = self._get(key, 0.0)
        if not _is_number(value) or not 0 <= value <= 0.99:
            raise _wrong(f"{self._origin}: {key}", value, "a number from 0 to 0.99")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self._get(key, default=False)
        if not isinstance(value, bool):
            raise _wrong(f"{self._origin}: {key}", value, "true or false")
        return value

    def names(self, key: str) -> str | tuple[str, ...]:
        """Read one expression or a list of names."""
        value = self._get(key, ())
        return value if isinstance(value, str) else self.words(key)

    def words(self, key: str) -> tuple[str, ...]:
        """Read a list of texts; one alone is a list too."""
        value = self._get(key, ())
        if isinstance(value, str):
            return (value,) if value else ()
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise _wrong(f"{self._origin}: {key}", value, "a list of names")
        return tuple(value)

    def layers(self, key: str) -> frozenset[int] | None:
        value = self._get(key, ())
        numbers = [value] if _is_whole(value) else value
        if not isinstance(numbers, list | tuple) or not all(_is_whole(v) for v in numbers):
            raise _wrong(f"{self._origin}: {key}", value, "numbers of layers")
        return frozenset(numbers) if numbers else None

    def mapping(self, key: str) -> Mapping[str, object]:
        value = self._get(key, {})
        if not isinstance(value, Mapping):
            raise _wrong(f"{self._origin}: {key}", value, "a mapping")
        return value

    def _get(self, key: str, default: object) -> object:
        value = self._values.get(key)
        return default if value is None else value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    # Python's integers may be too large for a float.
    return abs(value) < 1e300 and math.isfinite(value)


def _whole(what: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_RANK:
        raise _wrong(what, value, f"a whole number from 1 to {_MAX_RANK}")
    return value


def _positive(what: str, value: object) -> float:
    if not _is_number(value) or value <= 0:
        raise _wrong(what, value, "a finite number above 0")
    return float(value)


def _wrong(what: str, value: object, wanted: str) -> InvalidAdapterError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return InvalidAdapterError(
        f"{what} is {shown}, not {wanted}", hint="The settings are damaged; fetch them again."
    )
