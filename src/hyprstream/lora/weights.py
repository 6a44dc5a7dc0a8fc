"""The weights of one adapter version on the host: immutable, named by their content."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType

from hyprstream import lookup
from hyprstream.errors import UnsupportedError
from hyprstream.lora.basis import BaseLayers, Basis
from hyprstream.lora.delta import Delta, Kind, Target
from hyprstream.lora.parts import by_path
from hyprstream.refs import VersionId
from hyprstream.vdb.tensors import SparseTensor


class LoraWeights:
    """What an adapter adds to each linear layer that it changes; all scales folded in.

    Attributes:
        modules: Path of the layer, as in `Linear.path` -> what is added to it.
    """

    def __init__(self, modules: Mapping[str, Delta]) -> None:
        self.modules: Mapping[str, Delta] = MappingProxyType(dict(modules))

    @property
    def size_bytes(self) -> int:
        """Bytes on the host that are its own."""
        return sum(delta.size_bytes for delta in self.modules.values())

    @property
    def shared(self) -> frozenset[Basis]:
        """What it needs besides, and other adapters may need too."""
        return frozenset(basis for delta in self.modules.values() for basis in delta.shared)

    @property
    def max_rank(self) -> int:
        """Highest rank of a module; 0 if nothing is added."""
        return max((delta.rank for delta in self.modules.values()), default=0)

    def fingerprint(self) -> VersionId:
        """Return the SHA-256 of the content as `pack` gives it: names, shapes, masks and bits."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> VersionId:
        digest = hashlib.sha256()
        for name, tensor in sorted(pack(self).items()):
            # Lengths follow from the header, so no two contents give the same bytes.
            is_sparse = tensor.indices is not None
            header = [name, tensor.dtype, list(tensor.shape), tensor.num_active, is_sparse]
            digest.update(json.dumps(header).encode() + b"\n")
            digest.update(tensor.values.astype(tensor.values.dtype.newbyteorder("<")).data)
            if tensor.indices is not None:
                digest.update(tensor.indices.astype("<i8").data)
        return VersionId(digest.hexdigest())


def pack(weights: LoraWeights) -> dict[str, SparseTensor]:
    """Return an adapter as sparse arrays, bit by bit, named `PATH/KIND/TENSOR`.

    What the base model's weights imply is not among them (`lora/kinds/tiny.py`).
    """
    return {
        f"{path}/{delta.kind}/{name}": tensor
        for path, delta in weights.modules.items()
        for name, tensor in delta.pack().items()
    }


def unpack(tensors: Mapping[str, SparseTensor], base: BaseLayers | None = None) -> LoraWeights:
    """Return the adapter that `pack` gave these arrays for.

    Args:
        tensors: They may come from outside.
        base: The base model's layers, for kinds that are not complete without them.

    Raises:
        InvalidAdapterError: They are no adapter, or one that needs the base model.
        IncompatibleAdapterError: They belong to another base model.
        UnsupportedError: No such kind of adapter is known.
    """
    return LoraWeights(
        {
            path: kind_of(kind).unpack(Target(path=path, base=base), parts)
            for path, (kind, parts) in by_path(tensors).items()
        }
    )


def kind_of(name: str) -> Kind:
    """Return the kind of delta that a name stands for.

    Raises:
        UnsupportedError: None.
    """
    module = lookup.load("hyprstream.lora.kinds", name, kind="kind of adapter")
    kind: Kind = module.DELTA
    return kind


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
