"""Keys by which the faces know their callers: made once, shown once, kept as hashes.

A key is 256 random bits, so that a plain SHA-256 of it tells nobody anything: there is no
list of likely keys to try. Nobody but the owner can read the file. No torch.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hyprstream.errors import InvalidRequestError, InvalidSettingsError, NotFoundError
from hyprstream.files import PrivateFile
from hyprstream.refs import AdapterName, adapter_name

KeyScope = Literal["inference", "feedback", "ingest", "admin"]
"""To ask; to say what one thinks of answers; to add samples and rows; to change whatever else."""

SCOPES: tuple[KeyScope, ...] = get_args(KeyScope)

_PREFIX = "hs-"
_NUM_BYTES = 32
_MAX_KEYS = 1000
_REMEDY = "Remove it and make new keys."
_NAME = re.compile(r"[\x20-\x7e]{1,100}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a caller may do.

    Attributes:
        id: Of the key; tells callers apart.
        scopes: What it is for.
        adapters: The only adapters that it may use or see; None is all of them.
    """

    id: str
    scopes: frozenset[KeyScope]
    adapters: frozenset[AdapterName] | None = None

    def may_use(self, adapter: AdapterName) -> bool:
        """Tell whether an adapter is the caller's to use."""
        return self.adapters is None or adapter in self.adapters


EVERYTHING = Grant(id="local", scopes=frozenset(SCOPES))


class StoredKey(BaseModel):
    """A key as it is kept: without the key."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, frozen=True)
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    name: Annotated[str, Field(pattern=rf"^{_NAME.pattern}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    scopes: tuple[KeyScope, ...]
    adapters: tuple[str, ...] | None = None
    created_at: datetime

    @property
    def grant(self) -> Grant:
        """What it allows."""
        names = None if self.adapters is None else frozenset(map(adapter_name, self.adapters))
        return Grant(id=self.id, scopes=frozenset(self.scopes), adapters=names)


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)
    format: Literal[1] = 1
    keys: Annotated[list[StoredKey], Field(max_length=_MAX_KEYS)]


class KeyFile:
    """The keys of one home.

    Args:
        folder: Theirs alone; made with the first key.
        clock: The time in UTC.
    """

    def __init__(
        self, folder: Path, *, clock: Callable[[], datetime] = lambda: datetime.now(tz=UTC)
    ) -> None:
        self._clock = clock
        self._file = PrivateFile(
            folder,
            "keys.json",
            remedy=_REMEDY,
            leak="whoever has read it knows no key; whoever wrote it may have added one.",
        )
        self.path = self._file.path

    def create(
        self, name: str, scopes: Sequence[KeyScope], adapters: Sequence[str] | None = None
    ) -> tuple[str, StoredKey]:
        """Make a key; this is the only time that it can be seen.

        Args:
            name: For people to know it by.
            scopes: What it is for.
            adapters: The only adapters that it may use; None is all.

        Returns:
            The key, and what is kept of it.

        Raises:
            InvalidRequestError: The name is none, or there is no scope.
            InvalidSettingsError: The file cannot be used.
        """
        if not _NAME.fullmatch(name):
            raise InvalidRequestError(
                f"{name[:100]!a} is no name for a key", hint="Use up to 100 printable characters."
            )
        if not scopes or not set(scopes) <= set(SCOPES):
            raise InvalidRequestError(
                f"the scopes are {', '.join(scopes) or 'none'}",
                hint=f"Name at least one of {', '.join(SCOPES)}.",
            )
        key = _PREFIX + secrets.token_urlsafe(_NUM_BYTES)
        stored = StoredKey(
            id=secrets.token_hex(6),
            name=name,
            sha256=digest(key),
            scopes=tuple(scope for scope in SCOPES if scope in scopes),
            adapters=None if adapters is None else tuple(map(adapter_name, adapters)),
            created_at=self._clock(),
        )
        with self._changing() as keys:
            if len(keys) >= _MAX_KEYS:
                raise InvalidRequestError(
                    f"there are {_MAX_KEYS} keys already", hint="Revoke some of them."
                )
            keys.append(stored)
        return key, stored

    def read(self) -> list[StoredKey]:
        """List the keys, oldest first; none where there is no file.

        Raises:
            InvalidSettingsError: Others may read or write the file, or it is damaged.
        """
        content = self._file.read()
        if content is None:
            return []
        try:
            return _Content.model_validate_json(content).keys
        except ValidationError:
            raise InvalidSettingsError(
                f"{self.path} is damaged: it is not what `hyprstream auth key create` writes",
                hint=_REMEDY,
            ) from None

    def revoke(self, key_id: str) -> StoredKey:
        """Take a key back; running servers notice with their next request.

        Raises:
            NotFoundError: There is no such key.
        """
        with self._changing() as keys:
            for key in keys:
                if key.id == key_id:
                    keys.remove(key)
                    return key
        raise NotFoundError(
            f"there is no key {key_id[:40]!a}", hint="`hyprstream auth key list` lists them."
        )

    @contextmanager
    def _changing(self) -> Iterator[list[StoredKey]]:
        with self._file.changing():
            keys = self.read()
            yield keys
            content = _Content(keys=keys).model_dump_json(indent=2)
            self._file.write(content.encode() + b"\n")


class Verifier:
    """Tells what a key allows. Looks at the file again when it has changed.

    Args:
        file: The keys.
        operator_key: One more, from the environment, for everything; empty is none.
    """

    def __init__(self, file: KeyFile, operator_key: str = "") -> None:
        self._file = file
        self._operator = digest(operator_key) if operator_key else ""
        self._seen: tuple[int, int] | None = None
        self._keys: list[StoredKey] = []
        self._refresh()

    @property
    def has_keys(self) -> bool:
        """Tell whether there is any key."""
        self._refresh()
        return bool(self._keys or self._operator)

    def grant(self, key: str) -> Grant | None:
        """Return what a key allows; None if it is none.

        Every key is compared, in constant time each, so that the time tells nothing.

        Raises:
            InvalidSettingsError: The file cannot be used any more.
        """
        self._refresh()
        presented = digest(key)
        found = None
        for stored in self._keys:
            if hmac.compare_digest(stored.sha256, presented):
                found = stored.grant
        if self._operator and hmac.compare_digest(self._operator, presented):
            found = Grant(id="operator", scopes=frozenset(SCOPES))
        return found

    def _refresh(self) -> None:
        try:
            status = self._file.path.stat()
            seen = (status.st_mtime_ns, status.st_ino)
        except OSError:
            seen = (0, 0)
        if seen != self._seen:
            self._keys = self._file.read()
            self._seen = seen


def digest(key: str) -> str:
    """Return what is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
