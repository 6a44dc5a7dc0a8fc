"""Turns the rows of a Parquet file into JSON lines; run as a program by `rows.py`.

Its reader is a large one in another language, and a small file may unpack to any size: so
this runs in a process of its own, with limits. Imports nothing of this package.
"""

import json
import resource
import sys
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

_ROWS_AT_A_TIME = 64


def write_rows(file: Path, columns: set[str], output: Path) -> None:
    """Write one line for each row, with those of its columns that are wanted."""
    table = parquet.ParquetFile(file, memory_map=True, pre_buffer=False)
    known = [name for name in table.schema_arrow.names if name in columns]
    with output.open("w", encoding="ascii") as lines:
        for batch in table.iter_batches(_ROWS_AT_A_TIME, columns=known, use_threads=False):
            for row in batch.to_pylist():
                # What JSON has no form for is not what training reads; an object is no text.
                lines.write(json.dumps(row, default=lambda value: {"type": str(type(value))}))
                lines.write("\n")


def _taken_bytes() -> int:
    """Return the addresses that the libraries take for themselves."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    return pages * resource.getpagesize()


def _main(seconds: int, memory_bytes: int, output_bytes: int, argument: str, output: Path) -> None:
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    task = json.loads(argument)
    file = Path(task["file"])
    # The file itself is mapped: its addresses are not memory.
    most = _taken_bytes() + file.stat().st_size + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (output_bytes, output_bytes))
    write_rows(file, set(task["columns"]), output)


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], Path(sys.argv[5]))
