"""What can be set of fitting to the prompt of one request. Plain data, no torch."""

import math
from dataclasses import dataclass

from hyprstream.errors import InvalidSettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class FittingConfig:
    """Bounds of the option `adapt` of a request; the section `[train.adapt]` of the settings."""

    enabled: bool = False
    """Let requests ask for steps on their own prompts."""
    max_steps: int = 8
    """Most optimizer steps for one request."""
    max_prompt_tokens: int = 1024
    """Most tokens of a prompt that are learnt from; a request with more is refused."""
    max_learning_rate: float = 0.01
    """Highest rate that a request may ask for."""
    max_at_a_time: int = 4
    """Most requests that are fitted, wait for it, or are answered by what came of it."""
    rank: int = 8
    """Rank of what is learnt where the request names no adapter; at most `engine.max_rank`."""

    def __post_init__(self) -> None:
        """Reject values outside their range.

        Raises:
            InvalidSettingsError: A field is wrong.
        """
        for name in ("max_steps", "max_prompt_tokens", "max_at_a_time", "rank"):
            if getattr(self, name) < 1:
                raise InvalidSettingsError(
                    f"train.adapt.{name} is {getattr(self, name)}", hint="Make it 1 or more."
                )
        rate = self.max_learning_rate
        if not (math.isfinite(rate) and 0 < rate <= 1):
            raise InvalidSettingsError(
                f"train.adapt.max_learning_rate is {rate}",
                hint="Make it above 0, and at most 1.",
            )
