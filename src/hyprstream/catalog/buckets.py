"""Models in object stores, seen as file systems of fsspec: one model below one path.

Knows no store: `registries/s3.py` opens the file system and says what its errors mean. A store
promises no SHA-256, so what came is pinned by what the store says of every file (its ETag, or
length and time), and looked at once more when all of it has come.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import IO, Any, Protocol, cast, runtime_checkable

from hyprstream.catalog.card import ModelCard, Progress, check_file_name, model_entries
from hyprstream.catalog.hub.selection import choose
from hyprstream.catalog.offer import Offer
from hyprstream.catalog.staging import Staging
from hyprstream.errors import (
    InvalidReferenceError,
    ModelNotFoundError,
    RegistryAnswerError,
    RegistryUnreachableError,
)
from hyprstream.files import CHUNK_BYTES
from hyprstream.refs import ModelRef

_MAX_FILES = 10_000
_MAX_BYTES = 1 << 42
_MAX_DEPTH = 5  # of folders that are listed


@runtime_checkable
class FileSystem(Protocol):
    """What of a file system of fsspec is used."""

    def find(self, path: str, maxdepth: int | None = None, *, detail: bool = False) -> Any:
        """List the files below a path, or the file that it is."""
        ...

    def open(self, path: str, mode: str = "rb") -> Any:
        """Open a file."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One file of a store.

    Attributes:
        path: Its whole path.
        size_bytes: Its length.
        mark: Changes with its content, as far as the store tells.
    """

    path: str
    size_bytes: int
    mark: str


class Bucket:
    """The models below one path of a store.

    Args:
        files: The file system.
        root: The path; "" for the whole store.
        errors: Turns what the file system raises into errors of ours.
    """

    def __init__(
        self, files: FileSystem, root: str, errors: Callable[[str], AbstractContextManager[None]]
    ) -> None:
        self._files = files
        self._root = root
        self._errors = errors

    def fetch(self, ref: ModelRef, staging: Staging, progress: Progress) -> ModelCard:
        """Bring the model of a reference.

        Raises:
            ModelNotFoundError: There is none, or it is no longer the revision asked for.
            InvalidReferenceError: There are several.
            RegistryUnreachableError: It changed while it was fetched.
            StorageFullError: The disk is full.
        """
        path = self._path(ref)
        progress.start(f"looking for {ref}", None)
        files, entry = self._chosen(ref, path)
        progress.done()
        revision = _revision(files)
        if ref.revision not in (None, revision):
            raise ModelNotFoundError(
                f"{path} has changed: it is {revision} now and not {ref.revision}",
                hint=f"Leave the revision away to fetch what is there: "
                f"{replace(ref, revision=None)}.",
            )
        total_bytes = sum(item.size_bytes for item in files.values())
        staging.reserve(total_bytes)
        progress.start(f"downloading {ref}", total_bytes)
        for name, item in files.items():
            progress.start(name, item.size_bytes)
            chunks = self._chunks(item, progress)
            staging.write(name, chunks, size_bytes=item.size_bytes, sha256=None)
            progress.done()
        progress.done()
        again, _ = self._chosen(ref, path)
        if again != files:
            raise RegistryUnreachableError(
                f"{path} changed while it was fetched", hint="Pull it again."
            )
        return ModelCard(
            ref=replace(ref, revision=revision), files=staging.files, entry=entry, source=path
        )

    def search(self, scheme: str, text: str, *, limit: int) -> list[Offer]:
        """Look for models whose name holds a text."""
        items = {item.path: item for item in self._list(self._root, max_depth=_MAX_DEPTH)}
        prefix = f"{self._root}/" if self._root else ""
        names = {path.removeprefix(prefix): item for path, item in items.items()}
        offers: list[Offer] = []
        for name in model_entries(names):
            if text.casefold() not in name.casefold() or len(offers) >= limit:
                continue
            try:
                ref = ModelRef(scheme=scheme, name=name)
            except InvalidReferenceError:
                continue  # a name that could not be asked for
            below = [item for path, item in names.items() if f"{path}/".startswith(f"{name}/")]
            offers.append(Offer(ref=ref, size_bytes=sum(item.size_bytes for item in below)))
        return offers

    def look(self) -> None:
        """Find out whether the store answers."""
        self._list(self._root, max_depth=1)

    def _path(self, ref: ModelRef) -> str:
        return f"{self._root}/{ref.name}" if self._root else ref.name

    def _chosen(self, ref: ModelRef, path: str) -> tuple[dict[str, Item], str]:
        """Choose the files of the model: by the name that each shall have, and the entry."""
        items = self._list(path, max_depth=_MAX_DEPTH)
        if not items:
            raise ModelNotFoundError(
                f"there is nothing at {path}", hint="Check the name, and whether you may see it."
            )
        if [item.path for item in items] == [path]:
            name = PurePosixPath(path).name
            named = {name: items[0]}
        else:
            named = {item.path.removeprefix(f"{path}/"): item for item in items}
        choice = choose(path, list(named), tag=ref.tag)
        entry = PurePosixPath(choice.entry).name if choice.entry else ""
        files = {entry if name == choice.entry else name: named[name] for name in choice.names}
        for name in files:
            check_file_name(name)
        return files, entry

    def _list(self, path: str, *, max_depth: int) -> list[Item]:
        with self._errors(path):
            found = self._files.find(path, maxdepth=max_depth, detail=True)
        if len(found) > _MAX_FILES:
            raise RegistryAnswerError(
                f"{path} holds {len(found):,} files, more than {_MAX_FILES:,}",
                hint="Name the folder of one model.",
            )
        items = [_item(name, about) for name, about in found.items()]
        return sorted(
            (item for item in items if not item.path.endswith("/")), key=lambda item: item.path
        )

    def _chunks(self, item: Item, progress: Progress) -> Iterator[bytes]:
        with self._errors(item.path), cast("IO[bytes]", self._files.open(item.path)) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                progress.advance(len(chunk))
                yield chunk


def _item(name: str, about: Mapping[str, Any]) -> Item:
    size = about.get("size")
    if not isinstance(size, int) or not 0 <= size <= _MAX_BYTES:
        raise RegistryAnswerError(f"the store says that {name} has {size!r} bytes")
    marks = ("ETag", "etag", "LastModified", "last_modified", "updated", "mtime", "created")
    mark = next((str(about[key]) for key in marks if about.get(key) is not None), "")
    return Item(path=str(name).strip("/"), size_bytes=size, mark=mark.strip('"'))


def _revision(files: Mapping[str, Item]) -> str:
    """Name what a model is, by what the store says of its files."""
    lines = [f"{name}\0{item.size_bytes}\0{item.mark}\n" for name, item in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]
