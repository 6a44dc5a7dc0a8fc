"""What a low-rank adapter looks like before it has weights: rank, scale, target layers."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from hyprstream.errors import InvalidSettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSpec:
    """The shape of a low-rank adapter (arXiv:2106.09685).

    Example:
        >>> LoraSpec(rank=8, alpha=16).scale
        2.0
    """

    rank: int
    """Width of the product A B."""
    alpha: float
    """What the product is multiplied with, before it is divided by the rank."""
    use_rslora: bool = False
    """Divide by the root of the rank instead (arXiv:2312.03732)."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Paths of linear layers, or the last names of them."""

    def __post_init__(self) -> None:
        """Reject values outside their range.

        Raises:
            InvalidSettingsError: A field is wrong.
        """
        if self.rank < 1:
            raise InvalidSettingsError(f"rank is {self.rank}", hint="Make it 1 or more.")
        if not math.isfinite(self.alpha) or self.alpha <= 0:
            raise InvalidSettingsError(
                f"alpha is {self.alpha}", hint="Make it a finite number above 0."
            )
        if not self.targets or not all(self.targets):
            raise InvalidSettingsError(
                f"targets is {self.targets!r}", hint="Name at least one linear layer."
            )

    @property
    def scale(self) -> float:
        """What the product A B is multiplied with."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

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
