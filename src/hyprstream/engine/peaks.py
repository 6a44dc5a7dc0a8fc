"""The largest logit of each row, found for all rows at once: what greedy sampling wants.

Torch takes a millisecond for 16 rows of 50,000 logits on a processor, the native kernel a
fifth of it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hyprstream.kernels.native import KINDS, Kernels, open_kernels

Peak = tuple[float, int]
"""The largest number of a row, and its place."""


class PeakFinder:
    """Finds peaks: of equal numbers the first, of NaN the first before all others."""

    def __init__(self, kernels: Kernels | None) -> None:
        self._kernels = kernels

    @classmethod
    def open(cls) -> "PeakFinder":
        """Use the native kernel where it was compiled."""
        return cls(open_kernels())

    def find(self, scores: Float[Tensor, "N V"]) -> list[Peak]:
        """Return the peak of each row."""
        kind = KINDS.get(str(scores.dtype).removeprefix("torch."))
        if self._kernels is None or kind is None or scores.device.type != "cpu":
            best = scores.max(1)
            return list(zip(best.values.tolist(), best.indices.tolist(), strict=True))
        scores = scores.contiguous()
        values = torch.empty(len(scores))
        places = torch.empty(len(scores), dtype=torch.long)
        addresses = values.data_ptr(), places.data_ptr()
        self._kernels.peaks(kind, scores.data_ptr(), *scores.shape, *addresses)
        return list(zip(values.tolist(), places.tolist(), strict=True))
