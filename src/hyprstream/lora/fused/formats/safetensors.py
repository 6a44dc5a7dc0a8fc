"""A SafeTensors folder with an adapter fused in, from a SafeTensors folder or a GGUF file."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hyprstream.errors import UnsupportedError
from hyprstream.lora.exchange.host import Host
from hyprstream.lora.exchange.safetensors_file import Part, write_safetensors
from hyprstream.lora.fused.hf_model import parts_of, settings_of
from hyprstream.lora.fused.hf_vocabulary import write_vocabulary
from hyprstream.lora.fused.sums import (
    Change,
    changes_of,
    dense,
    find,
    rounded,
    summed,
    target_dtype,
)
from hyprstream.lora.weights import LoraWeights
from hyprstream.models.checkpoint import Checkpoint, GgufFile
from hyprstream.models.checkpoint.safetensors import SINGLE_NAME
from hyprstream.models.load import OpenModel, read_json
from hyprstream.models.weights import hf_names

IS_FOLDER = True
_MAX_BYTES = 5 * 10**9  # the size from which transformers cuts files into shards
_HEAD = "lm_head.weight"
_TABLE = "embed_tokens.weight"
# Settings, vocabularies and texts; no weights and no code.
_COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*", "README.md")
_LEFT_OUT = ("config.json", "*.index.json", "adapter_config.json", ".*")


def write(
    place: Path,
    model: OpenModel,
    host: Host,
    weights: LoraWeights,
    dtype: torch.dtype | None,
) -> None:
    """Fill an empty folder.

    Raises:
        UnsupportedError: The result is larger than one file may be, or the base model is a
            GGUF file of a family that has no such form here.
        IncompatibleAdapterError: The adapter is for another model.
        InvalidAdapterError: A sum does not fit into the dtype.
    """
    if model.folder is None:
        _write_from_gguf(place, model, host, weights, dtype)
        return
    changes = changes_of(model, weights, hf_names, {})
    parts = {name: _part(model, name, changes, dtype) for name in model.checkpoint.names()}
    settings: dict[str, object] = {}
    if "lm_head" in weights.modules and not any(c.path == "lm_head" for c in _all(changes)):
        # Tied so far: from here on the head is a table of its own.
        parts[_HEAD] = _head(model, weights, dtype)
        settings["tie_word_embeddings"] = False
    _check_size(parts)
    if dtype is not None:
        settings |= _dtype_settings(dtype)
    _copy_files(model.folder, place)
    config = read_json(model.folder / "config.json")
    assert config is not None, "the model was opened with it"
    _write_config(place, _with(config, settings))
    write_safetensors(place / SINGLE_NAME, parts)


def _write_from_gguf(
    place: Path, model: OpenModel, host: Host, weights: LoraWeights, dtype: torch.dtype | None
) -> None:
    assert isinstance(model.checkpoint, GgufFile)
    settings = settings_of(model.config, tied=host.is_tied and "lm_head" not in weights.modules)
    parts = parts_of(model, host, weights, dtype)
    _check_size(parts)
    metadata, context = dict(model.checkpoint.metadata), model.config.context_length
    settings |= write_vocabulary(place, metadata, context)
    table = parts[f"model.{_TABLE}"]
    _write_config(place, {**settings, **_dtype_settings(table.dtype)})
    write_safetensors(place / SINGLE_NAME, parts)


def _check_size(parts: Mapping[str, Part]) -> None:
    size_bytes = sum(part.size_bytes for part in parts.values())
    if size_bytes > _MAX_BYTES:
        raise UnsupportedError(
            f"the fused model takes {size_bytes} bytes, files are written up to {_MAX_BYTES}",
            hint="Write it in bfloat16 or float16, or as a GGUF file.",
        )


def _dtype_settings(dtype: torch.dtype) -> dict[str, object]:
    name = str(dtype).removeprefix("torch.")
    return {"dtype": name, "torch_dtype": name}


def _write_config(place: Path, config: Mapping[str, object]) -> None:
    (place / "config.json").write_text(json.dumps(config, indent=2), "utf-8")


def _part(
    model: OpenModel, name: str, changes: Mapping[str, Sequence[Change]], dtype: torch.dtype | None
) -> Part:
    checkpoint = model.checkpoint
    if name in changes:
        target = target_dtype(checkpoint, name, dtype)
        shape = checkpoint.info(name).shape
        return Part(
            shape=shape,
            dtype=target,
            make=lambda: summed(checkpoint, name, changes[name], target),
        )
    stored = checkpoint.tensor(name)
    is_kept = dtype is None or not stored.dtype.is_floating_point
    target = stored.dtype if is_kept or dtype is None else dtype
    make = _kept(checkpoint, name) if is_kept else _turned(checkpoint, name, target)
    return Part(shape=tuple(stored.shape), dtype=target, make=make)


def _kept(checkpoint: Checkpoint, name: str) -> Callable[[], Tensor]:
    return lambda: checkpoint.tensor(name)


def _turned(checkpoint: Checkpoint, name: str, dtype: torch.dtype) -> Callable[[], Tensor]:
    return lambda: rounded(dense(checkpoint, name), dtype, name)


def _head(model: OpenModel, weights: LoraWeights, dtype: torch.dtype | None) -> Part:
    """Return the embedding's table with what the adapter adds to the head."""
    table = find(hf_names, model.checkpoint, _TABLE)
    assert table is not None, "the model was opened and has one"
    change = Change(weights.modules["lm_head"], None, None, "lm_head")
    target = target_dtype(model.checkpoint, table.name, dtype)
    return Part(
        shape=model.checkpoint.info(table.name).shape,
        dtype=target,
        make=lambda: summed(model.checkpoint, table.name, [change], target),
    )


def _with(config: Mapping[str, object], settings: Mapping[str, object]) -> dict[str, object]:
    """Change settings, also those of the text part of a larger model."""
    text = config.get("text_config")
    nested = {"text_config": {**text, **settings}} if isinstance(text, Mapping) else {}
    return {**config, **settings, **nested}


def _copy_files(source: Path, place: Path) -> None:
    for file in sorted(source.iterdir()):
        is_wanted = any(file.match(pattern) for pattern in _COPIED)
        if is_wanted and not any(file.match(p) for p in _LEFT_OUT) and file.is_file():
            shutil.copyfile(file, place / file.name)


def _all(changes: Mapping[str, Sequence[Change]]) -> list[Change]:
    return [change for listed in changes.values() for change in listed]
