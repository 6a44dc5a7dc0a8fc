"""What servers and networks say instead of an answer, in our terms."""

import email.utils
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import httpx

from hyprstream.errors import (
    AuthenticationError,
    HyprstreamError,
    ModelAccessDeniedError,
    ModelNotFoundError,
    RateLimitedError,
    RegistryAnswerError,
    RegistryUnreachableError,
)


@contextmanager
def transport_errors(host: str, what: str) -> Iterator[None]:
    """Turn what httpx raises into errors that tell a user what to do.

    Args:
        host: Who was asked.
        what: What was asked for.

    Raises:
        RegistryUnreachableError: No answer, or not all of it.
        RegistryAnswerError: The address is none, or whoever answers is not who it should be.
    """
    try:
        yield
    except httpx.TimeoutException as error:
        raise RegistryUnreachableError(
            f"{host} was silent for too long while {what} was fetched",
            hint="Check the network; what has come so far is kept.",
        ) from error
    except httpx.TransportError as error:
        if _is_certificate_problem(error):
            raise RegistryAnswerError(
                f"the certificate of {host} is not to be trusted: {error}",
                hint="Check the address and the clock; SSL_CERT_FILE names other authorities.",
            ) from error
        raise RegistryUnreachableError(
            f"the connection to {host} failed while {what} was fetched: {error}",
            hint="Check the network and the proxy; what has come so far is kept.",
        ) from error
    except httpx.InvalidURL as error:
        raise RegistryAnswerError(f"the address of {what} is none: {error}") from error


def refusal(response: httpx.Response, what: str) -> HyprstreamError:
    """Say in our terms why there is no content."""
    status, host = response.status_code, response.url.host
    with_token = "Authorization" in response.request.headers
    if status in {401, 407}:
        return AuthenticationError(
            f"{host} does not accept the token that is sent for {what}"
            if with_token
            else f"{host} asks for a token for {what}",
            hint="Log in with `hyprstream auth login`, or check the name: "
            "some servers say this for what they do not have.",
            challenge=response.headers.get("WWW-Authenticate", ""),
        )
    if status == 403:
        return ModelAccessDeniedError(
            f"{host} does not let you have {what}",
            hint="Accept its terms in a browser, or ask its owner for access."
            if with_token
            else "Log in with `hyprstream auth login`, if you have access to it.",
        )
    if status in (404, 410):
        return ModelNotFoundError(f"{host} has no {what}", hint="Check the name.")
    retry_after_s = _retry_after(response)
    if status == 429 or (status == 503 and retry_after_s is not None):
        return RateLimitedError(
            f"{host} wants to be asked less often ({status} for {what})",
            retry_after_s=retry_after_s,
        )
    if status >= 500 or status == 408:
        return RegistryUnreachableError(
            f"{host} answers {status} for {what}", hint="Try again later."
        )
    return RegistryAnswerError(f"{host} answers {status} for {what}")


def _retry_after(response: httpx.Response) -> float | None:
    """Read Retry-After: seconds, or a date (RFC 9110, 10.2.3)."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text[:9])
    try:
        date = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _is_certificate_problem(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False
