"""A run on disk: tensors in one file, everything else in another, replaced whole.

A save is complete when `run.json` has its new content, which names the file of tensors by
its hash; before that, the earlier save is still there. So a kill at any moment leaves one.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyprstream.errors import ChecksumMismatchError, CorruptError
from hyprstream.files import sha256_of, storage, sync_folder, write_atomic
from hyprstream.lora.basis import BaseLayers
from hyprstream.lora.exchange.safetensors_file import Part, write_safetensors
from hyprstream.lora.weights import pack, unpack
from hyprstream.models.checkpoint.safetensors import SafetensorsFile
from hyprstream.train.run import Best, HeldOut, Point, Saved
from hyprstream.vdb.tensors import SparseTensor

_DOCUMENT = "run.json"
_FORMAT = 1


def save_run(folder: Path, saved: Saved, settings: Mapping[str, Any]) -> None:
    """Put a run on disk in place of what was saved before.

    Args:
        folder: Of this run alone; made if it is missing.
        saved: The run.
        settings: What its maker needs to set it up again; plain data.

    Raises:
        StorageFullError: The disk is full; the earlier save is still there.
        InvalidSettingsError: The folder may not be used.
    """
    tensors = {f"training/{name}": value for name, value in saved.training.items()}
    shapes: dict[str, list[int]] = {}
    for side, weights in (("current", saved.current), ("best", saved.best.weights)):
        for name, tensor in pack(weights).items():
            tensors |= _plain(f"{side}/{name}", tensor)
            shapes[f"{side}/{name}"] = list(tensor.shape)
    step = saved.curve[-1].step
    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # The name is not that of the earlier save, which has to last until this one is whole.
        file = folder / f"run-{step}.safetensors"
        scratch = folder / f"{file.name}.new"
        write_safetensors(scratch, {name: Part.of(value) for name, value in tensors.items()})
        with scratch.open("rb+") as stream:
            os.fsync(stream.fileno())
        digest = sha256_of(scratch)
        scratch.replace(file)
        sync_folder(folder)
        document = {
            "format": _FORMAT,
            "tensors": {"file": file.name, "sha256": digest, "shapes": shapes},
            "settings": dict(settings),
            "start": None if saved.start is None else asdict(saved.start),
            "best": {
                "step": saved.best.step,
                "held_out": None if saved.best.held_out is None else asdict(saved.best.held_out),
            },
            "curve": [[point.step, point.loss, point.held_out_loss] for point in saved.curve],
            "num_stale": saved.num_stale,
        }
        write_atomic(folder / _DOCUMENT, json.dumps(document).encode(), scratch=folder)
        for other in folder.glob("run-*.safetensors*"):
            if other != file:
                other.unlink()


def saved_settings(folder: Path) -> dict[str, Any] | None:
    """Return the settings of the run that is saved in a folder; None if there is none.

    Raises:
        CorruptError: There is something else.
    """
    document = _document(folder)
    return None if document is None else dict(document["settings"])


def load_run(folder: Path, base: BaseLayers | None = None) -> Saved:
    """Return the run that is saved in a folder.

    Args:
        folder: Where `saved_settings` finds one.
        base: The base model's layers, for kinds of adapters that are not complete without.

    Raises:
        ChecksumMismatchError: The tensors are not those that were saved.
        CorruptError: There is no sound save.
    """
    document = _document(folder)
    if document is None:
        raise _damaged(folder, "it is missing")
    about = document["tensors"]
    file = folder / Path(about["file"]).name
    if not file.is_file() or sha256_of(file) != about["sha256"]:
        raise ChecksumMismatchError(
            f"{file} is not what was saved", hint="Begin the training again."
        )
    parts: dict[str, dict[str, Tensor]] = {"training": {}, "current": {}, "best": {}}
    with SafetensorsFile.open(file) as stored:
        for name in stored.names():
            part, _, rest = name.partition("/")
            parts[part][rest] = stored.tensor(name).clone()
    weights = {
        side: unpack(_sparse(side, parts[side], about["shapes"]), base)
        for side in ("current", "best")
    }
    best = document["best"]
    held_out = _held_out(best["held_out"])
    return Saved(
        training=parts["training"],
        current=weights["current"],
        best=Best(step=best["step"], weights=weights["best"], held_out=held_out),
        start=_held_out(document["start"]),
        curve=[
            Point(step=step, loss=loss, held_out_loss=other)
            for step, loss, other in document["curve"]
        ],
        num_stale=document["num_stale"],
    )


def remove_run(folder: Path) -> None:
    """Remove what is saved of a run; nothing happens where there is none."""
    with storage(folder):
        (folder / _DOCUMENT).unlink(missing_ok=True)
        for file in folder.glob("run-*.safetensors*"):
            file.unlink()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _plain(name: str, tensor: SparseTensor) -> dict[str, Tensor]:
    found = {f"{name}/values": torch.from_numpy(tensor.values)}
    if tensor.indices is not None:
        found[f"{name}/indices"] = torch.from_numpy(tensor.indices)
    return found


def _sparse(
    side: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, list[int]]
) -> dict[str, SparseTensor]:
    found = {}
    # In the order in which they were: sums over all parameters round differently in another.
    for path, shape in shapes.items():
        part, _, name = path.partition("/")
        if part != side:
            continue
        indices = tensors.get(f"{name}/indices")
        found[name] = SparseTensor(
            shape=tuple(shape),
            dtype="float32",
            values=tensors[f"{name}/values"].numpy(),
            indices=None if indices is None else indices.numpy(),
        )
    return found


def _document(folder: Path) -> dict[str, Any] | None:
    file = folder / _DOCUMENT
    with storage(folder):
        if not file.is_file():
            return None
        content = file.read_bytes()
    try:
        document: dict[str, Any] = json.loads(content)
        if document["format"] != _FORMAT:
            raise _damaged(folder, f"its format is {document['format']!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, str(error)) from error
    return document


def _held_out(value: Mapping[str, Any] | None) -> HeldOut | None:
    return None if value is None else HeldOut(loss=value["loss"], losses=tuple(value["losses"]))


def _damaged(folder: Path, problem: str) -> CorruptError:
    return CorruptError(
        f"{folder / _DOCUMENT} is no saved run: {problem}", hint="Begin the training again."
    )
