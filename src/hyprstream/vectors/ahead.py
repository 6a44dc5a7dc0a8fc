"""Rows that come while others are written."""

import queue
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager

import pyarrow as pa

_MOST_WAITING = 4


@contextmanager
def ahead(batches: Iterable[pa.RecordBatch]) -> Generator[Iterable[pa.RecordBatch]]:
    """Take batches on a thread of its own, a few before they are asked for.

    What taking them raises is raised where they are asked for. When the context is left, no more
    are taken; it waits for the one that is on its way.
    """
    waiting: queue.Queue[pa.RecordBatch | Exception | None] = queue.Queue(_MOST_WAITING)
    is_over = threading.Event()

    def take() -> None:
        last: Exception | None = None
        try:
            for batch in batches:
                waiting.put(batch)
                if is_over.is_set():
                    return
        except Exception as error:  # noqa: BLE001  # raised again below
            last = error
        waiting.put(last)

    def given() -> Generator[pa.RecordBatch]:
        while isinstance(found := waiting.get(), pa.RecordBatch):
            yield found
        if found is not None:
            raise found

    thread = threading.Thread(target=take, name="hyprstream-ahead", daemon=True)
    thread.start()
    try:
        yield given()
    finally:
        is_over.set()
        while thread.is_alive():
            try:
                waiting.get(timeout=0.05)  # makes room, so that the thread sees the end
            except queue.Empty:
                continue
        thread.join()
