"""An adapter on its way out: pairs, and the numbers that files keep beside them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch

from hyprstream.errors import IncompatibleAdapterError, InvalidAdapterError
from hyprstream.lora.exchange.host import Host
from hyprstream.lora.exchange.pairs import Pair, pairs_of
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.weights import LoraWeights


@dataclass(frozen=True, slots=True, eq=False)
class Outgoing:
    """An adapter as formats of low-rank pairs write it.

    Attributes:
        host: The model that it is for.
        pairs: Path of the layer -> its matrices, in the order of the model.
        spec: What it was made from, if that is known.
    """

    host: Host
    pairs: Mapping[str, Pair]
    spec: LoraSpec | None

    @classmethod
    def of(
        cls, weights: LoraWeights, spec: LoraSpec | None, host: Host, dtype: torch.dtype | None
    ) -> Self:
        """Prepare an adapter.

        Raises:
            InvalidAdapterError: It changes nothing, or a value does not fit into the dtype.
            IncompatibleAdapterError: It is not for this model.
            UnsupportedError: It is of a kind that is no product of narrow matrices.
        """
        for path, delta in weights.modules.items():
            if host.linears.get(path) != delta.shape:
                raise IncompatibleAdapterError(
                    f"the adapter changes a linear layer of shape {delta.shape} at {path}, "
                    f"the model has {host.linears.get(path, 'none')} there",
                    hint="Use the adapter with the base model that it was trained on.",
                )
        if not weights.modules:
            raise InvalidAdapterError(
                "the adapter changes no layer", hint="There is nothing to write."
            )
        pairs = pairs_of(weights, spec, dtype)
        ordered = {path: pairs[path] for path in host.linears if path in pairs}
        return cls(host, ordered, spec)

    @property
    def common_rank(self) -> int:
        """The rank that most modules have."""
        return Counter(pair.rank for pair in self.pairs.values()).most_common(1)[0][0]

    @property
    def common_alpha(self) -> float:
        """The alpha that most modules have."""
        return Counter(self.alphas().values()).most_common(1)[0][0]

    def alphas(self) -> dict[str, float]:
        """Return the alpha of each module; divided by its rank it is exactly its scale."""
        return {path: pair.scale * pair.rank for path, pair in self.pairs.items()}
