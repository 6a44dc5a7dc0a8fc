"""Brings the files of a model from the Hub's process into a staging, each one checked."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from hyprstream.catalog.card import Progress
from hyprstream.catalog.hub.answers import HubFile
from hyprstream.catalog.hub.process import HubFailureError, HubProcess
from hyprstream.catalog.partials import Partial
from hyprstream.catalog.staging import Staging
from hyprstream.errors import ChecksumMismatchError
from hyprstream.files import CHUNK_BYTES
from hyprstream.refs import ModelRef

_AGAIN = "Pull it again; if that does not help, report it to the publisher."
_NOT_SATISFIABLE = 416  # there is nothing behind what we have
_USELESS = frozenset({"too long", "too short"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """The files of one model on their way.

    Attributes:
        hub: Where they come from.
        address: The same, for messages.
        ref: The model, with its commit.
        staging: Where they go.
        progress: Told about the bytes of each file, what an earlier attempt left included.
    """

    hub: HubProcess
    address: str
    ref: ModelRef
    staging: Staging
    progress: Progress

    def bring(self, files: Mapping[str, HubFile]) -> None:
        """Bring files that the cache does not have yet.

        Args:
            files: The name that each shall have.

        Raises:
            StorageFullError: There is no room for them.
            ChecksumMismatchError: One is not what was promised; what came is thrown away.
            HubFailureError: It did not come, or not to its end; what came is kept.
        """
        partials = self.staging.partials
        missing = [file.size_bytes - partials.size_bytes(file.sha256) for file in files.values()]
        self.staging.reserve(sum(max(0, num_bytes) for num_bytes in missing))
        total_bytes = sum(file.size_bytes for file in files.values())
        self.progress.start(f"downloading {self.ref}", total_bytes)
        for number, (name, file) in enumerate(files.items(), start=1):
            if file.sha256 is not None and self.staging.reuse(
                name, size_bytes=file.size_bytes, sha256=file.sha256
            ):
                self.progress.advance(file.size_bytes)
                continue
            url = f"{self.address}/{self.ref.name}/{self.ref.revision}/{file.name}"
            opening = partials.open(sha256=file.sha256, url=url, waiting=self.progress)
            with opening as partial:
                self.progress.start(
                    f"downloading {name} ({number} of {len(files)})", file.size_bytes
                )
                self._bring(file, partial)
                partial.finish()
                self.staging.take(name, partial)
                self.progress.done()
        self.progress.done()

    def _bring(self, file: HubFile, partial: Partial) -> None:
        if file.sha256 is None or partial.num_bytes > file.size_bytes:
            partial.restart()
        was_resumed = partial.num_bytes > 0
        self.progress.advance(partial.num_bytes)
        self._receive(file, partial)
        if was_resumed and not _is_as_promised(file, partial):
            # Perhaps only what an earlier process left is wrong, after a loss of power say.
            sink = _Sink(partial, self.progress)
            sink.restart()
            self._receive(file, partial)
        if not _is_as_promised(file, partial):
            partial.restart()
            raise ChecksumMismatchError(
                f"{file.name} of {self.ref} has another hash than the Hub promised", hint=_AGAIN
            )

    def _receive(self, file: HubFile, partial: Partial) -> None:
        if partial.num_bytes == file.size_bytes:
            return
        try:
            self.hub.ask(
                "download",
                sink=_Sink(partial, self.progress),
                name=self.ref.name,
                commit=self.ref.revision,
                file=file.name,
                offset=partial.num_bytes,
                size_bytes=file.size_bytes,
            )
        except HubFailureError as failure:
            if failure.kind in _USELESS or failure.status == _NOT_SATISFIABLE:
                partial.restart()
                raise ChecksumMismatchError(
                    f"{file.name} of {self.ref} has not the {file.size_bytes:,} bytes that the "
                    "Hub promised",
                    hint=_AGAIN,
                ) from failure
            raise


class _Sink:
    """Appends to a partial, and tells about it."""

    def __init__(self, partial: Partial, progress: Progress) -> None:
        self._partial = partial
        self._progress = progress

    def write(self, content: bytes) -> None:
        self._partial.write(content)
        self._progress.advance(len(content))

    def restart(self) -> None:
        self._progress.advance(-self._partial.num_bytes)
        self._partial.restart()


def _is_as_promised(file: HubFile, partial: Partial) -> bool:
    """Compare a hash; a small file is known by that of git, which begins with the length."""
    if file.sha256 is not None:
        return partial.sha256.hexdigest() == file.sha256
    digest = hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)
    if partial.num_bytes:
        with partial.file.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest() == file.git_sha1
