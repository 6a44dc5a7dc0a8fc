"""What a store tells about names and versions. Plain data."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from hyprstream.errors import InvalidRequestError
from hyprstream.refs import AdapterName, VersionId

Action = Literal["create", "promote", "rollback"]

_MAX_BY = 200
_MAX_WHY = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Who moves a name, and why: for the history.

    Attributes:
        by: A person or a part of the program.
        why: One sentence or two.
    """

    by: str = ""
    why: str = ""

    def __post_init__(self) -> None:
        """Reject what is no note.

        Raises:
            InvalidRequestError: A text is too long, or not writable as UTF-8.
        """
        for text, most in ((self.by, _MAX_BY), (self.why, _MAX_WHY)):
            if len(text) > most or any("\ud800" <= letter <= "\udfff" for letter in text):
                raise InvalidRequestError(
                    f"a note of {len(text)} characters is too long or no text, {most} are admitted",
                    hint="Shorten it.",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One change of what a name points at.

    Attributes:
        action: What was done.
        version: What the name has pointed at since.
        at: When, in UTC.
        note: Who did it, and why.
    """

    action: Action
    version: VersionId
    at: datetime
    note: Note


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """A version that answers a share of the requests which name an adapter.

    Attributes:
        version: The version.
        parent: The one that answers the others: where the name points.
        share: Of the requests, between 0 and 1.
        since: Since when, in UTC.
    """

    version: VersionId
    parent: VersionId
    share: float
    since: datetime

    def __post_init__(self) -> None:
        """Reject a share that is none.

        Raises:
            InvalidRequestError: It is not between 0 and 1.
        """
        if not 0 < self.share < 1:
            raise InvalidRequestError(
                f"the share of a canary is {self.share}", hint="Make it more than 0, less than 1."
            )

    def takes(self, name: AdapterName, key: str) -> bool:
        """Tell whether the canary answers a request: of each key always or never.

        Args:
            name: The adapter that the request names.
            key: Of the request. Its hash decides, with name and version, so that another
                canary has another share of the keys.
        """
        text = f"{name}\0{self.version}\0{key}".encode(errors="surrogatepass")
        return int.from_bytes(hashlib.sha256(text).digest()[:8]) < self.share * 2.0**64


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One line of the list of adapters.

    Attributes:
        name: What it is called.
        version: What the name points at.
        moved_at: Since when, in UTC.
        base: What the model that it was made for is called.
        codec: How it is stored.
        size_bytes: Length of its payload.
    """

    name: AdapterName
    version: VersionId
    moved_at: datetime
    base: str
    codec: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A version that is not what was committed.

    Attributes:
        version: Its id.
        problem: What is wrong.
    """

    version: VersionId
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What `AdapterStore.collect` removed.

    Attributes:
        versions: Ids of the versions.
        freed_bytes: Length of the files.
    """

    versions: tuple[VersionId, ...]
    freed_bytes: int
