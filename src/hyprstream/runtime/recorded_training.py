"""How an adapter is to be trained, as the manifest of a version keeps it. No torch.

A manifest may come from a stranger: what it says is checked before it is used.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from hyprstream.errors import InvalidAdapterError
from hyprstream.store.manifest import Manifest, SpecValue
from hyprstream.train.config import TrainConfig

_SEED = "seed"  # of the adapter as a whole: what is random in its training follows from it too
_FIELDS = frozenset(field.name for field in fields(TrainConfig))


def training_settings(manifest: Manifest, **changes: Any) -> TrainConfig:
    """Return how a version is to be trained: what was recorded with it, and defaults for the rest.

    Args:
        manifest: Of the version.
        changes: Fields of `TrainConfig` that shall be otherwise this time.

    Raises:
        InvalidAdapterError: What was recorded is of another type than it should be.
        InvalidSettingsError: A value is out of range, or needs another one.
    """
    seed = {_SEED: manifest.spec[_SEED]} if _SEED in manifest.spec else {}
    return replace(check_training({**recorded(manifest.spec), **seed}), **changes)


def recorded(spec: Mapping[str, SpecValue]) -> dict[str, SpecValue]:
    """Choose what a version's spec says of training, as it is."""
    return {name: value for name, value in spec.items() if name in _FIELDS - {_SEED}}


def check_training(given: Mapping[str, SpecValue]) -> TrainConfig:
    """Make settings of training of plain data.

    Raises:
        InvalidAdapterError: There is no such setting, or it is of another type.
        InvalidSettingsError: A value is out of range.
    """
    unknown = sorted(given.keys() - _FIELDS)
    if unknown:
        raise _wrong(f"there is no setting {unknown[0][:80]!r}")
    types = get_type_hints(TrainConfig)
    for name, value in given.items():
        try:
            TypeAdapter(types[name]).validate_python(value, strict=True)
        except ValidationError as error:
            problem = error.errors(include_input=False, include_url=False)[0]
            raise _wrong(f"{name}: {problem['msg']}") from error
    return TrainConfig(**dict[str, Any](given))


def _wrong(problem: str) -> InvalidAdapterError:
    return InvalidAdapterError(
        f"the adapter cannot be trained as it says: {problem}",
        hint="Say how to train it instead, or fetch the adapter again.",
    )
