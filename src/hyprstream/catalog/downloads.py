"""Brings files of the web into a staging: resumed, checked while they come, never half visible.

What has come is kept in `partials` and continued: after an interruption, and by the next
process after a kill. Every byte is hashed when it arrives, so that a file is read again only
where an earlier process left a part of it. Memory does not grow with the file.
"""

import email.utils
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import httpx

from hyprstream.catalog.bodies import body_of
from hyprstream.catalog.card import SHA256, Progress, check_file_name
from hyprstream.catalog.partials import Origin, Partial
from hyprstream.catalog.staging import Staging
from hyprstream.catalog.web import Attempts, Credential, Web
from hyprstream.errors import (
    ChecksumMismatchError,
    CorruptArchiveError,
    InvalidReferenceError,
    RateLimitedError,
    RegistryAnswerError,
    RegistryUnreachableError,
)

_PROGRESS_BYTES = 1 << 20  # so much that is new makes up for the failures before
_LEAST_BYTES_PER_S = 1 << 10
_MAX_BYTES = 1 << 42  # more is no model, and its length was not promised
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_UNSATISFIED = re.compile(r"bytes \*/(\d{1,18})")
_AGAIN = "Pull it again; if that does not help, report it to the publisher."


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file to be fetched.

    Attributes:
        name: Its name within the model.
        url: Where it is.
        size_bytes: Its length as promised; None if none was.
        sha256: Its hash as promised; None if none was.
        credential: Sent along where it may be.
        headers: Sent along everywhere.
    """

    name: str
    url: str
    size_bytes: int | None = None
    sha256: str | None = None
    credential: Credential | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Reject what the cache could not keep, before anything is fetched.

        Raises:
            InvalidReferenceError: The name or the hash is outside its alphabet.
        """
        check_file_name(self.name)
        if self.sha256 is not None and not SHA256.fullmatch(self.sha256):
            raise InvalidReferenceError(f"{self.sha256[:80]!r} is not the SHA-256 of {self.name}")


def download(
    web: Web, files: Sequence[RemoteFile], staging: Staging, progress: Progress, *, source: str
) -> None:
    """Bring files into a staging, one after the other.

    Args:
        web: How to ask.
        files: What to bring.
        staging: Where to.
        progress: Told about the bytes of each file and of all, what is here already included.
        source: Where they come from, for messages.

    Raises:
        CorruptArchiveError: Two names differ only in case.
        ChecksumMismatchError: A length or hash is not as promised; what came is thrown away.
        RegistryUnreachableError: The server did not answer, or not to the end, several times.
        StorageFullError: The disk is full.
        HyprstreamError: As `Web.get`.
    """
    if len({file.name.casefold() for file in files}) < len(files):
        raise CorruptArchiveError(source, "two of its file names differ only in case")
    missing = [(file.size_bytes or 0) - staging.partials.size_bytes(file.sha256) for file in files]
    staging.reserve(sum(max(0, num_bytes) for num_bytes in missing))
    if len(files) > 1:
        sizes = [file.size_bytes for file in files if file.size_bytes is not None]
        total_bytes = sum(sizes) if len(sizes) == len(files) else None
        progress.start(f"downloading {staging.ref}", total_bytes)
    for number, file in enumerate(files, start=1):
        label = file.name if len(files) == 1 else f"{file.name} ({number} of {len(files)})"
        _bring(web, file, staging, _Phase(progress, f"downloading {label}"))
    if len(files) > 1:
        progress.done()


def _bring(web: Web, file: RemoteFile, staging: Staging, phase: "_Phase") -> None:
    if _reuse(file, staging):
        phase.skip(file.size_bytes)
        return
    opening = staging.partials.open(sha256=file.sha256, url=file.url, waiting=phase.progress)
    with opening as partial:
        # The process that held it before may have put the content into the cache.
        if partial.num_bytes == 0 and _reuse(file, staging):
            return
        _Download(web, file, partial, phase).run()
        partial.finish()
        staging.take(file.name, partial)
        phase.end()


def _reuse(file: RemoteFile, staging: Staging) -> bool:
    """Take the content from the cache, if it is there."""
    return file.sha256 is not None and staging.reuse(
        file.name, size_bytes=file.size_bytes, sha256=file.sha256
    )


class _Phase:
    """Tells about one file; a file that begins anew is a new phase."""

    def __init__(self, progress: Progress, label: str) -> None:
        self.progress = progress
        self._label = label
        self._is_begun = False

    def begin(self, total_bytes: int | None, done_bytes: int) -> None:
        self.end()
        self.progress.start(self._label, total_bytes)
        self._is_begun = True
        if done_bytes:
            self.progress.advance(done_bytes)

    def skip(self, size_bytes: int | None) -> None:
        """Tell about a file that was here already."""
        self.begin(size_bytes, size_bytes or 0)
        self.end()

    def end(self) -> None:
        if self._is_begun:
            self.progress.done()
        self._is_begun = False


class _Download:
    """One file on its way: asks until it is complete, or until there is no use in asking."""

    def __init__(self, web: Web, file: RemoteFile, partial: Partial, phase: _Phase) -> None:
        self._web = web
        self._file = file
        self._partial = partial
        self._phase = phase
        self._may_resume = True

    def run(self) -> None:
        """Return when the content is complete and as promised."""
        partial = self._partial
        was_resumed = partial.num_bytes > 0
        if was_resumed and self._is_promised_content():
            self._phase.begin(partial.num_bytes, partial.num_bytes)
            return
        if partial.num_bytes > (self._file.size_bytes or _MAX_BYTES) or (
            partial.is_finished and self._file.sha256 is not None
        ):
            partial.restart()
        self._phase.begin(self._file.size_bytes, partial.num_bytes)
        self._receive_all()
        if was_resumed and self._file.sha256 and not self._is_promised_content():
            # Perhaps only what an earlier process left is wrong, after a loss of power say.
            partial.restart()
            self._phase.begin(self._file.size_bytes, 0)
            self._receive_all()
        self._check()

    def _is_promised_content(self) -> bool:
        return self._file.sha256 == self._partial.sha256.hexdigest()

    def _check(self) -> None:
        found, wanted = self._partial.sha256.hexdigest(), self._file.sha256
        if wanted not in (None, found):
            self._reject(f"{self._file.name} has the SHA-256 {found}, not {wanted}")

    def _reject(self, problem: str) -> None:
        self._partial.restart()
        raise ChecksumMismatchError(f"{problem} ({self._file.url})", hint=_AGAIN)

    def _receive_all(self) -> None:
        attempts = Attempts(self._web.patience)
        most_bytes = self._partial.num_bytes
        while True:
            try:
                if self._ask():
                    return
            except (RegistryUnreachableError, RateLimitedError) as error:
                if self._partial.num_bytes - most_bytes >= _PROGRESS_BYTES:
                    most_bytes = self._partial.num_bytes
                    attempts.progressed()
                attempts.failed(error)

    def _ask(self) -> bool:
        """Ask once for what is missing; tell whether that was the end."""
        partial, file = self._partial, self._file
        is_known = file.sha256 is not None or partial.origin is not None
        start = partial.num_bytes if self._may_resume and is_known else 0
        if start and start == file.size_bytes and file.sha256 is not None:
            return True
        headers = dict(file.headers)
        if start:
            headers["Range"] = f"bytes={start}-"
            if partial.origin is not None:
                headers["If-Range"] = partial.origin.validator
        with self._web.stream(
            file.url,
            what=file.name,
            credential=file.credential,
            headers=headers,
            accepted=(200, 206, 416) if start else (200,),
        ) as answer:
            if answer.status_code == 416:
                return self._is_all(answer, start)
            if answer.status_code == 206:
                end_bytes = self._continued(answer, start)
            else:
                end_bytes = self._begun(answer)
            self._receive(answer, end_bytes)
        return True

    def _is_all(self, answer: httpx.Response, start: int) -> bool:
        """Take "nothing is there" for the end, if it is the end; else begin anew."""
        match = _UNSATISFIED.fullmatch(answer.headers.get("Content-Range", ""))
        is_end = match and int(match[1]) == start and self._known_bytes() in (None, start)
        if is_end and (self._file.sha256 is None or self._is_promised_content()):
            return True
        self._may_resume = False
        return False

    def _continued(self, answer: httpx.Response, start: int) -> int | None:
        """Check that an answer goes on where we are; return where the file ends."""
        text = answer.headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(text)
        known = self._known_bytes()
        total = None if match is None or match[3] == "*" else int(match[3])
        if (
            match is None
            or self._partial.is_finished
            or int(match[1]) != start
            or (total is not None and int(match[2]) != total - 1)
            or (total is not None and known not in (None, total))
        ):
            self._may_resume = False
            raise RegistryUnreachableError(
                f"{answer.url.host} sent the part {text[:60]!r} of {self._file.name}, "
                f"not what begins at {start:,}",
                hint="Try again; if that does not help, the server or a proxy is broken.",
            )
        return known if total is None else total

    def _begun(self, answer: httpx.Response) -> int | None:
        """Prepare for the whole content; return where it ends."""
        length = answer.headers.get("Content-Length")
        size_bytes = int(length) if length and re.fullmatch(r"\d{1,18}", length) else None
        wanted = self._file.size_bytes
        if size_bytes is not None and wanted not in (None, size_bytes):
            self._reject(f"{self._file.name} has {size_bytes:,} bytes, {wanted:,} were promised")
        is_bounded = size_bytes is not None or "Transfer-Encoding" in answer.headers
        if not is_bounded and wanted is None and self._file.sha256 is None:
            raise RegistryAnswerError(
                f"{answer.url.host} does not say how long {self._file.name} is",
                hint="Nobody could tell whether it is complete; name its hash, or another server.",
            )
        total_bytes = wanted if size_bytes is None else size_bytes
        validator = None if self._file.sha256 is not None else _validator(answer)
        origin = validator and Origin(validator=validator, size_bytes=total_bytes)
        self._begin_anew(origin or None, total_bytes)
        return total_bytes

    def _begin_anew(self, origin: Origin | None, total_bytes: int | None) -> None:
        self._partial.restart(origin)
        self._phase.begin(total_bytes, 0)
        self._may_resume = True

    def _known_bytes(self) -> int | None:
        if self._file.size_bytes is not None or self._partial.origin is None:
            return self._file.size_bytes
        return self._partial.origin.size_bytes

    def _receive(self, answer: httpx.Response, end_bytes: int | None) -> None:
        partial, advance = self._partial, self._phase.progress.advance
        limit_bytes = _MAX_BYTES if end_bytes is None else end_bytes
        pace = _Pace(2 * self._web.patience.stall_s)
        for chunk in body_of(answer, self._web.patience.stall_s):
            if partial.num_bytes + len(chunk) > limit_bytes:
                self._reject(f"{self._file.name} has more than {limit_bytes:,} bytes")
            partial.write(chunk)
            advance(len(chunk))
            if pace.is_too_slow(len(chunk)):
                raise RegistryUnreachableError(
                    f"{answer.url.host} sends {self._file.name} too slowly",
                    hint="Check the network; what has come so far is kept.",
                )
        if end_bytes is not None and partial.num_bytes < end_bytes:
            raise RegistryUnreachableError(
                f"{answer.url.host} ended {self._file.name} after {partial.num_bytes:,} "
                f"of {end_bytes:,} bytes",
                hint="Check the network; what has come so far is kept.",
            )


class _Pace:
    """Tells when so little comes that nobody would wait for the end."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._begun = time.monotonic()
        self._num_bytes = 0

    def is_too_slow(self, num_bytes: int) -> bool:
        """Take note of what came; judge at the end of each period."""
        self._num_bytes += num_bytes
        passed_s = time.monotonic() - self._begun
        if passed_s < self._period_s:
            return False
        is_slow = self._num_bytes < _LEAST_BYTES_PER_S * passed_s
        self._begun, self._num_bytes = time.monotonic(), 0
        return is_slow


def _validator(answer: httpx.Response) -> str | None:
    """Find what tells whether content is still the same, strictly (RFC 9110, 8.8)."""
    etag: str = answer.headers.get("ETag", "")
    if re.fullmatch(r'"[\x21\x23-\x7e]{1,200}"', etag):
        return etag
    modified: str = answer.headers.get("Last-Modified", "")
    try:
        changed = email.utils.parsedate_to_datetime(modified)
        sent = email.utils.parsedate_to_datetime(answer.headers.get("Date", ""))
        # Two changes within one second have the same date.
        is_strict = (sent - changed).total_seconds() >= 1
    except (ValueError, TypeError):
        return None
    return modified if is_strict else None
