"""What one version of an adapter is: a description that is checked, frozen, and hashed.

A version is named by the SHA-256 of its manifest, written in one canonical way; the manifest
names the payload by its SHA-256 in turn, so that an id stands for every byte of a version.
Manifests come from other machines: all in them is bounded, and nothing in them is a path.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Annotated, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from hyprstream.errors import IncompatibleAdapterError, InvalidAdapterError
from hyprstream.refs import ModelFingerprint, VersionId

MAX_BYTES = 256 << 10
"""Longest manifest. One that names each of 10,000 layers takes about as much."""

_MAX_ENTRIES = 256
_MAX_ITEMS = 16_384
_MAX_TEXT = 4_096

_Sha256 = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
_Key = Annotated[str, Field(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,127}\z")]
_Word = Annotated[str, Field(pattern=r"\A[a-z][a-z0-9_]{0,63}\z")]
_Text = Annotated[str, Field(max_length=_MAX_TEXT)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Whole = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
_Scalar = _Text | bool | _Whole | _Finite | None

SpecValue = str | bool | int | float | None | tuple[str | bool | int | float | None, ...]
"""What a specification may say of one property: plain data, one level deep."""

_Value = TypeVar("_Value")


def _frozen(values: Mapping[str, _Value]) -> Mapping[str, _Value]:
    return MappingProxyType(dict(values))


def _utc(time: datetime) -> datetime:
    if time.utcoffset() != timedelta(0):
        raise ValueError("a time has to be in UTC")
    return time.astimezone(UTC)


_Map = Annotated[
    Mapping[_Key, _Value],
    Field(max_length=_MAX_ENTRIES),
    AfterValidator(_frozen),
    PlainSerializer(dict),
]
_Time = Annotated[
    datetime,
    AfterValidator(_utc),
    PlainSerializer(lambda time: time.isoformat(timespec="microseconds")),
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Base(_Frozen):
    """The model that a version was made for; see `ModelFingerprint`."""

    name: Annotated[str, Field(min_length=1, max_length=_MAX_TEXT)]
    config_sha256: _Sha256
    weights_sha256: _Sha256

    @property
    def fingerprint(self) -> ModelFingerprint:
        """The same as a plain value."""
        return ModelFingerprint(**self.model_dump())


class Payload(_Frozen):
    """The content of a version, as bytes."""

    sha256: _Sha256
    size_bytes: Annotated[int, Field(ge=0, lt=1 << 63)]


class Manifest(_Frozen):
    """Everything about a version that is not its weights."""

    format: Literal[1] = 1
    base: Base
    kinds: Annotated[tuple[_Word, ...], Field(min_length=1, max_length=16)]
    """Of which kinds its parts are, as in `lora/kinds`."""
    spec: _Map[_Scalar | Annotated[tuple[_Scalar, ...], Field(max_length=_MAX_ITEMS)]]
    """What it was made to be: rank, alpha, targets, sparsity and the like."""
    codec: _Word
    """How the payload is coded, as in `vdb/codecs`."""
    parent: _Sha256 | None
    """The version that it was made from."""
    needs_parent: bool
    """The payload says only what differs from the parent, which has to stay."""
    payload: Payload
    metrics: _Map[_Finite]
    """What was measured of it, such as its loss on held-out samples."""
    provenance: _Map[_Text]
    """Where it comes from: who made it, from what, with what."""
    created: _Time

    @model_validator(mode="after")
    def _has_the_parent_that_it_needs(self) -> "Manifest":
        if self.needs_parent and self.parent is None:
            raise ValueError("a version that needs its parent has to name it")
        return self

    @property
    def version(self) -> VersionId:
        """The id: the SHA-256 of `encode()`."""
        return VersionId(hashlib.sha256(self.encode()).hexdigest())

    def encode(self) -> bytes:
        """Write it in its one canonical way: JSON in ASCII, keys sorted, no spaces."""
        plain = self.model_dump()
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What its maker says of a version; payload and time are added when it is committed.

    Fields are those of `Manifest`, and are checked there.
    """

    base: ModelFingerprint
    kinds: Sequence[str]
    spec: Mapping[str, SpecValue]
    codec: str
    parent: VersionId | None = None
    needs_parent: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)

    def complete(self, payload: Payload, created: datetime) -> Manifest:
        """Make the manifest.

        Raises:
            InvalidAdapterError: A part is too large, or of another kind than it should be.
        """
        fields = {part.name: getattr(self, part.name) for part in dataclasses.fields(self)}
        fields |= {"base": asdict(self.base), "payload": payload, "created": created}
        manifest = _checked(lambda: Manifest.model_validate(fields))
        num_bytes = len(manifest.encode())
        if num_bytes > MAX_BYTES:
            raise _invalid(f"it would have {num_bytes} bytes, {MAX_BYTES} are admitted")
        return manifest


def decode(content: bytes) -> Manifest:
    """Read a manifest, trusting nothing in it.

    Raises:
        InvalidAdapterError: It is too long, or not what `Manifest.encode` writes: the same
            content written in another way would have another id.
    """
    if len(content) > MAX_BYTES:
        raise _invalid(f"it has {len(content)} bytes, {MAX_BYTES} are admitted")
    manifest = _checked(lambda: Manifest.model_validate_json(content))
    if manifest.encode() != content:
        raise _invalid("it is not written in the canonical way")
    return manifest


def check_base(
    manifest: Manifest, fingerprint: ModelFingerprint, *, force: bool = False
) -> str | None:
    """Tell whether a version was made for a model.

    Args:
        manifest: The version.
        fingerprint: The model that it is to be used with.
        force: Warn instead of refusing.

    Returns:
        None if it was made for this model; else what to tell the user.

    Raises:
        IncompatibleAdapterError: It was made for another model, and is not forced.
    """
    made_for = manifest.base.fingerprint
    if made_for == fingerprint:
        return None
    differs = (
        "other weights of the same architecture"
        if made_for.config_sha256 == fingerprint.config_sha256
        else "another architecture"
    )
    problem = f"the adapter was made for {made_for}, this model is {fingerprint}: {differs}"
    if not force:
        raise IncompatibleAdapterError(
            problem,
            hint="Load the model that it was made for, or force it if its layers fit.",
        )
    return (
        f"{problem}. It is added all the same where its layers fit; none of its measurements "
        "hold for this model"
    )


def _checked(build: Callable[[], Manifest]) -> Manifest:
    try:
        return build()
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part)[:80] for part in problem["loc"]) or "the whole"
        raise _invalid(f"{where[:200]}: {problem['msg'][:200]}") from error


def _invalid(problem: str) -> InvalidAdapterError:
    return InvalidAdapterError(
        f"the manifest of the adapter is not valid: {problem}",
        hint="Correct what made it, or fetch the adapter again.",
    )
