import hashlib
from collections.abc import Iterator

import pytest

from hyprstream.catalog.staging import Staging
from hyprstream.errors import ChecksumMismatchError, InvalidReferenceError, StorageFullError

CONTENT = b"weights" * 1000
HASH = hashlib.sha256(CONTENT).hexdigest()


def test_content_is_hashed_on_its_way_in(staging: Staging):
    staging.write("a.gguf", [CONTENT[:10], CONTENT[10:]], size_bytes=len(CONTENT), sha256=None)
    (entry,) = staging.files
    assert (entry.name, entry.size_bytes, entry.sha256) == ("a.gguf", len(CONTENT), HASH)
    assert staging.content(entry).read_bytes() == CONTENT


def test_staged_content_is_read_only(staging: Staging):
    staging.write("a.gguf", [CONTENT], size_bytes=len(CONTENT), sha256=HASH)
    assert staging.content(staging.files[0]).stat().st_mode & 0o777 == 0o444


def test_another_hash_than_promised_is_refused(staging: Staging):
    with pytest.raises(ChecksumMismatchError, match=HASH):
        staging.write("a.gguf", [CONTENT], size_bytes=len(CONTENT), sha256="0" * 64)
    assert staging.files == ()


@pytest.mark.parametrize("size_bytes", [len(CONTENT) - 1, len(CONTENT) + 1, 0])
def test_another_length_than_promised_is_refused(staging: Staging, size_bytes: int):
    with pytest.raises(ChecksumMismatchError, match="were promised"):
        staging.write("a.gguf", [CONTENT], size_bytes=size_bytes, sha256=HASH)
    assert staging.files == ()


def test_an_endless_source_is_cut_at_the_promised_length(staging: Staging):
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1000)

    with pytest.raises(ChecksumMismatchError, match="more than 5,000 bytes"):
        staging.write("a.gguf", endless(), size_bytes=5000, sha256=None)
    assert sum(file.stat().st_size for file in staging.folder.iterdir()) <= 5000


def test_a_name_that_leads_out_is_refused(staging: Staging):
    with pytest.raises(InvalidReferenceError):
        staging.write("../a.gguf", [CONTENT], size_bytes=len(CONTENT), sha256=None)


def test_what_cannot_fit_is_refused_before_it_is_fetched(staging: Staging):
    staging.reserve(1)
    with pytest.raises(StorageFullError, match="pypi://tiny-model needs"):
        staging.reserve(1 << 62)
