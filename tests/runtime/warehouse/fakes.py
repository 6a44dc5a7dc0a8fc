"""A brain of a few lines: a vector says which text and which adapter it was made of."""

import numpy as np

from hyprstream.errors import AdapterNotFoundError
from hyprstream.runtime.warehouse.brain import Embedded
from hyprstream.vectors.table import Stamp

DIM = 8


class FakeBrain:
    def __init__(self):
        self.num_calls = 0

    @property
    def dim(self):
        return DIM

    def embed(self, texts, adapter=""):
        self.num_calls += 1
        name, _, _ = adapter.partition("@")
        if name not in {"", "pirate", "poet"}:
            raise AdapterNotFoundError(f"no adapter is called {name!r}")
        vectors = [self.vector(text, name) for text in texts]
        stamp = Stamp(model="fake", adapter=name, version="ab12" if name else "", pooling="mean")
        return Embedded(np.stack(vectors) if vectors else np.empty((0, DIM), np.float32), stamp)

    @staticmethod
    def vector(text, adapter=""):
        seed = [ord(c) for c in f"{adapter}/{text}"]
        return np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)

    def generate(self, prompts, adapter, max_tokens):
        return [f"{adapter}:{prompt}"[:max_tokens] for prompt in prompts]
