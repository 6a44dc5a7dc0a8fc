"""The model that an adapter is for, as formats see it: layers and names, no weights."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Self

import torch
from jaxtyping import Int
from torch import Tensor

from hyprstream import lookup
from hyprstream.errors import UnsupportedArchitectureError, UnsupportedError
from hyprstream.models.changes import NO_CHANGES, Changes
from hyprstream.models.config import ModelConfig
from hyprstream.models.decoder import Decoder
from hyprstream.models.load import OpenModel
from hyprstream.models.quant import Weight
from hyprstream.models.weights import Stored, gguf_names

# Our names of families -> those of GGUF files, where they differ.
_GGUF_FAMILIES = {"mistral": "llama", "qwen3_moe": "qwen3moe", "gemma3_text": "gemma3"}
_HEAD = "lm_head"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Outputs of a linear layer that are a projection of their own in other programs.

    Attributes:
        layer: Path of the layer.
        start: The first of them.
        stop: Behind the last of them.
    """

    layer: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A model, as what reads and writes its adapters needs to know it.

    Attributes:
        config: What it is made of.
        linears: Logical shape (O, I) of each linear layer by path, as in `Decoder.linears`.
        is_tied: Its head is its embedding table.
        name: What files shall call it; may be empty.
        tables: Gives the embedding's table and the head by path; empty where they are not at
            hand.
    """

    config: ModelConfig
    linears: Mapping[str, tuple[int, int]]
    is_tied: bool = False
    name: str = ""
    tables: Mapping[str, Weight] = field(default_factory=dict)

    @classmethod
    def of(cls, model: OpenModel, decoder: Decoder) -> Self:
        """Describe a model that was opened and loaded."""
        heads = (f"{_HEAD}.weight", "output.weight")
        has_head = any(name in model.checkpoint for name in heads)
        return cls(
            config=model.config,
            linears=decoder.linears,
            is_tied=bool(model.config.tied) or not has_head,
            name=model.path.stem if model.folder is None else model.path.name,
            tables={
                "embed_tokens": decoder.table,
                **{path: w for path, w in decoder.weights.items() if path == _HEAD},
            },
        )

    def is_own(self, path: str, tensor: Tensor) -> bool:
        """Tell whether a tensor is the model's own table or head, rounded to its dtype."""
        if path not in self.tables or self.tables[path].shape != tuple(tensor.shape):
            return False
        if not tensor.dtype.is_floating_point:
            return False
        own = self.tables[path].dequantize(torch.float32).cpu()
        return torch.equal(own.to(tensor.dtype), tensor)

    @property
    def joined(self) -> dict[str, Rows]:
        """Return where projections are that this model joins and others compute apart."""
        module = self._module()
        ends: Mapping[str, tuple[str, ...]] = getattr(module, "JOINED", {})
        found = {}
        for end, parts in ends.items():
            counts = module.joined_rows(self.config)
            for layer in (path for path in self.linears if path.endswith(end)):
                start = 0
                for part in parts:
                    rows = Rows(layer=layer, start=start, stop=start + counts[part])
                    found[f"{layer.rpartition('.')[0]}.{part}"] = rows
                    start = rows.stop
        return found

    @property
    def gguf_family(self) -> str:
        """Name of the family in GGUF files."""
        return _GGUF_FAMILIES.get(self.config.architecture, self.config.architecture)

    @property
    def gguf_changes(self) -> Changes:
        """How GGUF files store the family's weights differently.

        Raises:
            UnsupportedArchitectureError: No GGUF form of the family is known.
        """
        changes: Changes = getattr(self._module(), "GGUF_CHANGES", NO_CHANGES)
        return changes

    @property
    def gguf_patterns(self) -> Mapping[str, str]:
        """Patterns of our paths -> those of names in GGUF files.

        Raises:
            UnsupportedArchitectureError: No GGUF form of the family is known.
        """
        patterns: Mapping[str, str] = self._module().GGUF_NAMES
        return patterns

    def gguf_place(self, path: str) -> Stored:
        """Return where a GGUF file of the model keeps the weight of a linear layer.

        Raises:
            UnsupportedArchitectureError: No GGUF form of the family is known.
            UnsupportedError: The file has no such weight.
        """
        places = gguf_names(self.gguf_patterns)(f"{path}.weight")
        if not places or (path == _HEAD and self.is_tied):
            raise UnsupportedError(
                f"a GGUF file of this model has no weight of its own for {path}",
                hint="A head that shares the embedding's table cannot be changed alone there; "
                "write a PEFT folder, or fuse the adapter into a SafeTensors folder.",
            )
        return places[0]

    def gguf_orders(self, paths: Iterable[str]) -> dict[str, Int[Tensor, " O"]]:
        """Return which stored row becomes each row of a layer, for those that lie otherwise.

        Raises:
            UnsupportedArchitectureError: No GGUF form of the family is known.
        """
        orders = self.gguf_changes.row_order
        return {
            path: order(self.config)
            for path in paths
            for end, order in orders.items()
            if path.endswith(end)
        }

    def hf_name(self, path: str) -> str:
        """Return what transformers calls a linear layer."""
        return path if path == _HEAD or not self.config.causal else f"model.{path}"

    def _module(self) -> ModuleType:
        name = {"mistral": "llama"}.get(self.config.architecture, self.config.architecture)
        return lookup.load(
            "hyprstream.models.arch",
            name,
            kind="model family",
            error=UnsupportedArchitectureError,
        )
