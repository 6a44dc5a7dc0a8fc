"""PEFT folders whose weights are pickled: `adapter_config.json` and `adapter_model.bin`.

Written for programs that read nothing else. Read only where the caller allows it, and then
in a process of its own (`exchange/unpickle.py`), which hands back safetensors.
"""

import tempfile
from pathlib import Path

import torch

from hyprstream.errors import InvalidAdapterError, UnsupportedError, UnsupportedFormatError
from hyprstream.lora.exchange import guard
from hyprstream.lora.exchange.coverage import Imported
from hyprstream.lora.exchange.format import ReadOptions
from hyprstream.lora.exchange.host import Host
from hyprstream.lora.exchange.outgoing import Outgoing
from hyprstream.lora.exchange.peft_settings import parse
from hyprstream.lora.exchange.peft_state import read_state, settings_text, state_of
from hyprstream.lora.formats.peft import CONFIG_NAME, read_settings
from hyprstream.models.checkpoint import SafetensorsFile

IS_FOLDER = True
WEIGHTS_NAME = "adapter_model.bin"

# An adapter of rank 256 for every layer of a model of 70 billion weights has 13 GB; the largest
# that are published in this format have some hundred MB.
_MAX_FILE_BYTES = 1 << 30
_PROGRAM = Path(__file__).parents[1] / "exchange" / "unpickle.py"
_SECONDS = 60
_SPARE_BYTES = 1 << 30  # besides what torch takes when it is imported


def recognizes(path: Path) -> bool:
    """Tell by the names; naming the weights names the folder."""
    folder = _folder(path)
    return (folder / CONFIG_NAME).is_file() and (folder / WEIGHTS_NAME).is_file()


def read(path: Path, host: Host, options: ReadOptions) -> Imported:
    """Read a folder, if that is allowed.

    Raises:
        UnsupportedFormatError: It is not allowed.
        InvalidAdapterError: It is no sound adapter, or none for this model.
        IncompatibleAdapterError: A layer of the model has another shape.
        UnsupportedError: It is of a kind, or has a part, that is not supported.
    """
    folder = _folder(path)
    settings = parse(read_settings(folder), folder / CONFIG_NAME)
    if not options.allow_pickle:
        raise UnsupportedFormatError(
            f"the weights of {folder} are pickled, and pickles are not read unless that is allowed",
            hint="Fetch the adapter as safetensors, or allow pickles: they are then read in a "
            "process of its own that can run nothing.",
        )
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "adapter_model.safetensors"
        file.write_bytes(unpickle(folder / WEIGHTS_NAME))
        with SafetensorsFile.open(file) as checkpoint:
            return read_state(checkpoint, settings, host, folder)


def unpickle(file: Path) -> bytes:
    """Return the tensors of a pickled state dict as a safetensors file.

    The file is read in a process of its own, with `weights_only`. It may take a minute, and
    1 GiB of memory more than three times its length; what comes out may have twice its length.

    Raises:
        InvalidAdapterError: It is no state dict of float tensors, holds anything else, or
            takes more than it may.
        UnsupportedError: It is too large.
    """
    try:
        size_bytes = file.stat().st_size
    except OSError as error:
        raise InvalidAdapterError(f"{file} cannot be read: {error.strerror}") from error
    if size_bytes > _MAX_FILE_BYTES:
        raise UnsupportedError(
            f"{file} has {size_bytes} bytes; pickles are read up to {_MAX_FILE_BYTES}",
            hint="Fetch the adapter as safetensors.",
        )
    limits = guard.Limits(
        seconds=_SECONDS,
        memory_bytes=_SPARE_BYTES + 3 * size_bytes,
        output_bytes=2 * size_bytes + (1 << 20),
    )
    found = guard.run(_PROGRAM, str(file.absolute()), b"", limits)
    if found is None:
        raise InvalidAdapterError(
            f"{file} is no plain state dict of float tensors, or takes too much memory or time",
            hint="Convert it on a machine you can lose, with PEFT's save_pretrained.",
        )
    return found


def write(place: Path, outgoing: Outgoing) -> None:
    """Fill an empty folder."""
    (place / CONFIG_NAME).write_bytes(settings_text(outgoing))
    torch.save(state_of(outgoing), place / WEIGHTS_NAME)


def _folder(path: Path) -> Path:
    return path.parent if path.name in (CONFIG_NAME, WEIGHTS_NAME) else path
