"""Adapters from files of other programs into the store, and out of it again."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch

from hyprstream.errors import InvalidAdapterError
from hyprstream.lora.exchange.coverage import Coverage
from hyprstream.lora.exchange.format import ReadOptions
from hyprstream.lora.exchange.host import Host
from hyprstream.lora.interchange import detect, read_adapter, write_adapter, write_fused
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.weights import pack
from hyprstream.models.load import open_model
from hyprstream.runtime.adapted import load_adapter
from hyprstream.runtime.adapter_records import Committed
from hyprstream.runtime.adapters import EXACT, Adapters
from hyprstream.runtime.model import Model
from hyprstream.store.manifest import Draft
from hyprstream.store.records import Note

ValueType = Literal["float32", "bfloat16", "float16"]

_DTYPES: Mapping[ValueType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file or folder that holds an adapter, and what it may not say of itself.

    Attributes:
        path: Where it is.
        alpha: What products are scaled by, before they are divided by their rank.
        allow_pickle: Read pickled files, in a process of their own.
    """

    path: Path
    alpha: float | None = None
    allow_pickle: bool = False

    @property
    def format(self) -> str:
        """Name of the format, told by the content.

        Raises:
            AdapterNotFoundError: There is nothing.
            UnsupportedFormatError: It is none of the known formats.
        """
        return detect(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where an adapter goes, and in which form.

    Attributes:
        path: The file, or the folder, that shall be there.
        format: Name of the format.
        values: What values become; None keeps them.
        fused: Write the whole model with the adapter in its weights.
        overwrite: Replace what is there.
    """

    path: Path
    format: str = "peft"
    values: ValueType | None = None
    fused: bool = False
    overwrite: bool = False


def import_adapter(
    adapters: Adapters,
    name: str,
    model: Model,
    source: Source,
    *,
    codec: str = EXACT,
    note: Note = Note(),  # noqa: B008 - frozen
) -> tuple[Committed, Coverage]:
    """Take in an adapter that another program made, and give it a name.

    Returns:
        The version, and how the file's modules and the model's layers fit together.

    Raises:
        AdapterExistsError: The name is taken.
        HyprstreamError: The file cannot be read, or does not fit; see `read_adapter`.
    """
    adapters.check_free(name)
    found = source.format
    options = ReadOptions(alpha=source.alpha, allow_pickle=source.allow_pickle)
    imported = read_adapter(source.path, _host(model), name=found, options=options)
    tensors = pack(imported.weights)
    draft = Draft(
        base=model.fingerprint,
        kinds=sorted({delta.kind for delta in imported.weights.modules.values()}),
        spec={**imported.spec.plain(), "codec": codec},
        codec=codec,
        provenance={"imported_from": source.path.name[:200], "format": found},
    )
    done = adapters.commit(tensors, draft)
    adapters.create(name, done.version, note)
    return done, imported.coverage


def export_adapter(
    adapters: Adapters, ref: str, model: Model, to: Destination, *, force: bool = False
) -> str:
    """Write an adapter for other programs.

    Args:
        adapters: Where it is.
        ref: Which version.
        model: The model that it is for.
        to: Where it goes.
        force: Warn instead of refusing one that was made for another model.

    Returns:
        What to tell the user; empty if it was made for this very model.

    Raises:
        IncompatibleAdapterError: It was made for another model.
        HyprstreamError: It has no such form; see `write_adapter` and `write_fused`.
    """
    loaded = load_adapter(adapters, ref, model, force=force)
    dtype = None if to.values is None else _DTYPES[to.values]
    if to.fused:
        write_fused(
            to.path,
            open_model(model.info.path),
            _host(model),
            loaded.weights,
            name=to.format,
            dtype=dtype,
            force=to.overwrite,
        )
    else:
        spec = spec_of(adapters.manifest(loaded.version).spec)
        write_adapter(
            to.path,
            loaded.weights,
            _host(model),
            name=to.format,
            spec=spec,
            dtype=dtype,
            force=to.overwrite,
        )
    return loaded.warning


def spec_of(stored: Mapping[str, Any]) -> LoraSpec:
    """Return the spec that `LoraSpec.plain` gave what a manifest holds.

    Raises:
        InvalidAdapterError: It is none: a field is missing, or of another type.
        InvalidSettingsError: A value is out of range.
    """
    given = {field.name: stored[field.name] for field in fields(LoraSpec) if field.name in stored}
    try:
        for name, kind in (("rank_pattern", int), ("alpha_pattern", float)):
            entries = (str(entry).rpartition("=") for entry in given.pop(name, ()))
            given[name] = {layer: kind(value) for layer, _, value in entries}
        return LoraSpec(**given)
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidAdapterError(
            f"the spec of the adapter is none: {error}",
            hint="Correct what made it, or fetch the adapter again.",
        ) from error


def _host(model: Model) -> Host:
    return Host.of(open_model(model.info.path), model.decoder)
