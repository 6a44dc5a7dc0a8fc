import gc
import mmap
import os
import sys
from pathlib import Path

import pytest
import torch

from hyprstream.errors import CorruptWeightsError, ModelNotFoundError
from hyprstream.models.checkpoint.mapping import MappedFile

PAGE = mmap.PAGESIZE

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self")


def pattern_file(folder: Path, num_pages: int) -> Path:
    file = folder / "pattern"
    file.write_bytes(bytes(range(256)) * (PAGE // 256 * num_pages))
    return file


def resident_bytes(file: Path) -> int:
    """How much of the mappings of `file` is in this process's memory."""
    resident, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            ours = words[-1] == str(file)
        elif ours and words[0] == "Rss:":
            resident += int(words[1]) * 1024
    return resident


def test_writing_into_a_tensor_leaves_the_file_alone(tmp_path):
    file = pattern_file(tmp_path, 1)
    before = file.read_bytes()
    MappedFile.open(file).rows(0, (16, 16)).zero_()
    assert file.read_bytes() == before


def test_tensor_shares_the_mapped_memory(tmp_path):
    mapped = MappedFile.open(pattern_file(tmp_path, 1))
    mapped.rows(8, (4,)).zero_()
    assert mapped.data[8:13] == b"\0\0\0\0\x0c"
    assert mapped.tensor(8, (2,), torch.int16).tolist() == [0, 0]


def test_numbers_out_of_step_with_memory_are_copied_to_be_in_step(tmp_path):
    mapped = MappedFile.open(pattern_file(tmp_path, 1))
    tensor = mapped.tensor(3, (2, 2), torch.float32)
    assert tensor.data_ptr() % 4 == 0
    assert tensor.view(torch.uint8).flatten().tolist() == list(range(3, 19))


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 7, 2)])
def test_tensor_without_elements_keeps_its_shape_and_dtype(tmp_path, shape):
    tensor = MappedFile.open(pattern_file(tmp_path, 1)).tensor(PAGE, shape, torch.bfloat16)
    assert (tuple(tensor.shape), tensor.dtype) == (shape, torch.bfloat16)


@needs_proc
def test_mapping_lives_as_long_as_its_last_tensor(tmp_path):
    file = pattern_file(tmp_path, 4)
    mapped = MappedFile.open(file)
    tensor = mapped.rows(PAGE, (PAGE,))
    part = tensor[256:512]
    del mapped, tensor
    gc.collect()
    assert part.tolist() == list(range(256))
    assert str(file) in Path("/proc/self/maps").read_text()
    del part
    assert str(file) not in Path("/proc/self/maps").read_text()


@needs_proc
def test_released_pages_leave_memory_and_come_back_when_read(tmp_path):
    file = pattern_file(tmp_path, 64)
    mapped = MappedFile.open(file)
    rows = mapped.rows(100, (62 * PAGE,))
    total = int(rows.sum())
    full = resident_bytes(file)
    mapped.release(100, 62 * PAGE)
    assert full - resident_bytes(file) >= 61 * PAGE
    assert int(rows.sum()) == total
    mapped.release_all()
    assert resident_bytes(file) == 0
    assert int(rows.sum()) == total


def test_release_keeps_what_was_written_to_a_neighbour_on_the_same_page(tmp_path):
    mapped = MappedFile.open(pattern_file(tmp_path, 3))
    neighbour = mapped.rows(0, (100,))
    neighbour.zero_()
    mapped.release(100, 2 * PAGE)
    assert int(neighbour.sum()) == 0


def test_range_smaller_than_a_page_can_be_released(tmp_path):
    mapped = MappedFile.open(pattern_file(tmp_path, 1))
    mapped.release(10, 20)
    assert mapped.rows(10, (2,)).tolist() == [10, 11]


def test_missing_file_is_not_found(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"absent.*No such file"):
        MappedFile.open(tmp_path / "absent")


@pytest.mark.parametrize("name", ["nul\0byte", "x" * 5000])
def test_impossible_name_is_not_found(tmp_path, name):
    with pytest.raises(ModelNotFoundError, match="cannot be opened"):
        MappedFile.open(tmp_path / name)


def test_folder_is_no_file(tmp_path):
    with pytest.raises(ModelNotFoundError, match="not a regular file"):
        MappedFile.open(tmp_path)


def test_pipe_is_refused_without_waiting_for_its_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelNotFoundError, match="not a regular file"):
        MappedFile.open(tmp_path / "pipe")


def test_empty_file_is_damaged(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(CorruptWeightsError, match="it is empty"):
        MappedFile.open(tmp_path / "empty")
