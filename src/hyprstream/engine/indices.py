"""Small tensors of integers, of which every step makes some."""

from array import array
from collections.abc import Iterable

import torch
from jaxtyping import Int
from torch import Tensor


def indices(numbers: Iterable[int], device: torch.device) -> Int[Tensor, " N"]:
    """Return one or more numbers as a tensor.

    For a few numbers `torch.tensor` takes several times as long, and twice as long between
    passes of a model, which leave nothing of it in the caches.
    """
    made = torch.frombuffer(array("q", numbers), dtype=torch.int64)
    return made if device.type == "cpu" else made.to(device)
