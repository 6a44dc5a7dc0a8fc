"""A file that goes to the disk in chunks: the bytes are those that were written, or it is said."""

import errno
import mmap
import os
import resource
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.vectors.durable_file import DurableFile

PAGE = mmap.PAGESIZE
PLACES = [path for path in (tempfile.gettempdir(), "/dev/shm") if Path(path).is_dir()]  # noqa: S108


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 5 * PAGE), max_size=8), pages=st.integers(1, 3))
def test_the_bytes_are_those_that_were_written(place, sizes, pages):
    with tempfile.TemporaryDirectory(dir=place) as folder:
        file = Path(folder) / "x"
        pieces = [os.urandom(size) for size in sizes]
        with DurableFile(file, pages * PAGE) as stream:
            for piece in pieces:
                assert stream.write(memoryview(piece)) == len(piece)
        assert file.read_bytes() == b"".join(pieces)


def test_arrow_writes_into_it_what_it_reads_again(tmp_path):
    table = pa.table({"x": pa.array(range(100_000)), "y": pa.array([[1.5, 2.5]] * 100_000)})
    with (
        DurableFile(tmp_path / "x.arrow", PAGE) as stream,
        pa.ipc.new_file(stream, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=777)
    with pa.memory_map(str(tmp_path / "x.arrow")) as source:
        assert pa.ipc.open_file(source).read_all() == table


def test_a_file_that_cannot_grow_says_so(tmp_path):
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * PAGE, allowed[1]))
    try:
        with (
            pytest.raises(OSError, match=os.strerror(errno.EFBIG)),
            DurableFile(tmp_path / "x", PAGE) as stream,
        ):
            stream.write(bytes(10 * PAGE))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert stream.closed


def test_a_file_that_is_there_is_not_written_over(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        DurableFile(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"old"
