"""Rows of a batch that are computed together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Some rows of a batch, in the order in which they are computed.

    Attributes:
        chosen: Which; a slice where they lie side by side, which spares a copy.
        is_all: They are all rows of the batch, in its order.
    """

    chosen: slice | Int[Tensor, " N"]
    is_all: bool

    @classmethod
    def of(cls, numbers: Sequence[int], num_rows: int, device: torch.device) -> Self:
        """Choose rows by their numbers, at least one, of a batch of `num_rows`."""
        first, count = numbers[0], len(numbers)
        if list(numbers) == list(range(first, first + count)):
            return cls(slice(first, first + count), is_all=count == num_rows)
        return cls(torch.tensor(numbers, device=device), is_all=False)

    def take(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "N I"]:
        """Return these rows."""
        return x[self.chosen] if isinstance(self.chosen, slice) else x.index_select(0, self.chosen)

    def put(
        self, added: Float[Tensor, "T O"], values: Float[Tensor, "N O"]
    ) -> Float[Tensor, "T O"]:
        """Put values into these rows of `added`."""
        if isinstance(self.chosen, slice):
            added[self.chosen] = values
            return added
        return added.index_copy_(0, self.chosen, values)


def by_slot(slots: Sequence[int]) -> dict[int, list[int]]:
    """Sort the rows of a batch by their slot."""
    rows: dict[int, list[int]] = {}
    for row, slot in enumerate(slots):
        rows.setdefault(slot, []).append(row)
    return rows


def nothing(x: Float[Tensor, "T I"], num_outputs: int) -> Float[Tensor, "T O"]:
    """Return what adds nothing to any row, not a bit: -0 does not, +0 turns -0 into +0."""
    return x.new_full((x.shape[0], num_outputs), -0.0)
