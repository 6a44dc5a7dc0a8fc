"""The weights of one adapter version on the host: immutable, named by their content."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType

import torch

from hyprstream.errors import UnsupportedError
from hyprstream.lora.delta import Delta
from hyprstream.refs import VersionId


class LoraWeights:
    """What an adapter adds to each linear layer that it changes; all scales folded in.

    Attributes:
        modules: Path of the layer, as in `Linear.path` -> what is added to it.
    """

    def __init__(self, modules: Mapping[str, Delta]) -> None:
        self.modules: Mapping[str, Delta] = MappingProxyType(dict(modules))

    @property
    def size_bytes(self) -> int:
        """Bytes on the host."""
        return sum(delta.size_bytes for delta in self.modules.values())

    @property
    def max_rank(self) -> int:
        """Highest rank of a module; 0 if nothing is added."""
        return max((delta.rank for delta in self.modules.values()), default=0)

    def fingerprint(self) -> VersionId:
        """Return the SHA-256 of the content: paths, kinds, dtypes, shapes and bits."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> VersionId:
        digest = hashlib.sha256()
        for path, delta in sorted(self.modules.items()):
            for name, tensor in sorted(delta.tensors().items()):
                # Lengths follow from the header, so no two contents give the same bytes.
                header = [path, delta.kind, name, str(tensor.dtype), list(tensor.shape)]
                digest.update(json.dumps(header).encode() + b"\n")
                digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return VersionId(digest.hexdigest())


def combine(parts: Sequence[tuple[LoraWeights, float]]) -> LoraWeights:
    """Return the weighted sum of adapters: what they add, each times its factor.

    The sum is exact but for the rounding of the products with the factors, and its ranks
    are the sums of the ranks.

    Raises:
        UnsupportedError: Two adapters change one layer in different ways.
        InvalidAdapterError: They were made for layers of different shapes.
    """
    found: dict[str, list[tuple[Delta, float]]] = {}
    for weights, factor in parts:
        for path, delta in weights.modules.items():
            found.setdefault(path, []).append((delta, factor))
    return LoraWeights({path: _combined(path, deltas) for path, deltas in found.items()})


def _combined(path: str, parts: Sequence[tuple[Delta, float]]) -> Delta:
    kinds = sorted({delta.kind for delta, _ in parts})
    if len(kinds) > 1:
        raise UnsupportedError(
            f"adapters that change {path} as {kinds[0]} and {kinds[1]} cannot be combined",
            hint="Combine adapters of one kind.",
        )
    return type(parts[0][0]).combine(parts)
