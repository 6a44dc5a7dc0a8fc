"""A file of tokens that nobody but its owner can read: mode 0600 in a folder of mode 0700."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hyprstream.errors import InvalidSettingsError
from hyprstream.files import lock, storage, sync_folder

TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")  # what a header can carry

_MAX_BYTES = 1 << 20
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class Entry(BaseModel):
    """A token, whom it is for, and the only address that it may be sent to."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)
    provider: Annotated[str, Field(max_length=64)]
    origin: Annotated[str, Field(max_length=1024)]
    token: Annotated[str, Field(pattern=rf"^{TOKEN.pattern}$", repr=False)]


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)
    format: Literal[1] = 1
    tokens: Annotated[list[Entry], Field(max_length=100)]


class TokenFile:
    """The file, and its folder, which is for it alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / "credentials.json"

    def read(self) -> list[Entry]:
        """Read the tokens; none where there is no file.

        Raises:
            InvalidSettingsError: Others may read or write the file, or it is damaged.
        """
        try:
            # A link could lead to a file that somebody else writes.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InvalidSettingsError(
                f"{self.path} cannot be read: {error.strerror}",
                hint="Remove it and log in again.",
            ) from error
        with os.fdopen(descriptor, "rb") as stream:
            self._check(os.fstat(descriptor))
            data = stream.read(_MAX_BYTES + 1)
        try:
            if len(data) > _MAX_BYTES:
                raise ValueError
            return _Content.model_validate_json(data).tokens
        except (ValidationError, ValueError):
            # Without the cause, which might quote what stands there.
            raise InvalidSettingsError(
                f"{self.path} is damaged: it is not what `hyprstream auth login` writes",
                hint="Remove it and log in again.",
            ) from None

    @contextmanager
    def changing(self) -> Iterator[list[Entry]]:
        """Give out the tokens, and write them when the block ends without an error.

        Raises:
            InvalidSettingsError: As `read`, or the folder cannot be written.
        """
        with storage(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._folder.chmod(stat.S_IRWXU)
        with lock(self._folder / "lock", str(self.path), _Patience()):
            tokens = self.read()
            before = list(tokens)
            yield tokens
            if tokens != before:
                with storage(self._folder):
                    self._write(tokens)

    def _write(self, tokens: list[Entry]) -> None:
        temporary = self.path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(temporary, flags, stat.S_IRUSR | stat.S_IWUSR), "wb") as stream:
            stream.write(_Content(tokens=tokens).model_dump_json(indent=2).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self.path)
        sync_folder(self._folder)

    def _check(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise InvalidSettingsError(
                f"{self.path} is no file of this user and is not read",
                hint="Remove it and log in again.",
            )
        if status.st_mode & _OTHERS:
            raise InvalidSettingsError(
                f"{self.path} is open to others (mode {stat.S_IMODE(status.st_mode):04o}) "
                "and is not read",
                hint=f"Run `chmod 600 {self.path}`; if others may have seen the tokens in it, "
                "make new ones.",
            )


class _Patience:
    """Waits for another login without a word; they take milliseconds."""

    def start(self, name: str, total_bytes: None) -> None:
        """Say nothing."""

    def done(self) -> None:
        """Say nothing."""
