"""The file that makes a cached model exist: a card as JSON, validated on the way in."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hyprstream.catalog.card import FileEntry, ModelCard
from hyprstream.errors import CorruptManifestError, HyprstreamError
from hyprstream.refs import ModelRef

_MAX_BYTES = 4 << 20
_MAX_FILES = 10_000
_Bytes = Annotated[int, Field(ge=0, lt=1 << 63)]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    size_bytes: _Bytes
    sha256: str


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    format: Literal[1]
    ref: str
    entry: str
    source: str
    files: Annotated[list[_File], Field(min_length=1, max_length=_MAX_FILES)]


def encode(card: ModelCard) -> bytes:
    """Write a card as JSON."""
    files = [
        _File(name=entry.name, size_bytes=entry.size_bytes, sha256=entry.sha256)
        for entry in card.files
    ]
    manifest = _Manifest(
        format=1, ref=str(card.ref), entry=card.entry, source=card.source, files=files
    )
    return manifest.model_dump_json(indent=2).encode() + b"\n"


def load(file: Path) -> ModelCard:
    """Read a card, trusting nothing in it.

    Raises:
        FileNotFoundError: There is no such file.
        CorruptManifestError: It is too large, or not what `encode` writes.
    """
    if file.stat().st_size > _MAX_BYTES:
        raise CorruptManifestError(file, f"it is longer than {_MAX_BYTES} bytes")
    try:
        manifest = _Manifest.model_validate_json(file.read_bytes())
        ref = ModelRef.parse(manifest.ref)
        if ref.revision is None:
            raise CorruptManifestError(file, f"{ref} has no revision")
        return ModelCard(
            ref=ref,
            files=tuple(FileEntry(**entry.model_dump()) for entry in manifest.files),
            entry=manifest.entry,
            source=manifest.source,
        )
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the file"
        raise CorruptManifestError(file, f"{where}: {problem['msg']}") from error
    except CorruptManifestError:
        raise
    except HyprstreamError as error:
        raise CorruptManifestError(file, str(error)) from error
