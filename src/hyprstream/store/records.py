"""What a store tells about names and versions. Plain data."""

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
