"""Warehouses: the one of this machine, and one for each caller who may see a part of it.

A caller who is limited to some adapters has a database of their own, in which nothing else is:
what they cannot see no join, view, function or error of theirs can show.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from hyprstream.errors import AdapterNotFoundError, HyprstreamError
from hyprstream.refs import AdapterName, AdapterRef, ModelRef
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.info import describe
from hyprstream.runtime.model import Model
from hyprstream.runtime.models import open_catalog
from hyprstream.runtime.settings import Settings
from hyprstream.runtime.warehouse.brain import Brain, Embedded, ModelBrain
from hyprstream.runtime.warehouse.indexer import Indexer
from hyprstream.runtime.warehouse.live import live_tables, visible
from hyprstream.runtime.warehouse.warehouse import Caller, Warehouse
from hyprstream.vectors.store import VectorStore
from hyprstream.vectors.table import Stamp

_MOST_PARTS = 16  # databases of limited callers that are open at a time


class Warehouses:
    """Finds the warehouse of a caller. Safe to use from any thread.

    Args:
        whole: For callers without limits.
        part: Makes one that shows a limited caller what they may see.
        indexer: What they share; closed with them.
    """

    def __init__(
        self,
        whole: Warehouse,
        part: Callable[[Caller], Warehouse],
        indexer: Indexer | None = None,
    ) -> None:
        self._indexer = indexer
        self._whole = whole
        self._part = part
        self._turn = threading.Lock()
        self._parts: OrderedDict[Caller, Warehouse] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def of(self, caller: Caller) -> Warehouse:
        """Return what a caller's statements run on.

        Raises:
            UnavailableError: Their tables are in use by statements of before.
        """
        if caller.adapters is None:
            return self._whole
        with self._turn:
            if caller not in self._parts:
                if len(self._parts) >= _MOST_PARTS:
                    # Statements that run go on: they have cursors of their own.
                    self._parts.popitem(last=False)[1].close()
                self._parts[caller] = self._part(caller)
            self._parts.move_to_end(caller)
            return self._parts[caller]

    def close(self) -> None:
        """Close all of them."""
        with self._turn:
            for warehouse in self._parts.values():
                warehouse.close()
            self._parts.clear()
        self._whole.close()
        if self._indexer is not None:
            self._indexer.close()


class LimitedBrain:
    """A `Brain` that knows some adapters alone."""

    def __init__(self, brain: Brain, adapters: frozenset[AdapterName]) -> None:
        self._brain = brain
        self._adapters = adapters

    @property
    def dim(self) -> int:
        """Length of its vectors."""
        return self._brain.dim

    def embed(self, texts: Sequence[str], adapter: str = "") -> Embedded:
        """Embed texts; see `Brain`.

        Raises:
            AdapterNotFoundError: The adapter is not among those.
        """
        self._check(adapter)
        return self._brain.embed(texts, adapter)

    def generate(self, prompts: Sequence[str], adapter: str, max_tokens: int) -> list[str]:
        """Continue each text; errors as of `embed`."""
        self._check(adapter)
        return self._brain.generate(prompts, adapter, max_tokens)

    def _check(self, adapter: str) -> None:
        if adapter and AdapterRef.parse(adapter).name not in self._adapters:
            raise AdapterNotFoundError(f"no adapter is called {adapter[:100]!r}")


def open_warehouses(
    settings: Settings,
    adapters: Adapters,
    brain_of: Callable[[str], Brain | None] | None = None,
) -> Warehouses:
    """Open the warehouse of this machine, and make others from it as callers come.

    Args:
        settings: Where things are, and bounds.
        adapters: The adapters of this machine; open as long as the warehouses are.
        brain_of: Returns what embeds and generates for a caller of that name, "" for those
            without limits. None loads the model of the settings when a statement asks for
            it, if it is on this machine.

    Raises:
        UnavailableError: Another process has the tables.
    """
    if brain_of is None:
        shared = _brain_of_settings(settings, adapters)

        def brain_of(_: str) -> Brain | None:
            return shared

    catalog = open_catalog(settings)
    indexer = Indexer() if settings.sql.index else None

    def part(caller: Caller) -> Warehouse:
        names = caller.adapters
        assert names is not None, "a caller without limits has the whole"
        vectors = VectorStore(settings.vectors_folder, only=made_with(names))
        brain = brain_of(caller.name)
        folder = settings.sql_folder / "keys"
        return Warehouse(
            folder / f"{caller.name}.duckdb" if caller.can_write else None,
            vectors,
            config=settings.sql,
            live=visible(live_tables(settings, catalog, adapters, vectors), names),
            brain=None if brain is None else LimitedBrain(brain, names),
            indexer=indexer,
        )

    vectors = VectorStore(settings.vectors_folder)
    whole = Warehouse(
        settings.sql_folder / "tables.duckdb",
        vectors,
        config=settings.sql,
        live=live_tables(settings, catalog, adapters, vectors),
        brain=brain_of(""),
        indexer=indexer,
    )
    return Warehouses(whole, part, indexer)


def made_with(adapters: frozenset[AdapterName]) -> Callable[[Stamp], bool]:
    """Return what tells whether vectors were made with one of some adapters."""
    return lambda stamp: stamp.adapter in adapters


def _brain_of_settings(settings: Settings, adapters: Adapters) -> Brain | None:
    ref = settings.model.ref
    try:
        path = open_catalog(settings).find(ModelRef.parse(ref))
    except HyprstreamError:
        return None  # nothing is fetched for a statement
    return ModelBrain(lambda: Model.load(ref, settings=settings), describe(path).width, adapters)
