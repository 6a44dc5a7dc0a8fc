"""Who the user is to registries: one token per provider, kept where only the user can read it.

A token is looked for in the environment, then in the system's keyring where there is one, then
in a file of mode 0600, then where the provider's own tools keep theirs. One that was kept here
is bound to the address that it was given for and is not found for another one.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast, runtime_checkable
from urllib.parse import urlsplit

from hyprstream.catalog.token_file import TOKEN, Entry, TokenFile
from hyprstream.errors import InvalidSettingsError
from hyprstream.refs import is_loopback

log = logging.getLogger(__name__)

_SERVICE = "hyprstream"
_MAX_FOREIGN_BYTES = 8192
_PORTS = {"http": 80, "https": 443}


class Secret:
    """A text that no message, log or traceback shows by accident."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the text, for the one place that sends it."""
        return self._value

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # typing has it since 3.12
        return "Secret(...)"

    def __reduce__(self) -> str:  # type: ignore[explicit-override]  # typing has it since 3.12
        """Refuse to be written as an object."""
        raise TypeError("a secret is not pickled")


def secret_token(text: str, where: str) -> Secret:
    """Read a token as somebody gave it.

    Raises:
        InvalidSettingsError: It is empty, or has characters that no token has. The message
            does not show it.
    """
    token = text.strip()
    if not TOKEN.fullmatch(token):
        raise InvalidSettingsError(
            f"{where} holds no token: a token is one word without blanks and accents",
            hint="Copy the token again, from its first to its last character.",
        )
    return Secret(token)


def origin_of(address: str) -> str:
    """Return whom an address belongs to: scheme, host and port, written one way.

    Raises:
        InvalidSettingsError: It is no address of the web.

    Example:
        >>> origin_of("HTTPS://Hub.example:443/models")
        'https://hub.example'
    """
    try:
        parts = urlsplit(address)
        port = parts.port if parts.port != _PORTS.get(parts.scheme) else None
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise InvalidSettingsError(
            f"{address!r} is no address of a registry", hint="Write it as https://HOST."
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """Somebody who asks for tokens.

    Attributes:
        name: What people call it: the scheme of its references.
        address: Where it is; its tokens go there and nowhere else.
        variables: Of the environment, that may hold a token; the first that does counts.
        files: Where the provider's own tools keep a token.
        page: Where a person makes a token; "" if that is not known.
    """

    name: str
    address: str
    variables: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    page: str = ""

    @property
    def is_private(self) -> bool:
        """Tell whether nobody on the way can read what is sent there."""
        scheme, _, host = origin_of(self.address).partition("://")
        return scheme == "https" or is_loopback(host)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A token that was found.

    Attributes:
        provider: Whom it is for.
        secret: The token.
        place: Where it lies, for people.
        removable: `Credentials.forget` removes it; one of another program stays.
    """

    provider: Provider
    secret: Secret
    place: str
    removable: bool


@runtime_checkable
class Keyring(Protocol):
    """What a backend of the library `keyring` offers."""

    def get_password(self, service: str, username: str) -> str | None:
        """Look a password up."""
        ...

    def set_password(self, service: str, username: str, password: str) -> None:
        """Keep a password."""
        ...

    def delete_password(self, service: str, username: str) -> None:
        """Forget a password."""
        ...


def system_keyring() -> Keyring | None:
    """Find the system's keyring; None without the library, or without a service behind it."""
    try:
        return cast("Keyring", import_module("keyring").get_keyring())
    except Exception:  # noqa: BLE001 - backends of many systems, each fails in its own way
        return None


class Credentials:
    """The tokens of one user.

    Args:
        folder: For the file that is used where there is no keyring.
        environ: The environment, which comes first.
        keyring: Finds the system's, when it is needed; None keeps tokens in the file.
    """

    def __init__(
        self, folder: Path, *, environ: Mapping[str, str], keyring: Callable[[], Keyring | None]
    ) -> None:
        self._file = TokenFile(folder)
        self._environ = environ
        self._keyring = keyring

    def find(self, provider: Provider) -> Credential | None:
        """Look for the token of a provider at its present address.

        Returns:
            The token; None if there is none, or if it could be read on its way there.

        Raises:
            InvalidSettingsError: A place holds something that is no token, or is open to others.
        """
        found = self._find(provider)
        if found is not None and not provider.is_private:
            log.warning(
                "the token of %s is not sent to %s, which is not encrypted",
                provider.name,
                origin_of(provider.address),
            )
            return None
        return found

    def _find(self, provider: Provider) -> Credential | None:
        for variable in provider.variables:
            if value := self._environ.get(variable, "").strip():
                return _credential(provider, secret_token(value, variable), variable)
        origin = origin_of(provider.address)
        if token := self._from_keyring(provider):
            secret = secret_token(token, "the system's keyring")
            return _credential(provider, secret, "the system's keyring", removable=True)
        for entry in self._file.read():
            if (entry.provider, entry.origin) == (provider.name, origin):
                secret = Secret(entry.token)
                return _credential(provider, secret, str(self._file.path), removable=True)
        for file in provider.files:
            if text := _foreign(file):
                return _credential(provider, secret_token(text, str(file)), str(file))
        return None

    def keep(self, provider: Provider, secret: Secret) -> Credential:
        """Keep a token in the keyring, or else in the file, in place of an earlier one.

        Raises:
            InvalidSettingsError: The file is open to others, or cannot be read or written; or
                the token could be read on its way to the provider.
        """
        if not provider.is_private:
            raise InvalidSettingsError(
                f"{provider.address} is not encrypted: whoever is on the way could read the token",
                hint="Use an address that begins with https://.",
            )
        origin, place = origin_of(provider.address), "the system's keyring"
        in_keyring = self._put_in_keyring(provider, secret)
        with self._file.changing() as tokens:
            mine = (provider.name, origin)
            tokens[:] = [entry for entry in tokens if (entry.provider, entry.origin) != mine]
            if not in_keyring:
                place = str(self._file.path)
                token = secret.reveal()
                tokens.append(Entry(provider=provider.name, origin=origin, token=token))
        return _credential(provider, secret, place, removable=True)

    def forget(self, provider: Provider) -> bool:
        """Remove what `keep` kept, from the file for every address that it was for.

        Returns:
            Whether there was anything.
        """
        keyring = self._keyring()
        found = self._from_keyring(provider) is not None
        if found and keyring is not None:
            keyring.delete_password(_SERVICE, _username(provider))
        with self._file.changing() as tokens:
            kept = [entry for entry in tokens if entry.provider != provider.name]
            found |= len(kept) < len(tokens)
            tokens[:] = kept
        return found

    def _from_keyring(self, provider: Provider) -> str | None:
        keyring = self._keyring()
        if keyring is None:
            return None
        try:
            return keyring.get_password(_SERVICE, _username(provider))
        except Exception as error:  # noqa: BLE001 - of whatever service is behind it
            log.debug("the system's keyring failed: %s", type(error).__name__)
            return None

    def _put_in_keyring(self, provider: Provider, secret: Secret) -> bool:
        """Tell whether the keyring has it now: some take everything and keep nothing."""
        keyring = self._keyring()
        if keyring is None:
            return False
        try:
            keyring.set_password(_SERVICE, _username(provider), secret.reveal())
        except Exception as error:  # noqa: BLE001 - of whatever service is behind it
            log.debug("the system's keyring failed: %s", type(error).__name__)
            return False
        return self._from_keyring(provider) == secret.reveal()


def _foreign(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return stream.read(_MAX_FOREIGN_BYTES).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _username(provider: Provider) -> str:
    return f"{provider.name} {origin_of(provider.address)}"


def _credential(
    provider: Provider, secret: Secret, place: str, *, removable: bool = False
) -> Credential:
    return Credential(provider=provider, secret=secret, place=place, removable=removable)
