"""Groups: what every quantised format is once it is unpacked, w = code * scale + offset.

A group is a run of weights of one row that share a scale. All arithmetic on quantised
weights is written against this one form; the formats differ only in how they pack it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Some rows of a quantised matrix, unpacked. Letters here: G groups of E weights each.

    Attributes:
        codes: The integers.
        scale: Multiplies the codes of its group.
        offset: Added after that; None where it is zero throughout.
    """

    codes: Int8[Tensor, "O G E"]
    scale: Float[Tensor, "O G"]
    offset: Float[Tensor, "O G"] | None = None

    def dequantize(self, dtype: torch.dtype) -> Float[Tensor, "O I"]:
        """Compute the weights in float32 and round them to `dtype` once."""
        w = self.codes.to(torch.float32)
        # Two operations on purpose: a fused multiply-add would round differently from ggml.
        w.mul_(self.scale.to(torch.float32).unsqueeze(-1))
        if self.offset is not None:
            w.add_(self.offset.to(torch.float32).unsqueeze(-1))
        return w.flatten(1).to(dtype)
