import pytest

from hyprstream.catalog.hub.failures import Asked, to_error
from hyprstream.catalog.hub.process import HubFailureError
from hyprstream.errors import (
    AuthenticationError,
    ModelAccessDeniedError,
    ModelNotFoundError,
    RateLimitedError,
    RegistryAnswerError,
    RegistryUnreachableError,
)

PAGE = "https://hub.example/org/x"
LOGIN = "hyprstream auth login --provider hf"


@pytest.mark.parametrize(
    ("kind", "status", "has_token", "error", "hint"),
    [
        ("gated", 401, False, AuthenticationError, LOGIN),
        ("gated", 403, True, ModelAccessDeniedError, PAGE),
        ("no model", 401, False, ModelNotFoundError, LOGIN),
        ("no model", 404, True, ModelNotFoundError, PAGE),
        ("no revision", 404, False, ModelNotFoundError, PAGE),
        ("status", 401, True, AuthenticationError, "auth status"),
        ("status", 403, True, ModelAccessDeniedError, "right to read"),
        ("status", 429, False, RateLimitedError, "in 7 seconds"),
        ("status", 500, False, RegistryUnreachableError, "later"),
        ("status", 503, True, RegistryUnreachableError, "later"),
        ("status", 418, False, RegistryAnswerError, "HF_ENDPOINT"),
        ("unreachable", None, False, RegistryUnreachableError, "goes on where it ended"),
        ("silent", None, False, RegistryUnreachableError, "proxies"),
        ("no file", 404, False, RegistryAnswerError, "HF_ENDPOINT"),
        ("strange", None, False, RegistryAnswerError, "HF_ENDPOINT"),
    ],
)
def test_each_failure_is_an_error_with_the_next_step(kind, status, has_token, error, hint):
    failure = HubFailureError(kind, "because", status=status, retry_after_s=7.0)
    asked = Asked(what="hf://org/x", page=PAGE, login=LOGIN, has_token=has_token)
    found = to_error(failure, asked)
    assert type(found) is error
    assert "hf://org/x" in str(found) or "token in use" in str(found)
    assert hint in found.hint
