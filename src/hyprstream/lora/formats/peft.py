"""PEFT folders: `adapter_config.json` and `adapter_model.safetensors`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hyprstream.errors import CorruptError, InvalidAdapterError
from hyprstream.lora.exchange.coverage import Imported
from hyprstream.lora.exchange.format import ReadOptions
from hyprstream.lora.exchange.host import Host
from hyprstream.lora.exchange.outgoing import Outgoing
from hyprstream.lora.exchange.peft_settings import parse
from hyprstream.lora.exchange.peft_state import read_state, settings_text, state_of
from hyprstream.lora.exchange.safetensors_file import Part, write_safetensors
from hyprstream.models.checkpoint import SafetensorsFile
from hyprstream.models.load import read_json

IS_FOLDER = True
CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"


def recognizes(path: Path) -> bool:
    """Tell whether both files are there; naming one of them names the folder."""
    folder = _folder(path)
    return (folder / CONFIG_NAME).is_file() and (folder / WEIGHTS_NAME).is_file()


def read(path: Path, host: Host, options: ReadOptions) -> Imported:  # noqa: ARG001
    """Read a folder.

    Raises:
        InvalidAdapterError: It is no sound adapter, or none for this model.
        IncompatibleAdapterError: A layer of the model has another shape.
        UnsupportedError: It is of a kind, or has a part, that is not supported.
        CorruptWeightsError: A file breaks the rules of its format.
    """
    folder = _folder(path)
    settings = parse(read_settings(folder), folder / CONFIG_NAME)
    with SafetensorsFile.open(folder / WEIGHTS_NAME) as checkpoint:
        return read_state(checkpoint, settings, host, folder)


def write(place: Path, outgoing: Outgoing) -> None:
    """Fill an empty folder."""
    (place / CONFIG_NAME).write_bytes(settings_text(outgoing))
    parts = {name: Part.of(tensor) for name, tensor in state_of(outgoing).items()}
    write_safetensors(place / WEIGHTS_NAME, parts)


def read_settings(folder: Path) -> Mapping[str, Any]:
    """Read the settings of a folder.

    Raises:
        InvalidAdapterError: There are none, or they are no JSON object.
    """
    try:
        values = read_json(folder / CONFIG_NAME)
    except CorruptError as error:
        raise InvalidAdapterError(str(error), hint="Fetch the adapter again.") from error
    if values is None:
        raise InvalidAdapterError(
            f"{folder} has no {CONFIG_NAME}", hint="Put it beside the adapter's weights."
        )
    return values


def _folder(path: Path) -> Path:
    return path.parent if path.name in (CONFIG_NAME, WEIGHTS_NAME) else path
