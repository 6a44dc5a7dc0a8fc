"""What is known about a model as files, and how the fetching of them is followed. Plain data."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol, runtime_checkable

from hyprstream.errors import CorruptArchiveError, InvalidReferenceError
from hyprstream.refs import ModelRef

SHA256 = re.compile(r"[0-9a-f]{64}")

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*){0,7}")
_WEIGHTS = frozenset({
    ".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".h5", ".msgpack", ".npz",
})  # fmt: skip
# Names that some systems give to devices, whatever suffix follows.
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a model.

    Attributes:
        name: Its path inside the model's folder, with `/` on every system.
        size_bytes: Its length.
        sha256: Hash of its content, 64 hexadecimal digits.
    """

    name: str
    size_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        """Reject names that could leave the folder, and hashes that are none.

        Raises:
            InvalidReferenceError: The name or the hash is outside its alphabet.
        """
        check_file_name(self.name)
        if not SHA256.fullmatch(self.sha256):
            raise InvalidReferenceError(f"{self.sha256!r} is not the SHA-256 of {self.name}")


def check_file_name(name: str) -> None:
    """Reject a name that could leave its folder, or mean something else on another system.

    Raises:
        InvalidReferenceError: The name is outside the alphabet, too long, or a device's.
    """
    named = _FILE_NAME.fullmatch(name) and len(name) <= 255
    if not named or any(_DEVICE.fullmatch(part) or part.endswith(".") for part in name.split("/")):
        raise InvalidReferenceError(
            f"{name[:300]!r} is not a file name that the model cache admits",
            hint="Use letters, digits and . _ + - in the names of model files.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """One revision of one model, as files.

    Attributes:
        ref: Its reference, with the revision that the registry resolved it to.
        files: All files, no two of which differ only in case.
        entry: What a loader opens: the name of one file, or "" for the whole folder.
        source: Where the bytes come from, for people: an archive and its hash, an address.
    """

    ref: ModelRef
    files: tuple[FileEntry, ...]
    entry: str
    source: str

    def __post_init__(self) -> None:
        """Reject a set of files that does not make a model.

        Raises:
            CorruptArchiveError: Two names differ only in case, or the entry is not among them.
        """
        assert self.ref.revision is not None, f"{self.ref} is not resolved"
        names = [entry.name for entry in self.files]
        if len({name.casefold() for name in names}) < len(names):
            raise CorruptArchiveError(self.source, "two of its file names differ only in case")
        if self.entry and self.entry not in names:
            raise CorruptArchiveError(self.source, f"it has no file {self.entry!r}")

    @property
    def size_bytes(self) -> int:
        """Length of all files together."""
        return sum(entry.size_bytes for entry in self.files)


def model_entries(names: Iterable[str]) -> list[str]:
    """List what among some files can be loaded as a model.

    Args:
        names: Paths with `/`, relative to one folder.

    Returns:
        Every GGUF file, and every folder ("" for the outermost) that holds a config.json
        beside SafeTensors files; sorted.
    """
    paths = [PurePosixPath(name) for name in names]
    configured = {path.parent for path in paths if path.name == "config.json"}
    weighted = {path.parent for path in paths if path.suffix == ".safetensors"}
    folders = {"" if path == PurePosixPath() else str(path) for path in configured & weighted}
    return sorted(folders | {str(path) for path in paths if path.suffix == ".gguf"})


def holds_weights(name: str) -> bool:
    """Tell from its name whether a file of a model holds weights, and not what they are."""
    return PurePosixPath(name).suffix.lower() in _WEIGHTS


@runtime_checkable
class Progress(Protocol):
    """Follows long work in phases, which may have phases of their own: a model, its files.

    Called on the thread that works.
    """

    def start(self, name: str, total_bytes: int | None) -> None:
        """Begin a phase within those that have begun; None if its length is not known."""
        ...

    def advance(self, num_bytes: int) -> None:
        """Say that so many more bytes are done, of every phase that has begun."""
        ...

    def done(self) -> None:
        """End the phase that began last. One that fails is not ended."""
        ...


class SilentProgress:
    """Follows nothing."""

    def start(self, name: str, total_bytes: int | None) -> None:
        """Ignore the phase."""

    def advance(self, num_bytes: int) -> None:
        """Ignore the bytes."""

    def done(self) -> None:
        """Ignore the end."""
