"""A GGUF file with an adapter fused in, from a GGUF file or a SafeTensors folder.

From a GGUF file, everything that the adapter does not change is taken over byte by byte,
metadata and quantised tensors included. What it changes is written dense.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hyprstream.errors import UnsupportedError
from hyprstream.lora.exchange.gguf_file import GgufPart, entries_of, write_gguf
from hyprstream.lora.exchange.host import Host
from hyprstream.lora.exchange.safetensors_file import Part
from hyprstream.lora.fused.gguf_model import entries_from, parts_from
from hyprstream.lora.fused.sums import Change, changes_of, summed, target_dtype
from hyprstream.lora.weights import LoraWeights
from hyprstream.models.checkpoint import Checkpoint, GgufFile
from hyprstream.models.load import OpenModel
from hyprstream.models.weights import Names, gguf_names

IS_FOLDER = False
_HEAD = "output.weight"
_TABLE = "token_embd.weight"
# llama.cpp gives these families no head but the embedding's table.
_ALWAYS_TIED = ("gemma2",)


def write(
    place: Path,
    model: OpenModel,
    host: Host,
    weights: LoraWeights,
    dtype: torch.dtype | None,
) -> None:
    """Write a file.

    Raises:
        UnsupportedError: The base model is a SafeTensors folder of which no GGUF file can be
            made here, or the adapter changes a head that its family cannot have.
        IncompatibleAdapterError: The adapter is for another model.
        InvalidAdapterError: A sum does not fit into the dtype.
    """
    if not isinstance(model.checkpoint, GgufFile):
        write_gguf(place, entries_from(model, host, dtype), parts_from(model, host, weights, dtype))
        return
    file = model.checkpoint
    names: Names = gguf_names(model.family.GGUF_NAMES)
    changes = changes_of(model, weights, names, host.gguf_orders(weights.modules))
    parts = {name: _part(file, name, changes, dtype) for name in file.names()}
    if "lm_head" in weights.modules and _HEAD not in changes:
        if host.config.architecture in _ALWAYS_TIED:
            raise UnsupportedError(
                f"llama.cpp has no head of its own for family {host.config.architecture!r}, "
                "and the adapter changes it",
                hint="Fuse it into the model's SafeTensors folder.",
            )
        head = Change(weights.modules["lm_head"], None, None, "lm_head")
        parts[_HEAD] = _changed(file, _TABLE, [head], dtype)
    write_gguf(place, entries_of(file, without=()), parts, alignment=file.alignment)


def _part(
    file: GgufFile, name: str, changes: Mapping[str, Sequence[Change]], dtype: torch.dtype | None
) -> GgufPart:
    if name in changes:
        return _changed(file, name, changes[name], dtype)
    info = file.info(name)
    return GgufPart(
        shape=info.shape,
        kind=info.kind,
        size_bytes=info.size_bytes,
        make=lambda: file.blocks(name).reshape(-1).numpy().data,
    )


def _changed(
    checkpoint: Checkpoint, name: str, changes: Sequence[Change], dtype: torch.dtype | None
) -> GgufPart:
    target = target_dtype(checkpoint, name, dtype)

    def make() -> Tensor:
        return summed(checkpoint, name, changes, target)

    return GgufPart.dense(Part(shape=checkpoint.info(name).shape, dtype=target, make=make))
