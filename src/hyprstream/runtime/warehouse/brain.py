"""The model behind `embed` and `generate`, with any adapter of this machine."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hyprstream.errors import InvalidRequestError
from hyprstream.refs import AdapterRef
from hyprstream.runtime.adapted import load_adapter
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.model import Model
from hyprstream.vectors.table import Stamp

_MOST_ADAPTED = 8  # versions that are held beside the model, ready to use
MOST_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors, and what they were made with.

    Attributes:
        vectors: Float32, one row per text.
        stamp: Model, adapter and version.
    """

    vectors: NDArray[np.float32]
    stamp: Stamp


@runtime_checkable
class Brain(Protocol):
    """What statements need of a model; a fake of a few lines in tests."""

    @property
    def dim(self) -> int:
        """Length of its vectors."""
        ...

    def embed(self, texts: Sequence[str], adapter: str = "") -> Embedded:
        """Embed texts, with the adapter of a reference unless that is empty."""
        ...

    def generate(self, prompts: Sequence[str], adapter: str, max_tokens: int) -> list[str]:
        """Continue each text."""
        ...


class ModelBrain:
    """A `Brain` that loads a model when it is first asked. Safe to use from any thread."""

    def __init__(self, load: Callable[[], Model], dim: int, adapters: Adapters) -> None:
        self._load = load
        self._dim = dim
        self._adapters = adapters
        self._turn = threading.Lock()
        self._model: Model | None = None
        self._adapted: OrderedDict[str, Model] = OrderedDict()

    @property
    def dim(self) -> int:
        """Length of its vectors."""
        return self._dim

    def embed(self, texts: Sequence[str], adapter: str = "") -> Embedded:
        """Embed texts, with the adapter of a reference unless that is empty.

        Raises:
            HyprstreamError: There is no such adapter, or it is for another model.
        """
        model, version = self._ready(adapter)
        stamp = Stamp(
            model=model.ref,
            adapter=str(AdapterRef.parse(adapter).name) if adapter else "",
            version=version,
            pooling=model.pooling,
        )
        return Embedded(model.embed(texts), stamp)

    def generate(self, prompts: Sequence[str], adapter: str, max_tokens: int) -> list[str]:
        """Continue each text, always with the likeliest token.

        Raises:
            InvalidRequestError: `max_tokens` is out of range.
            HyprstreamError: The model does not generate, or the adapter is of no use.
        """
        if not 1 <= max_tokens <= MOST_TOKENS:
            raise InvalidRequestError(f"max_tokens is {max_tokens}, not 1 to {MOST_TOKENS}")
        model, _ = self._ready(adapter)
        return [
            model.generate(prompt, temperature=0.0, max_tokens=max_tokens).text
            for prompt in prompts
        ]

    def _ready(self, adapter: str) -> tuple[Model, str]:
        with self._turn:
            if self._model is None:
                self._model = self._load()
            if not adapter:
                return self._model, ""
            version = self._adapters.resolve(adapter)
            if version not in self._adapted:
                loaded = load_adapter(self._adapters, adapter, self._model)
                self._adapted[version] = self._model.adapted(loaded.weights, adapter)
                if len(self._adapted) > _MOST_ADAPTED:
                    self._adapted.popitem(last=False)
            self._adapted.move_to_end(version)
            return self._adapted[version], version
