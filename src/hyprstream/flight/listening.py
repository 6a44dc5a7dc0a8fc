"""Where a service may listen, and how it proves who it is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyprstream.errors import InvalidSettingsError
from hyprstream.refs import is_loopback


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How the service proves who it is, and clients who they are.

    Attributes:
        certificate: File with its certificate chain, PEM.
        key: File with its private key, PEM.
        client_ca: File with the authorities of clients; None asks clients for no certificate.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


def check_guarded(host: str, *, has_keys: bool, has_tls: bool) -> None:
    """Refuse an address beyond this machine without keys, or in the clear.

    Raises:
        InvalidSettingsError: Others could reach it without a key, or overhear them.
    """
    if not is_loopback(host) and not (has_keys and has_tls):
        raise InvalidSettingsError(
            f"{host} can be reached by others: Flight needs keys and TLS there",
            hint="Listen on 127.0.0.1, or set both up.",
        )


def tls_options(tls: Tls | None) -> dict[str, Any]:
    """Return what pyarrow takes for it.

    Raises:
        InvalidSettingsError: A file cannot be read.
    """
    if tls is None:
        return {}
    options: dict[str, Any] = {
        "tls_certificates": [(_read(tls.certificate), _read(tls.key))],
        "verify_client": tls.client_ca is not None,
    }
    if tls.client_ca is not None:
        options["root_certificates"] = _read(tls.client_ca)
    return options


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidSettingsError(f"{file} cannot be read: {error.strerror}") from error
