"""Adapters in and out of files that other programs read and write.

Formats are files of `lora/formats`. What is read is told by its content; what is written
appears whole or not at all.
"""

from pathlib import Path

import torch

from hyprstream import lookup
from hyprstream.errors import AdapterNotFoundError, InvalidAdapterError, UnsupportedFormatError
from hyprstream.lora.exchange.coverage import Imported
from hyprstream.lora.exchange.files import replacing
from hyprstream.lora.exchange.format import Format, ReadOptions
from hyprstream.lora.exchange.host import Host
from hyprstream.lora.exchange.outgoing import Outgoing
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.weights import LoraWeights
from hyprstream.models.load import OpenModel

FORMATS = "hyprstream.lora.formats"
FUSED = "hyprstream.lora.fused.formats"
# A folder may hold its weights twice; and every format says what a single file is.
_ORDER = ("peft", "pytorch", "gguf", "safetensors")


def detect(path: Path) -> str:
    """Tell the format of an adapter by its content.

    Raises:
        AdapterNotFoundError: There is nothing.
        UnsupportedFormatError: It is none of the known formats.
    """
    if not path.exists():
        raise AdapterNotFoundError(f"there is nothing at {path}", hint="Check the path.")
    known = lookup.names(FORMATS)
    for name in sorted(known, key=lambda name: _ORDER.index(name) if name in _ORDER else 99):
        if _format(name).recognizes(path):
            return name
    raise UnsupportedFormatError(
        f"{path} is no adapter of a known format",
        hint=f"Known are {', '.join(known)}; a PEFT folder has an adapter_config.json.",
    )


def read_adapter(
    path: Path, host: Host, *, name: str | None = None, options: ReadOptions | None = None
) -> Imported:
    """Read an adapter for a model.

    Args:
        path: A file or a folder.
        host: The model.
        name: Of the format; None tells it by the content.
        options: What a file may not say of itself.

    Raises:
        AdapterNotFoundError: There is nothing.
        InvalidAdapterError: It contradicts itself, or fits no layer of the model.
        IncompatibleAdapterError: A layer of the model has another shape.
        UnsupportedError: It has a part that is not supported, or a format that is not known.
        CorruptWeightsError: A file breaks the rules of its format.
    """
    chosen = _format(detect(path) if name is None else name)
    return chosen.read(path, host, options or ReadOptions())


def write_adapter(
    path: Path,
    weights: LoraWeights,
    host: Host,
    *,
    name: str = "peft",
    spec: LoraSpec | None = None,
    dtype: torch.dtype | None = None,
    force: bool = False,
) -> None:
    """Write an adapter.

    Args:
        path: The file, or the folder, that shall be there.
        weights: The adapter.
        host: The model that it is for.
        name: Of the format.
        spec: What it was made from: its scale is kept beside the matrices if that is exact.
        dtype: Of the values; None keeps them.
        force: Replace what is there.

    Raises:
        InvalidInputError: There is something already.
        InvalidAdapterError: It changes nothing, or a value does not fit into the dtype.
        IncompatibleAdapterError: It is not for this model.
        UnsupportedError: Its kind, or a layer that it changes, has no form in the format.
        StorageFullError: The disk is full.
    """
    chosen = _format(name)
    outgoing = Outgoing.of(weights, spec, host, dtype)
    with replacing(path, force=force, is_folder=chosen.IS_FOLDER) as place:
        chosen.write(place, outgoing)


def write_fused(
    path: Path,
    model: OpenModel,
    host: Host,
    weights: LoraWeights,
    *,
    name: str = "safetensors",
    dtype: torch.dtype | None = None,
    force: bool = False,
) -> None:
    """Write a whole model with an adapter fused into its weights.

    Args:
        path: The file, or the folder, that shall be there.
        model: The base model, opened.
        host: The same, as formats see it.
        weights: The adapter, of any kind.
        name: `safetensors`, a folder that transformers loads, or `gguf`.
        dtype: Of what is written; None keeps that of the base model, with float16 for what
            is changed and was quantised. A GGUF file that comes from another one keeps what
            is not changed as it is in any case.
        force: Replace what is there.

    Raises:
        InvalidInputError: There is something already.
        IncompatibleAdapterError: The adapter is for another model.
        InvalidAdapterError: It changes nothing, or a sum does not fit into the dtype.
        UnsupportedError: The base model has no form in the format that is known here.
        StorageFullError: The disk is full.
    """
    module = lookup.load(FUSED, name, kind="format of models", error=UnsupportedFormatError)
    if not weights.modules:
        raise InvalidAdapterError("the adapter changes no layer", hint="Use the model itself.")
    with replacing(path, force=force, is_folder=module.IS_FOLDER) as place:
        module.write(place, model, host, weights, dtype)


def _format(name: str) -> Format:
    module = lookup.load(FORMATS, name, kind="format of adapters", error=UnsupportedFormatError)
    assert isinstance(module, Format)
    return module
