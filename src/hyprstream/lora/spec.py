"""What an adapter looks like before it has weights: kind, rank, scale, masks, layers.

Plain data, no torch. `lora/create.py` makes weights from it.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Literal, TypeVar

from hyprstream import lookup
from hyprstream.errors import InvalidSettingsError

Structure = Literal["unstructured", "leaf"]
MaskChoice = Literal["seed", "gradient", "magnitude"]

MAX_SPARSITY = 0.999

_Value = TypeVar("_Value", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSpec:
    """The shape of an adapter.

    Patterns name layers as targets do: by path, or by the last part of it. A path's own
    entry counts before one for its last part.

    Example:
        >>> LoraSpec(rank=8, alpha=16).scale
        2.0
        >>> LoraSpec(rank=8, alpha=16, rank_pattern={"v_proj": 4}).scale_of("layers.0.v_proj")
        4.0
    """

    rank: int
    """Width of the product A B (arXiv:2106.09685), or of a tiny adapter's core."""
    alpha: float
    """What the product is multiplied with, before it is divided by the rank."""
    use_rslora: bool = False
    """Divide by the root of the rank instead (arXiv:2312.03732)."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Paths of linear layers, or the last names of them."""
    kind: str = "low_rank"
    """How weights change: low_rank, sparse (single elements of W; without rank and scale) or
    tiny (a core in the singular basis of W)."""
    sparsity: float = 0.0
    """Share of elements that stay zero for good, 0 to 0.999."""
    structure: Structure = "unstructured"
    """Which elements: any, or whole leaves of 512 in a row."""
    mask: MaskChoice = "seed"
    """What the choice of elements follows: a seed alone, the largest gradients, or the largest
    values (of W for a sparse adapter, of A for a low-rank one)."""
    dropout: float = 0.0
    """Share of a layer's inputs that training hides from the adapter."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    """Layers of another rank."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    """Layers of another alpha."""

    def __post_init__(self) -> None:
        """Copy the patterns, and reject values outside their range.

        Raises:
            InvalidSettingsError: A field is wrong.
        """
        object.__setattr__(self, "rank_pattern", MappingProxyType(dict(self.rank_pattern)))
        object.__setattr__(self, "alpha_pattern", MappingProxyType(dict(self.alpha_pattern)))
        for name, rank in {"rank": self.rank, **_named("rank_pattern", self.rank_pattern)}.items():
            if rank < 1:
                raise InvalidSettingsError(f"{name} is {rank}", hint="Make it 1 or more.")
        alphas = {"alpha": self.alpha, **_named("alpha_pattern", self.alpha_pattern)}
        for name, alpha in alphas.items():
            if not math.isfinite(alpha) or alpha <= 0:
                raise InvalidSettingsError(
                    f"{name} is {alpha}", hint="Make it a finite number above 0."
                )
        if not self.targets or not all(self.targets):
            raise InvalidSettingsError(
                f"targets is {self.targets!r}", hint="Name at least one linear layer."
            )
        _check_share("sparsity", self.sparsity, MAX_SPARSITY)
        _check_share("dropout", self.dropout, 0.99)
        kinds = lookup.names("hyprstream.lora.kinds")
        if self.kind not in kinds:
            raise InvalidSettingsError(
                f"kind is {self.kind!r}", hint=f"Choose one of {', '.join(kinds)}."
            )

    @property
    def scale(self) -> float:
        """What the product A B is multiplied with where no pattern says otherwise."""
        return self._scale(self.alpha, self.rank)

    def rank_of(self, path: str) -> int:
        """Return the rank at a layer."""
        return _found(self.rank_pattern, path, self.rank)

    def scale_of(self, path: str) -> float:
        """Return what the product is multiplied with at a layer; a sparse adapter has none: 1."""
        if self.kind == "sparse":
            return 1.0
        return self._scale(_found(self.alpha_pattern, path, self.alpha), self.rank_of(path))

    def plain(self) -> dict[str, str | bool | int | float | tuple[str, ...]]:
        """Return the fields as plain data; a pattern as its entries, "name=value"."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("rank_pattern", "alpha_pattern"):
            values[name] = tuple(f"{layer}={value}" for layer, value in values[name].items())
        return values

    def _scale(self, alpha: float, rank: int) -> float:
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def targeted(self, paths: Iterable[str]) -> list[str]:
        """Choose the targets among the paths of a model's linear layers, in their order.

        Raises:
            InvalidSettingsError: A target is not among them.
        """
        chosen: dict[str, list[str]] = {target: [] for target in self.targets}
        found = []
        for path in paths:
            matching = [t for t in self.targets if path == t or path.endswith(f".{t}")]
            for target in matching:
                chosen[target].append(path)
            if matching:
                found.append(path)
        missing = [target for target, matches in chosen.items() if not matches]
        if missing:
            raise InvalidSettingsError(
                f"the model has no linear layer {missing[0]!r}",
                hint="Name a layer by its path, or by the last part of it.",
            )
        return found


def _named(field_name: str, pattern: Mapping[str, float]) -> dict[str, float]:
    return {f"{field_name}[{key!r}]": value for key, value in pattern.items()}


def _found(pattern: Mapping[str, _Value], path: str, otherwise: _Value) -> _Value:
    return pattern.get(path, pattern.get(path.rpartition(".")[2], otherwise))


def _check_share(name: str, value: float, most: float) -> None:
    if not 0 <= value <= most:
        raise InvalidSettingsError(f"{name} is {value}", hint=f"Make it 0 to {most}.")
