"""W + D, tensor by tensor, as a model's own file stores it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hyprstream.errors import IncompatibleAdapterError, InvalidAdapterError, UnsupportedError
from hyprstream.lora.delta import Delta
from hyprstream.lora.weights import LoraWeights
from hyprstream.models.checkpoint import BLOCK_TYPES, Checkpoint
from hyprstream.models.load import OpenModel
from hyprstream.models.quant import BlockWeight
from hyprstream.models.weights import Names, Stored

_DENSE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What an adapter does to one stored tensor.

    Attributes:
        delta: What is added.
        index: To which entry of a stack of matrices; None for a matrix.
        order: Which stored row each row of the layer is; None where they lie alike.
        path: The layer.
    """

    delta: Delta
    index: int | None
    order: Tensor | None
    path: str


def find(names: Names, checkpoint: Checkpoint, path: str) -> Stored | None:
    """Return where a checkpoint keeps a parameter; None if it does not."""
    return next((place for place in names(path) if place.name in checkpoint), None)


def changes_of(
    model: OpenModel, weights: LoraWeights, names: Names, orders: Mapping[str, Tensor]
) -> dict[str, list[Change]]:
    """Return what the adapter does to each stored tensor.

    A head that shares the embedding's table is not among them: the table must stay.

    Args:
        model: The base model.
        weights: The adapter.
        names: Where its file keeps parameters.
        orders: Path of a layer -> which stored row is each of its rows.

    Raises:
        IncompatibleAdapterError: The model has no such layer.
    """
    found: dict[str, list[Change]] = {}
    for path, delta in weights.modules.items():
        place = find(names, model.checkpoint, f"{path}.weight")
        if path == "lm_head" and (place is None or model.config.tied):
            continue
        if place is None:
            raise IncompatibleAdapterError(
                f"the model has no linear layer at {path}",
                hint="Use the adapter with the base model that it was trained on.",
            )
        change = Change(delta, place.index, orders.get(path), path)
        found.setdefault(place.name, []).append(change)
    return found


def dense(checkpoint: Checkpoint, name: str) -> Float[Tensor, "..."]:
    """Return a stored tensor in float32, whatever it is stored in.

    Raises:
        UnsupportedError: It is stored as something that no sum can be formed with.
    """
    info = checkpoint.info(name)
    if info.kind in BLOCK_TYPES:
        blocks = checkpoint.blocks(name)
        flat = BlockWeight(blocks.reshape(-1, blocks.shape[-1]), info.kind)
        return flat.dequantize(torch.float32).view(info.shape)
    tensor = checkpoint.tensor(name)
    if tensor.dtype not in _DENSE:
        raise UnsupportedError(
            f"tensor {name} is stored as {info.kind}, into which nothing is fused",
            hint="Use the model in F32, F16 or BF16.",
        )
    return tensor.float()


def summed(
    checkpoint: Checkpoint, name: str, changes: Sequence[Change], dtype: torch.dtype
) -> Float[Tensor, "..."]:
    """Return a stored tensor with an adapter's changes, formed in float32 and rounded once.

    Raises:
        IncompatibleAdapterError: The adapter was made for another shape.
        InvalidAdapterError: A sum does not fit into the dtype.
        UnsupportedError: The tensor is stored as something that no sum can be formed with.
    """
    total = dense(checkpoint, name).clone()
    for change in changes:
        target = total if change.index is None else total[change.index]
        if tuple(target.shape) != change.delta.shape:
            raise IncompatibleAdapterError(
                f"the adapter changes a linear layer of shape {change.delta.shape} at "
                f"{change.path}, the model has {tuple(target.shape)} there",
                hint="Use the adapter with the base model that it was trained on.",
            )
        added = change.delta.dense()
        if change.order is None:
            target += added
        else:
            target[change.order] += added
    return rounded(total, dtype, name)


def rounded(total: Float[Tensor, "..."], dtype: torch.dtype, name: str) -> Float[Tensor, "..."]:
    """Return a tensor in a dtype.

    Raises:
        InvalidAdapterError: It does not fit.
    """
    result = total.to(dtype)
    if not torch.isfinite(result).all():
        raise InvalidAdapterError(
            f"{name} with the adapter holds a value that {dtype} cannot",
            hint="Write the model in float32 or bfloat16.",
        )
    return result


def target_dtype(checkpoint: Checkpoint, name: str, wanted: torch.dtype | None) -> torch.dtype:
    """Return the dtype to write a changed tensor in: its own unless one is wanted.

    What is stored in blocks becomes float16, which is finer than all of them.
    """
    if wanted is not None:
        return wanted
    info = checkpoint.info(name)
    return torch.float16 if info.kind in BLOCK_TYPES else checkpoint.tensor(name).dtype
