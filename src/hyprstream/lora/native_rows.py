"""A few rows of a batch times their low-rank adapters, in one call of the native kernel.

Where rows are few, torch spends its time on calls and on ranks that belong to other rows.
The kernel reads each adapter once, as it lies in the stacks, and nothing else. The equal in
torch is `low_rank_product`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyprstream.kernels.native import KINDS, Kernels, Kind, open_kernels
from hyprstream.lora.regions import Region
from hyprstream.lora.rows import nothing

MAX_ROWS = 64
"""From so many rows on, products in torch are as fast: they reuse what they have read."""


@dataclass(frozen=True, eq=False)
class RowGroups:
    """Which rows of a batch use which ranks.

    Attributes:
        ranks: Begin and end of the ranks of each group, within the stacks.
        ends: Where the rows of each group end in `rows`.
        rows: The rows of all groups, one group after the other; others get nothing.
    """

    ranks: Int[Tensor, "G 2"]
    ends: Int[Tensor, " G"]
    rows: Int[Tensor, " N"]

    @cached_property
    def addresses(self) -> tuple[int, int, int, int]:
        """The number of groups, and where the kernel finds the three."""
        return (
            len(self.ends),
            self.ranks.data_ptr(),
            self.ends.data_ptr(),
            self.rows.data_ptr(),
        )

    @classmethod
    def of(cls, groups: Sequence[tuple[Region, Sequence[int]]]) -> "RowGroups":
        """Make them from the region and the rows of each group."""
        ends, rows = [], list[int]()
        for _, members in groups:
            rows += members
            ends.append(len(rows))
        regions = [(region.start, region.stop) for region, _ in groups]
        return cls(
            torch.tensor(regions, dtype=torch.int32).view(-1, 2),
            torch.tensor(ends, dtype=torch.int32),
            torch.tensor(rows, dtype=torch.int32),
        )


class NativeRows:
    """The kernel for one dtype of activations and stacks."""

    def __init__(self, kernels: Kernels, kind: Kind, dtype: torch.dtype) -> None:
        self._kernels = kernels
        self._kind = kind
        self._dtype = dtype

    @classmethod
    def open(cls, dtype: torch.dtype, device: torch.device) -> "NativeRows | None":
        """Return the kernel, if it was compiled and is for this dtype and device."""
        kind = KINDS.get(str(dtype).removeprefix("torch."))
        if device.type != "cpu" or kind is None:
            return None
        kernels = open_kernels()
        return None if kernels is None else cls(kernels, kind, dtype)

    def takes(self, x: Tensor) -> bool:
        """Tell whether the kernel is for such rows: few, of its dtype, without a gradient."""
        wants_gradient = x.requires_grad and torch.is_grad_enabled()
        return x.dtype == self._dtype and len(x) <= MAX_ROWS and not wants_gradient

    def product(
        self,
        x: Float[Tensor, "T I"],
        a: Float[Tensor, "R I"],
        b: Float[Tensor, "R O"],
        groups: RowGroups,
    ) -> Float[Tensor, "T O"]:
        """Return what the groups' ranks add to their rows, and -0 for all others.

        Products and sums are float32, and the same for a row whatever the others are.

        Args:
            x: Rows of a batch, in the dtype of the stacks.
            a: Stacked ranks, going in; dense.
            b: The same, coming out.
            groups: Which rows use which.
        """
        return self.add_to(nothing(x, b.shape[1]), x, a, b, groups)

    def add_to(
        self,
        y: Float[Tensor, "T O"],
        x: Float[Tensor, "T I"],
        a: Float[Tensor, "R I"],
        b: Float[Tensor, "R O"],
        groups: RowGroups,
    ) -> Float[Tensor, "T O"]:
        """Add to rows of `y` what the groups' ranks add, and return it; parameters as above."""
        assert y.is_contiguous(), "rows to add to lie together"
        assert y.dtype == x.dtype, f"rows of {x.dtype} add to {y.dtype}"
        x = x.contiguous()
        self._kernels.low_rank(
            self._kind,
            x.data_ptr(),
            a.data_ptr(),
            b.data_ptr(),
            y.data_ptr(),
            x.shape[1],
            b.shape[1],
            *groups.addresses,
            torch.get_num_threads(),
            self._kernels.instructions,
        )
        return y
