"""What is told about versions of adapters. Plain data."""

from collections.abc import Mapping
from dataclasses import dataclass

from hyprstream.lora.summary import ModuleChange, ModuleSummary
from hyprstream.refs import AdapterRef, VersionId
from hyprstream.store.manifest import Manifest, SpecValue
from hyprstream.store.records import Canary
from hyprstream.vdb.codecs import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A version that was added.

    Attributes:
        version: Its id.
        codec: The code that it is stored in.
        report: What coding came to.
    """

    version: VersionId
    codec: str
    report: Report


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInfo:
    """What `hyprstream lora info` shows.

    Attributes:
        ref: What was asked for.
        version: The version that it means.
        manifest: All that is known of the version besides its weights.
        tags: Tags of the adapter that stand for this version.
        modules: What it does to each layer.
        ratio: Its elements in float32 by the length of its payload.
        training: What was recorded of how it is to be trained; see `recorded_training`.
        canary: What answers a share of the requests that name the adapter, if one is out.
    """

    ref: AdapterRef
    version: VersionId
    manifest: Manifest
    tags: tuple[str, ...]
    modules: tuple[ModuleSummary, ...]
    ratio: float
    training: Mapping[str, SpecValue]
    canary: Canary | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterDiff:
    """How two versions differ.

    Attributes:
        first: The one that is compared with.
        second: The one that is compared.
        spec: What differs in what they were made to be, base model and code: name -> values.
        modules: What differs in what they add to each layer.
    """

    first: VersionId
    second: VersionId
    spec: Mapping[str, tuple[SpecValue, SpecValue]]
    modules: tuple[ModuleChange, ...]
