"""Proxies and certificate authorities, as the environment names them."""

import ssl
from collections.abc import Mapping
from ipaddress import ip_address

import certifi
import httpx

from hyprstream.errors import InvalidSettingsError


def certificates(environ: Mapping[str, str]) -> ssl.SSLContext:
    """Trust who `SSL_CERT_FILE` and `SSL_CERT_DIR` name, else those that certifi ships.

    Raises:
        InvalidSettingsError: They name nothing that can be read.
    """
    file, folder = environ.get("SSL_CERT_FILE"), environ.get("SSL_CERT_DIR")
    try:
        if file or folder:
            return ssl.create_default_context(cafile=file or None, capath=folder or None)
        return ssl.create_default_context(cafile=certifi.where())
    except OSError as error:
        raise InvalidSettingsError(
            f"the certificates of {file or folder} cannot be read: {error}",
            hint="Correct SSL_CERT_FILE or SSL_CERT_DIR.",
        ) from error


def proxy_mounts(
    environ: Mapping[str, str], context: ssl.SSLContext
) -> dict[str, httpx.BaseTransport | None]:
    """Read `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy`, in either case.

    Returns:
        What httpx calls mounts: patterns of addresses and what they go through.

    Raises:
        InvalidSettingsError: A proxy's address is none, or of a kind that is not supported.
    """
    mounts: dict[str, httpx.BaseTransport | None] = {}
    exempt = [host.strip() for host in _variable(environ, "no_proxy").split(",")]
    if "*" in exempt:
        return {}
    for scheme in ("http", "https", "all"):
        proxy = _variable(environ, f"{scheme}_proxy")
        if not proxy:
            continue
        try:
            address = httpx.URL(proxy if "://" in proxy else f"http://{proxy}")
            mounts[f"{scheme}://"] = httpx.HTTPTransport(
                proxy=httpx.Proxy(address), verify=context, trust_env=False
            )
        except (ValueError, httpx.InvalidURL, ImportError) as error:
            # The address may hold a password: only its name is shown.
            raise InvalidSettingsError(
                f"the proxy that {scheme}_proxy names cannot be used",
                hint="Write it as http://host:port; SOCKS is not supported.",
            ) from error
    if mounts:
        mounts |= {_pattern(host): None for host in exempt if host}
    return mounts


def _variable(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name) or environ.get(name.upper()) or ""


def _pattern(host: str) -> str:
    """Write an entry of `no_proxy` as httpx writes patterns: names mean their subdomains too."""
    if "://" in host:
        return host
    try:
        is_v6 = ip_address(host).version == 6
    except ValueError:
        return f"all://{host}" if host.lower() == "localhost" else f"all://*{host}"
    return f"all://[{host}]" if is_v6 else f"all://{host}"
