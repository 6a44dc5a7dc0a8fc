"""Settings that change while the server runs: read again on SIGHUP, or when an admin asks.

A file that cannot be used changes nothing. On the event loop.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from hyprstream.errors import HyprstreamError
from hyprstream.runtime import Settings
from hyprstream.runtime.server_config import ServerConfig

log = logging.getLogger(__name__)

CHANGEABLE = (
    "allowed_hosts",
    "body_timeout_s",
    "max_answers",
    "max_body_bytes",
    "max_concurrent",
    "max_metric_adapters",
    "max_per_minute",
    "max_schema_bytes",
    "max_tokens",
    "max_upload_bytes",
    "model_name",
    "ping_s",
    "write_timeout_s",
)
"""Settings of `[server]` that hold for the next request; `train.retention` is the other one."""

_SECTIONS = ("model", "engine", "train", "sql", "registries", "home", "offline", "api_key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloaded:
    """What came of reading the settings again.

    Attributes:
        changed: What holds now.
        waiting: What differs, and will hold when the server is started again.
    """

    changed: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()


class LiveConfig:
    """The settings of the server, and how they are read again.

    Args:
        settings: Those that it was started with.
        load: Reads them; raises for those that cannot be.
    """

    def __init__(self, settings: Settings, load: Callable[[], Settings] | None = None) -> None:
        self._settings = settings
        self._load = load or (lambda: settings)
        self._current = settings.server
        self._listeners: list[Callable[[Settings], None]] = []

    @property
    def current(self) -> ServerConfig:
        """What holds now."""
        return self._current

    def listen(self, listener: Callable[[Settings], None]) -> None:
        """Call somebody with the settings after each change, and once now."""
        self._listeners.append(listener)
        listener(self._settings)

    def reload(self) -> Reloaded:
        """Read the settings again, and let hold what may.

        Raises:
            HyprstreamError: They cannot be used; what held before still holds.
        """
        found = self._load()
        changes = _differences(self._current, found.server)
        changed = [name for name in changes if name in CHANGEABLE]
        waiting = [f"server.{name}" for name in changes if name not in CHANGEABLE]
        self._current = replace(
            self._current, **{name: getattr(found.server, name) for name in changed}
        )
        retention = found.train.retention
        names = [f"server.{name}" for name in changed]
        if retention != self._settings.train.retention:
            names.append("train.retention")
        train = replace(self._settings.train, retention=retention)
        for section in _SECTIONS:
            before = train if section == "train" else getattr(self._settings, section)
            if getattr(found, section) != before:
                waiting.append(section)
        update = {"server": self._current, "train": train}
        self._settings = self._settings.model_copy(update=update)
        for listener in self._listeners:
            listener(self._settings)
        return Reloaded(changed=tuple(names), waiting=tuple(waiting))

    def reload_and_tell(self) -> None:
        """Do the same, and tell the log what came of it, errors as well."""
        try:
            done = self.reload()
        except HyprstreamError as error:
            log.error("the settings in force stay, the new ones cannot be used: %s", error)
            return
        log.info("settings were read again; changed: %s", ", ".join(done.changed) or "nothing")
        if done.waiting:
            log.warning("changes that wait for a new start: %s", ", ".join(done.waiting))


def _differences(before: ServerConfig, after: ServerConfig) -> list[str]:
    names = [field.name for field in fields(ServerConfig)]
    return [name for name in names if getattr(before, name) != getattr(after, name)]
