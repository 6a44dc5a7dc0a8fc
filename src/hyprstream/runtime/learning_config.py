"""What a user can set of learning while serving, one definition each. Plain data, no torch."""

from dataclasses import dataclass, field

from hyprstream.engine.config import EngineConfig
from hyprstream.errors import InvalidSettingsError
from hyprstream.runtime.canary import CanaryConfig
from hyprstream.runtime.fitting_config import FittingConfig
from hyprstream.runtime.learners import LearnerConfig
from hyprstream.runtime.recorder import RecorderConfig
from hyprstream.runtime.retention_config import RetentionConfig
from hyprstream.runtime.watch import WatchConfig
from hyprstream.train.buffer import BufferConfig
from hyprstream.train.gate import GateConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningConfig:
    """Bounds and tests that hold for all adapters; the section `[train]` of the settings."""

    enabled: bool = True
    """Let adapters learn beside serving; off serves them as they are."""
    max_share: float = EngineConfig().background_share
    """Share of the time that learning may take while requests are waiting, 0 to 1."""
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    buffer: BufferConfig = field(default_factory=BufferConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    canary: CanaryConfig = field(default_factory=CanaryConfig)
    traffic: RecorderConfig = field(default_factory=RecorderConfig)
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    adapt: FittingConfig = field(default_factory=FittingConfig)

    def __post_init__(self) -> None:
        """Reject values outside their range.

        Raises:
            InvalidSettingsError: A field is wrong.
        """
        if not 0 <= self.max_share <= 1:
            raise InvalidSettingsError(
                f"train.max_share is {self.max_share}", hint="Make it a number from 0 to 1."
            )
