"""A file of tokens that nobody but its owner can read."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hyprstream.errors import InvalidSettingsError
from hyprstream.files import PrivateFile

TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")  # what a header can carry

_REMEDY = "Remove it and log in again."


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
        self._file = PrivateFile(
            folder,
            "credentials.json",
            remedy=_REMEDY,
            leak="if others may have seen the tokens in it, make new ones.",
        )
        self.path = self._file.path

    def read(self) -> list[Entry]:
        """Read the tokens; none where there is no file.

        Raises:
            InvalidSettingsError: Others may read or write the file, or it is damaged.
        """
        content = self._file.read()
        if content is None:
            return []
        try:
            return _Content.model_validate_json(content).tokens
        except ValidationError:
            # Without the cause, which might quote what stands there.
            raise InvalidSettingsError(
                f"{self.path} is damaged: it is not what `hyprstream auth login` writes",
                hint=_REMEDY,
            ) from None

    @contextmanager
    def changing(self) -> Iterator[list[Entry]]:
        """Give out the tokens, and write them when the block ends without an error.

        Raises:
            InvalidSettingsError: As `read`, or the folder cannot be written.
        """
        with self._file.changing():
            tokens = self.read()
            before = list(tokens)
            yield tokens
            if tokens != before:
                content = _Content(tokens=tokens).model_dump_json(indent=2)
                self._file.write(content.encode() + b"\n")
