"""A single safetensors file with PEFT's names.

What we write carries its settings in the header, as `adapter_config`. Files of others may
name an alpha there; without one it has to be given.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

from hyprstream.errors import HyprstreamError, InvalidAdapterError
from hyprstream.lora.exchange.coverage import Imported
from hyprstream.lora.exchange.format import ReadOptions
from hyprstream.lora.exchange.host import Host
from hyprstream.lora.exchange.outgoing import Outgoing
from hyprstream.lora.exchange.peft_settings import PeftSettings, parse
from hyprstream.lora.exchange.peft_state import module_ranks, read_state, settings_of, state_of
from hyprstream.lora.exchange.safetensors_file import Part, write_safetensors
from hyprstream.lora.exchange.targets import Targets
from hyprstream.models.checkpoint import SafetensorsFile
from hyprstream.models.checkpoint.magic import SAFETENSORS, identify
from hyprstream.models.checkpoint.mapping import MappedFile
from hyprstream.models.checkpoint.strict_json import parse_object

IS_FOLDER = False
_SETTINGS = "adapter_config"
_ALPHAS = ("lora_alpha", "alpha")


def recognizes(path: Path) -> bool:
    """Tell by the first bytes."""
    try:
        return path.is_file() and identify(MappedFile.open(path)) == SAFETENSORS
    except HyprstreamError:
        return False


def read(path: Path, host: Host, options: ReadOptions) -> Imported:
    """Read a file.

    Raises:
        InvalidAdapterError: It is no sound adapter, or none for this model, or its alpha is
            not known.
        IncompatibleAdapterError: A layer of the model has another shape.
        UnsupportedError: It is of a kind, or has a part, that is not supported.
        CorruptWeightsError: The file breaks the rules of its format.
    """
    with SafetensorsFile.open(path) as checkpoint:
        settings = _settings(checkpoint, host, path, options.alpha)
        return read_state(checkpoint, settings, host, path)


def write(place: Path, outgoing: Outgoing) -> None:
    """Write a file."""
    parts = {name: Part.of(tensor) for name, tensor in state_of(outgoing).items()}
    write_safetensors(place, parts, {_SETTINGS: json.dumps(settings_of(outgoing))})


def _settings(
    checkpoint: SafetensorsFile, host: Host, path: Path, alpha: float | None
) -> PeftSettings:
    notes = checkpoint.metadata
    if alpha is None and _SETTINGS in notes:
        return parse(parse_object(path, notes[_SETTINGS].encode()), path)
    if alpha is None:
        alpha = _noted_alpha(notes, path)
    if not math.isfinite(alpha) or alpha <= 0:
        raise InvalidAdapterError(f"alpha is {alpha}", hint="Make it a finite number above 0.")
    ranks = module_ranks(checkpoint, host, path)
    rank = max(ranks.values(), default=1)
    return PeftSettings(
        rank=rank,
        alpha=alpha,
        targets=Targets(names=tuple(ranks)),
        rank_pattern={f"^{re.escape(name)}": r for name, r in ranks.items() if r != rank},
    )


def _noted_alpha(notes: Mapping[str, str], path: Path) -> float:
    for key in _ALPHAS:
        try:
            return float(notes[key])
        except KeyError:
            continue
        except ValueError as error:
            raise InvalidAdapterError(f"{path}: {key} is {notes[key][:80]!r}") from error
    raise InvalidAdapterError(
        f"{path} does not say what its products are multiplied with",
        hint="Give its alpha, or read the PEFT folder that it comes from.",
    )
