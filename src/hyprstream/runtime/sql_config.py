"""Bounds of SQL."""

from dataclasses import dataclass

from hyprstream.errors import InvalidSettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlConfig:
    """What a statement may take."""

    memory_bytes: int = 1 << 30
    """Memory of all statements together; one that needs more fails."""
    threads: int = 2
    """Threads that statements compute on."""
    timeout_s: float = 300.0
    """Seconds that a statement may compute."""
    index: bool = True
    """Index tables of 100,000 vectors and more, where faiss is installed."""

    def __post_init__(self) -> None:
        lowest = {"memory_bytes": 64 << 20, "threads": 1, "timeout_s": 0.001}
        for name, least in lowest.items():
            value = getattr(self, name)
            if not value >= least:
                raise InvalidSettingsError(f"sql.{name} is {value}", hint=f"At least {least}.")
