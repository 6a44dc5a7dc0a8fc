"""How an adapter is to be trained, as the manifest of a version keeps it. No torch.

A manifest may come from a stranger: what it says is checked before it is used.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from hyprstream.errors import InvalidAdapterError
from hyprstream.store.manifest import Manifest, SpecValue
from hyprstream.train.config import TrainConfig

_SEED = "seed"  # of the adapter as a whole: what is random in its training follows from it too
_FIELDS = frozenset(field.name for field in fields(TrainConfig))


def recorded_training(manifest: Manifest) -> dict[str, SpecValue]:
    """Return what was recorded of how a version is to be trained: fields of `TrainConfig`.

    Raises:
        InvalidAdapterError: A field is of another type than it should be.
        InvalidSettingsError: A value is out of range, or needs another one.
    """
    settings = recorded(manifest.spec)
    if _SEED in manifest.spec:
        settings[_SEED] = manifest.spec[_SEED]
    check_training(settings)
    return settings


def recorded(spec: Mapping[str, SpecValue]) -> dict[str, SpecValue]:
    """Choose what a version's spec says of training, as it is, but for the seed."""
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
