"""What the model cache tells about itself: plain data."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from hyprstream.catalog.card import ModelCard
from hyprstream.refs import ModelRef

State = Literal["complete", "metadata only", "incomplete"]
LeftoverKind = Literal[
    "unused content", "unused folder", "abandoned fetch", "partial download", "quarantined file",
    "old revision",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedModel:
    """A model that is in the cache.

    Attributes:
        card: Its reference with revision, and its files.
        path: What to give to a loader: a file, or a folder.
        fetched_at: When it came in.
        state: Whether all of it is there, in full length; "metadata only" if its weights
            were removed on purpose.
    """

    card: ModelCard
    path: Path
    fetched_at: datetime
    state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A file of a cached model that is not what was fetched.

    Attributes:
        ref: The model, with its revision.
        file: The file's name in the model; "" if it is the model's manifest.
        problem: What is wrong with it.
        foreign: It is no file of the model at all.
    """

    ref: ModelRef
    file: str
    problem: str
    foreign: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """How a damaged model was mended.

    Attributes:
        ref: The model, with its revision.
        damages: What was wrong with it, and no longer is.
        fetched_bytes: How much of them came from the registry; the rest was still here.
        quarantined: Where files went that do not belong to the model.
    """

    ref: ModelRef
    damages: tuple[Damage, ...]
    fetched_bytes: int
    quarantined: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """Something in the cache that can go without harm to a model that is wanted.

    Attributes:
        kind: What it is.
        name: The model, or the content, that it belongs to or belonged to.
        path: Where it lies.
        size_bytes: How much of the disk goes free with it.
    """

    kind: LeftoverKind
    name: str
    path: Path
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUsage:
    """What one model takes of the disk.

    Attributes:
        ref: The model, with its revision.
        state: Whether all of it is there.
        size_bytes: Length of its files that are there.
        unique_bytes: What of it no other model has.
    """

    ref: ModelRef
    state: State
    size_bytes: int
    unique_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStatus:
    """What the cache takes of the disk.

    Attributes:
        folder: Where it is.
        models: Every model, by reference.
        num_unreadable: Manifests that this program cannot read; while there are any, content
            is not known to be unused and stays.
        total_bytes: Everything below the folder, content that is shared counted once.
        unique_bytes: Content that one model has.
        shared_bytes: Content that several models have.
        unused_bytes: Content that no model has.
        staged_bytes: What is being fetched now.
        partial_bytes: Downloads that are not complete and can be continued.
        leftovers: What `cleanup` would remove.
        free_bytes: Room left on the disk.
    """

    folder: Path
    models: tuple[ModelUsage, ...]
    num_unreadable: int
    total_bytes: int
    unique_bytes: int
    shared_bytes: int
    unused_bytes: int
    staged_bytes: int
    partial_bytes: int
    leftovers: tuple[Leftover, ...]
    free_bytes: int
