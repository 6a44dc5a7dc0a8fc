"""What came of reading an adapter, as data."""

from dataclasses import dataclass

from hyprstream.errors import InvalidAdapterError
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.weights import LoraWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleReport:
    """One linear layer that an adapter changes.

    Attributes:
        path: The layer.
        rank: Of the product.
        scale: What the file multiplies the product with.
        norm: Frobenius norm of what is added to W, scale included.
        zeros: Tensors of the file that hold nothing but zeros: the layer is not changed.
    """

    path: str
    rank: int
    scale: float
    norm: float
    zeros: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How a file's modules and a model's layers fit together.

    Attributes:
        modules: What was read, in the order of the model's layers.
        missing: Layers of the model that the file's settings name and that it holds nothing for.
        unexpected: Modules of the file that the model has no layer for, or that the file's own
            settings leave out; they are not part of the adapter.
        ignored: Settings of the file that are not known here.
    """

    modules: tuple[ModuleReport, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Nothing is missing and nothing was left out."""
        return not self.missing and not self.unexpected

    def check(self, origin: object) -> None:
        """Make sure that something was read.

        Raises:
            InvalidAdapterError: No module fits the model.
        """
        if self.modules:
            return
        found = ", ".join(self.unexpected[:3]) or "no modules at all"
        raise InvalidAdapterError(
            f"{origin} changes no layer of this model; it holds {found}",
            hint="Use the adapter with the base model that it was trained on.",
        )


@dataclass(frozen=True, slots=True, eq=False)
class Imported:
    """An adapter that was read from a file.

    Attributes:
        weights: The adapter.
        spec: What its settings say of it; patterns name layers by path.
        coverage: What was read and what was not.
    """

    weights: LoraWeights
    spec: LoraSpec
    coverage: Coverage
