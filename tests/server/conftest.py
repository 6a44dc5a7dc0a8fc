"""One server process for all tests that only talk to it."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from hyprstream.runtime.keys import SCOPES, KeyFile
from hyprstream.runtime.model import Model
from hyprstream.runtime.settings import Settings
from tests.server.process import ServerProcess
from tests.server.tiny import make_home


@dataclass(frozen=True)
class Served:
    """A server that runs, its model in this process, and its keys by what they are for."""

    server: ServerProcess
    home: Path
    model: Model
    keys: dict[str, str]

    def client(self, key: str = "all") -> httpx.Client:
        return self.server.client(self.keys[key] if key else "")


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> tuple[Path, Model]:
    folder = tmp_path_factory.mktemp("home")
    return folder, make_home(folder)


@pytest.fixture(scope="session")
def served(home) -> Iterator[Served]:
    pristine, model = home  # others begin with what nobody has changed
    folder = pristine.parent / "served"
    shutil.copytree(pristine, folder)
    file = KeyFile(Settings(home=folder).keys_folder)
    keys: dict[str, str] = {scope: file.create(scope, [scope])[0] for scope in SCOPES}
    keys["all"] = file.create("all", SCOPES)[0]
    keys["poet"] = file.create("poet", ["inference", "feedback"], ["poet"])[0]
    keys["revoked"], stored = file.create("revoked", SCOPES)
    file.revoke(stored.id)
    options = {"HYPRSTREAM_TRAIN__ADAPT__ENABLED": "true"}
    with ServerProcess(folder, "--flight-port", "0", **options) as server:
        yield Served(server=server, home=folder, model=model, keys=keys)


@pytest.fixture
def client(served) -> Iterator[httpx.Client]:
    """A client that may do everything."""
    with served.client() as client:
        yield client
