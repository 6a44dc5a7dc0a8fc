"""Indexes of large tables of vectors, built beside what else is done, one at a time."""

import logging
from concurrent.futures import ThreadPoolExecutor

from hyprstream.errors import HyprstreamError
from hyprstream.vectors.store import VectorStore

log = logging.getLogger(__name__)


class Indexer:
    """Builds them on a thread of its own. Until one is there, a search looks at all rows."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hyprstream-index")

    def look(self, vectors: VectorStore, name: str) -> None:
        """See to the index of a table that got rows."""
        if vectors.wants_index(name):
            self._thread.submit(_index, vectors, name)

    def close(self) -> None:
        """Wait for the index that is being built; those that wait are left."""
        self._thread.shutdown(wait=True, cancel_futures=True)


def _index(vectors: VectorStore, name: str) -> None:
    try:
        if vectors.wants_index(name):  # another one may have been there before
            entry = vectors.index(name)
            log.info("the index of %s finds %.1f%% of neighbours", name, 100 * entry.recall)
    except HyprstreamError as error:
        log.warning("there is no index of %s: %s", name, error.code)
