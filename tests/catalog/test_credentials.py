import logging
import pickle
import stat
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import pytest
from typing_extensions import override

from hyprstream.catalog.credentials import (
    Credentials,
    Keyring,
    Provider,
    Secret,
    origin_of,
    secret_token,
    system_keyring,
)
from hyprstream.errors import InvalidSettingsError

HUB = Provider(name="hf", address="https://hub.example", variables=("HF_TOKEN", "OLD_TOKEN"))
MIRROR = Provider(name="hf", address="https://mirror.example", variables=("HF_TOKEN",))


NOTHING: Mapping[str, str] = {}
HUSH = {"HF_TOKEN": "hush"}


class MemoryKeyring:
    """A keyring of a few lines."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.kept[service, username]


class LockedKeyring(MemoryKeyring):
    """One that nobody unlocks."""

    @override
    def get_password(self, service: str, username: str) -> str | None:
        raise RuntimeError(f"locked: {service} {username}")

    @override
    def set_password(self, service: str, username: str, password: str) -> None:
        raise RuntimeError(f"locked: {service} {username} {password}")


class ForgetfulKeyring(MemoryKeyring):
    """One that takes everything and keeps nothing, as keyring's null backend."""

    @override
    def set_password(self, service: str, username: str, password: str) -> None:
        """Keep nothing."""


def credentials(
    folder: Path, keyring: Keyring | None = None, environ: Mapping[str, str] = NOTHING
) -> Credentials:
    return Credentials(folder / "credentials", environ=environ, keyring=lambda: keyring)


def token_of(source: Credentials, provider: Provider = HUB) -> tuple[str, str] | None:
    found = source.find(provider)
    return None if found is None else (found.secret.reveal(), found.place)


def test_the_environment_comes_first_then_the_keyring_then_the_file(tmp_path: Path):
    keyring = MemoryKeyring()
    file = str(tmp_path / "credentials" / "credentials.json")
    assert token_of(credentials(tmp_path)) is None
    credentials(tmp_path).keep(HUB, Secret("in-file"))
    assert token_of(credentials(tmp_path)) == ("in-file", file)
    keyring.set_password("hyprstream", "hf https://hub.example", "in-keyring")
    assert token_of(credentials(tmp_path, keyring)) == ("in-keyring", "the system's keyring")
    both = {"HF_TOKEN": " in-environment\n", "OLD_TOKEN": "older"}
    assert token_of(credentials(tmp_path, keyring, both)) == ("in-environment", "HF_TOKEN")
    blank = {"HF_TOKEN": " ", "OLD_TOKEN": "older"}
    assert token_of(credentials(tmp_path, keyring, blank)) == ("older", "OLD_TOKEN")


def test_what_other_tools_keep_comes_last(tmp_path: Path):
    file = tmp_path / "token"
    provider = Provider(name="hf", address="https://hub.example", files=(tmp_path / "none", file))
    assert credentials(tmp_path).find(provider) is None
    file.write_text("of-other-tools\n")
    assert token_of(credentials(tmp_path), provider) == ("of-other-tools", str(file))
    credentials(tmp_path).keep(provider, Secret("ours"))
    assert token_of(credentials(tmp_path), provider) == (
        *("ours", str(tmp_path / "credentials" / "credentials.json")),
    )


def test_the_file_and_its_folder_are_for_their_owner_alone(tmp_path: Path):
    credentials(tmp_path).keep(HUB, Secret("a"))
    folder = tmp_path / "credentials"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "credentials.json").stat().st_mode) == 0o600
    assert sorted(file.name for file in folder.iterdir()) == ["credentials.json", "lock"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_file_that_is_open_to_others_is_not_read(tmp_path: Path, mode: int):
    source = credentials(tmp_path)
    source.keep(HUB, Secret("seen-by-others"))
    file = tmp_path / "credentials" / "credentials.json"
    file.chmod(mode)
    with pytest.raises(InvalidSettingsError, match="open to others") as caught:
        source.find(HUB)
    assert f"chmod 600 {file}" in caught.value.hint
    with pytest.raises(InvalidSettingsError):
        source.keep(HUB, Secret("new"))
    file.chmod(0o600)
    assert token_of(source) == ("seen-by-others", str(file))


def test_a_link_to_another_file_is_not_followed(tmp_path: Path):
    source = credentials(tmp_path)
    source.keep(HUB, Secret("mine"))
    file = tmp_path / "credentials" / "credentials.json"
    file.rename(tmp_path / "elsewhere.json")
    file.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(InvalidSettingsError, match="cannot be read"):
        source.find(HUB)


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", '{"format": 2, "tokens": []}', "[" * 100_000, " " * (2 << 20)),
        '{"format": 1, "tokens": [{"provider": "hf", "origin": "x", "token": "hush hush"}]}',
        '{"format": 1, "tokens": [{"provider": "hf", "origin": 1, "token": "hush"}]}',
    ],
)
def test_a_damaged_file_is_refused_without_being_quoted(tmp_path: Path, content: str):
    source = credentials(tmp_path)
    source.keep(HUB, Secret("mine"))
    file = tmp_path / "credentials" / "credentials.json"
    file.write_text(content)
    with pytest.raises(InvalidSettingsError, match="damaged") as caught:
        source.find(HUB)
    assert "hush" not in f"{caught.value} {caught.value.hint} {caught.value.__cause__}"


@pytest.mark.parametrize("keyring", [None, MemoryKeyring()])
def test_a_token_is_bound_to_the_address_that_it_was_given_for(
    tmp_path: Path, keyring: Keyring | None
):
    source = credentials(tmp_path, keyring)
    source.keep(HUB, Secret("for-hub"))
    assert source.find(MIRROR) is None
    source.keep(MIRROR, Secret("for-mirror"))
    assert (token_of(source) or ("",))[0] == "for-hub"
    assert (token_of(source, MIRROR) or ("",))[0] == "for-mirror"
    other = Provider(name="corp", address=HUB.address)
    assert source.find(other) is None


@pytest.mark.parametrize("address", ["http://hub.example", "http://192.0.2.1:8080"])
def test_a_token_is_neither_kept_for_nor_sent_over_what_everybody_can_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, address: str
):
    plain = Provider(name="hf", address=address, variables=("HF_TOKEN",))
    with pytest.raises(InvalidSettingsError, match="not encrypted"):
        credentials(tmp_path).keep(plain, Secret("a"))
    with caplog.at_level(logging.WARNING):
        assert credentials(tmp_path, environ=HUSH).find(plain) is None
    assert "not encrypted" in caplog.text
    assert "hush" not in caplog.text
    here = Provider(name="hf", address="http://127.0.0.1:8080", variables=("HF_TOKEN",))
    assert token_of(credentials(tmp_path, environ=HUSH), here) == ("hush", "HF_TOKEN")


def test_forgetting_leaves_nothing(tmp_path: Path):
    keyring = MemoryKeyring()
    for source in (credentials(tmp_path), credentials(tmp_path, keyring)):
        source.keep(HUB, Secret("a"))
    credentials(tmp_path).keep(MIRROR, Secret("b"))
    source = credentials(tmp_path, keyring, {"HF_TOKEN": "stays"})
    assert source.forget(HUB)
    assert not source.forget(HUB)
    assert not keyring.kept
    assert credentials(tmp_path).find(HUB) is None
    assert credentials(tmp_path).find(MIRROR) is None
    assert (token_of(source) or ("",))[0] == "stays"


def test_a_login_into_the_keyring_takes_the_older_token_out_of_the_file(tmp_path: Path):
    credentials(tmp_path).keep(HUB, Secret("old"))
    credentials(tmp_path, MemoryKeyring()).keep(HUB, Secret("new"))
    assert credentials(tmp_path).find(HUB) is None


@pytest.mark.parametrize("keyring", [LockedKeyring(), ForgetfulKeyring()])
def test_a_keyring_that_does_not_keep_is_not_relied_on(
    tmp_path: Path, keyring: Keyring, caplog: pytest.LogCaptureFixture
):
    source = credentials(tmp_path, keyring)
    with caplog.at_level(logging.DEBUG):
        kept = source.keep(HUB, Secret("hush"))
    assert kept.place.endswith("credentials.json")
    assert token_of(source) == ("hush", kept.place)
    assert source.forget(HUB)
    assert "hush" not in caplog.text


@pytest.mark.parametrize("backend", ["fail", "null"])
def test_the_librarys_own_backends_without_a_service_are_not_relied_on(
    tmp_path: Path, backend: str
):
    pytest.importorskip("keyring", reason="the library keyring is not installed")
    keyring = import_module(f"keyring.backends.{backend}").Keyring()
    source = credentials(tmp_path, keyring)
    kept = source.keep(HUB, Secret("hush"))
    assert token_of(source) == ("hush", kept.place)
    assert kept.place.endswith("credentials.json")
    assert source.forget(HUB)


@pytest.mark.parametrize("text", ["", " ", "two words", "line\nbreak", "\N{SNOWMAN}", "x" * 5000])
def test_what_is_no_token_is_refused_without_being_shown(tmp_path: Path, text: str):
    with pytest.raises(InvalidSettingsError) as caught:
        secret_token(text, "the file")
    assert not text.strip() or text.strip() not in f"{caught.value} {caught.value.hint}"
    if text.strip():
        with pytest.raises(InvalidSettingsError, match="HF_TOKEN"):
            credentials(tmp_path, environ={"HF_TOKEN": text}).find(HUB)


def test_a_secret_does_not_show(tmp_path: Path):
    found = credentials(tmp_path, environ=HUSH).find(HUB)
    kept = credentials(tmp_path).keep(HUB, Secret("hush"))
    for thing in (Secret("hush"), found, kept):
        assert "hush" not in f"{thing!r} {thing} {[thing]}"
    with pytest.raises(TypeError):
        pickle.dumps(Secret("hush"))


@pytest.mark.parametrize(
    ("address", "origin"),
    [
        ("HTTPS://Hub.Example:443/models?x#y", "https://hub.example"),
        ("http://127.0.0.1:80", "http://127.0.0.1"),
        ("https://user:password@hub.example:8443", "https://hub.example:8443"),
        ("http://[::1]:8080/x", "http://[::1]:8080"),
    ],
)
def test_an_address_belongs_to_scheme_host_and_port(address: str, origin: str):
    assert origin_of(address) == origin


@pytest.mark.parametrize("address", ["hub.example", "ftp://x", "https://", "https://h:99999", ""])
def test_what_is_no_address_is_refused(address: str):
    with pytest.raises(InvalidSettingsError, match="no address"):
        origin_of(address)


def test_looking_for_a_keyring_does_not_fail():
    keyring = system_keyring()
    assert keyring is None or callable(keyring.get_password)
