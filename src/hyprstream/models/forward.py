"""What travels through a model besides its weights: tokens, how to attend, what to add.

No global context and no attaching of modules: the same model object serves requests,
embeds text and trains an adapter, because all that differs between those is in the batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from ctypes import Array
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from hyprstream.kernels.native import NativeLowRank, NativeReads


@runtime_checkable
class Attention(Protocol):
    """How a layer attends. Serving reads and writes a cache; training does not."""

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "T H D"],
        k: Float[Tensor, "T K D"],
        v: Float[Tensor, "T K D"],
    ) -> Float[Tensor, "T H D"]:
        """Mix the values `v` of all positions that each query of `layer` may see."""
        ...


class ReadsPlaces(ABC):
    """An `Attention` whose keys and values the native kernels may read and write themselves."""

    @abstractmethod
    def reads(self, rows: Float[Tensor, "T C"]) -> NativeReads | None:
        """Return where those of a step lie; None where some of its rows are not for the kernels.

        The memory is there for as long as this object is, or until the next step.

        Args:
            rows: Any that have the number and the dtype of the step's.
        """


@runtime_checkable
class LoraView(Protocol):
    """What adapters add to the output of one linear layer. None means nothing."""

    def delta(self, path: str, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"] | None:
        """Return what to add to the output of the linear layer at `path` for input `x`."""
        ...

    def select(self, rows: Int[Tensor, " N"]) -> "LoraView | None":
        """Return the view of chosen rows of the step, for a layer that sees only those."""
        ...


class AddsInPlace(ABC):
    """A `LoraView` that spares the sum: it adds to what the layer has computed.

    Not a protocol: to look whether an object has the methods of one takes as long as a small
    product, and every linear layer looks.
    """

    @abstractmethod
    def add_to(
        self, path: str, x: Float[Tensor, "T I"], y: Float[Tensor, "T O"]
    ) -> Float[Tensor, "T O"]:
        """Return `y` and what is added to it; `y` may be changed."""

    @abstractmethod
    def added(
        self, paths: Sequence[str], rows: Float[Tensor, "T C"]
    ) -> "Array[NativeLowRank] | None":
        """Return what is added to rows at the linear layers `paths`, for the native kernels.

        None where it is not for them. The memory is there for as long as this object is.

        Args:
            paths: The layers; the caller gives the same object each time.
            rows: Any that have the number and the dtype of the step's.
        """


@dataclass(frozen=True, slots=True)
class Factors:
    """x A B times a number, added to the output of a linear layer for its input x.

    Attributes:
        a: A, with a gradient.
        b: B, with a gradient.
        scale: The number.
    """

    a: Float[Tensor, "I R"]
    b: Float[Tensor, "R O"]
    scale: float


class Factored(ABC):
    """A `LoraView` whose products can be computed together with those of the layers.

    Not a protocol, as `AddsInPlace` is none.
    """

    @abstractmethod
    def factors(self, paths: Sequence[str]) -> list[Factors | None] | None:
        """Return what is added at each path, or None if anything there is no such product."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBatch:
    """Everything one forward pass needs besides the weights.

    Attributes:
        token_ids: Tokens of all sequences of the step, packed.
        positions: Position of each token within its own sequence.
        attention: How the layers attend.
        lora: What adapters add; None for the base model alone.
        recompute: For training: keep only the inputs of layers, and compute a layer again for
            its gradient. What is in the batch must not depend on chance then.
    """

    token_ids: Int[Tensor, " T"]
    positions: Int[Tensor, " T"]
    attention: Attention
    lora: LoraView | None = None
    recompute: bool = False
