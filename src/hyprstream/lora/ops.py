"""Products of many low-rank adapters with the rows of one batch.

The adapters of a batch lie in one stack, rank after rank. A block is some rows of the batch
and a stretch of the stack: one product with the whole stretch, one mask that erases the
ranks which belong to other slots than the row's, one product back. Against reading each
adapter by itself this saves calls, which cost more than the arithmetic for a few rows, and
against gathering adapters by row it saves the copy, which costs several times the product.
What it wastes grows with rows times ranks, so `cut` starts a new block where that is dearer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from hyprstream.lora.regions import Region

# Measured with 1 to 512 rows, ranks 8 to 64 and widths 576 to 3072 on one core with AMX. In
# units of reading one rank of a stack: arithmetic per row, and the calls for one block.
# Eight rows with eight adapters of rank 16, width 576: 33 us as one block, 55 one by one,
# 121 after a gather, beside 84 for the layer itself.
_ROW_COST = 1 / 8
_BLOCK_COST = 32
# Up to here float32 is faster on a CPU (8 against 46 us for 8 rows with one such adapter):
# each bfloat16 product costs 20 us before it begins.
_MAX_FLOAT32_ROWS = 64


@dataclass(frozen=True, slots=True)
class Share:
    """The rows of a batch that use one slot, and where its ranks lie."""

    slot: int
    region: Region
    num_rows: int


def storage_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype in which stacks are fastest for activations of `dtype`."""
    return torch.float32 if device.type == "cpu" else dtype


def cut(shares: Sequence[Share]) -> list[list[Share]]:
    """Cut the shares of a batch into blocks, each cheaper whole than in parts.

    Args:
        shares: In order of their regions.
    """
    blocks: list[list[Share]] = []
    for share in shares:
        if blocks and _cost([*blocks[-1], share]) <= _cost(blocks[-1]) + _cost([share]):
            blocks[-1].append(share)
        else:
            blocks.append([share])
    return blocks


def _cost(block: Sequence[Share]) -> float:
    num_ranks = block[-1].region.stop - block[0].region.start
    num_rows = sum(share.num_rows for share in block)
    return _BLOCK_COST + num_ranks * (1 + num_rows * _ROW_COST)


def low_rank_product(
    x: Float[Tensor, "T I"],
    a: Float[Tensor, "R I"],
    b: Float[Tensor, "R O"],
    others: Bool[Tensor, "T R"] | None = None,
) -> Float[Tensor, "T O"]:
    """Return x a^T b in the dtype of `x`, differentiable in all three.

    Args:
        x: Rows of a batch.
        a: Stacked ranks of one or more adapters, going in.
        b: The same, coming out.
        others: Marks the ranks that a row does not use; None if all rows use all of them.
    """
    dtype = x.dtype
    x, a, b = in_one_dtype(x, a, b)
    hidden = F.linear(x, a)  # T R
    if others is not None:
        # Filled, not multiplied: what overflowed in another adapter's ranks is no number.
        hidden = hidden.masked_fill(others, 0)
    return (hidden @ b).to(dtype)


def in_one_dtype(x: Float[Tensor, "T I"], *stored: Float[Tensor, "..."]) -> list[Tensor]:
    """Return rows and stored tensors in the dtype in which their products are fastest."""
    if x.shape[0] <= _MAX_FLOAT32_ROWS:
        return [x.to(stored[0].dtype), *stored]
    return [x, *(tensor.to(x.dtype) for tensor in stored)]


def row_by_row(
    x: Float[Tensor, "T I"],
    slots: Sequence[int],
    adapters: Mapping[int, tuple[Float[Tensor, "I _"], Float[Tensor, "_ O"]]],
    num_outputs: int,
) -> Float[Tensor, "T O"]:
    """Return what the adapter of each row's slot adds to it: the reference, one row at a time.

    Args:
        x: Rows of a batch.
        slots: The slot of each row.
        adapters: A and B of the slots that add something.
        num_outputs: O, which rows without an adapter need.
    """
    added = []
    for row, slot in zip(x, slots, strict=True):
        a, b = adapters.get(slot, (x.new_zeros(x.shape[1], 1), x.new_zeros(1, num_outputs)))
        added.append(row @ a @ b)
    return torch.stack(added) if added else x.new_zeros(0, num_outputs)
