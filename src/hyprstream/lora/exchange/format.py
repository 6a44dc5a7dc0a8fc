"""What every format of adapters offers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from hyprstream.lora.exchange.coverage import Imported
from hyprstream.lora.exchange.host import Host
from hyprstream.lora.exchange.outgoing import Outgoing


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """What a file may not say of itself.

    Attributes:
        alpha: What products are multiplied with, before they are divided by their rank; None
            takes it from the file.
        allow_pickle: Read pickled files, in a process of their own.
    """

    alpha: float | None = None
    allow_pickle: bool = False


@runtime_checkable
class Format(Protocol):
    """A file of `lora/formats`."""

    IS_FOLDER: bool

    def recognizes(self, path: Path) -> bool:
        """Tell whether a path is of this format, without failing on strange ones."""
        ...

    def read(self, path: Path, host: Host, options: ReadOptions) -> Imported:
        """Read an adapter for a model."""
        ...

    def write(self, place: Path, outgoing: Outgoing) -> None:
        """Write an adapter into a place that is empty."""
        ...
