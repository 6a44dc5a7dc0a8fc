"""How long, and how many, samples are kept. Plain data, no torch."""

from dataclasses import dataclass

from hyprstream.errors import InvalidSettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionConfig:
    """What is kept of an adapter whose policy says nothing else."""

    max_age_days: float = 90.0
    """Days after which a sample is deleted, whatever became of it; 0 sets no bound."""
    max_samples: int = 20_000
    """Most samples; beyond it those go first that were learnt from, or dropped."""
    check_s: float = 300.0
    """Seconds between two looks of a server at what has to go, and at policies."""

    def __post_init__(self) -> None:
        """Reject values outside their range.

        Raises:
            InvalidSettingsError: A field is wrong.
        """
        for name, low in (("max_age_days", 0), ("max_samples", 1), ("check_s", 0.01)):
            value = getattr(self, name)
            if not low <= value < float("inf"):
                raise InvalidSettingsError(f"{name} is {value}", hint=f"Make it {low} or more.")
