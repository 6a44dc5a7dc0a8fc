"""What a failure of the Hub's client means to the user."""

from collections.abc import Callable
from dataclasses import dataclass

from hyprstream.catalog.hub.process import HubFailureError
from hyprstream.errors import (
    AuthenticationError,
    HyprstreamError,
    ModelAccessDeniedError,
    ModelNotFoundError,
    RateLimitedError,
    RegistryAnswerError,
    RegistryUnreachableError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was asked for when it failed.

    Attributes:
        what: For messages.
        page: Where a person sees the model.
        login: The command that logs in.
        has_token: The Hub was shown a token.
    """

    what: str
    page: str
    login: str
    has_token: bool


def to_error(failure: HubFailureError, asked: Asked) -> HyprstreamError:
    """Turn a failure into the error that a user can act on."""
    by_kind: dict[str, Callable[[HubFailureError, Asked], HyprstreamError]] = {
        "gated": _gated,
        "no model": _no_model,
        "no revision": _no_revision,
        "status": _by_status,
        "unreachable": _unreachable,
        "silent": _unreachable,
    }
    return by_kind.get(failure.kind, _strange)(failure, asked)


def _gated(failure: HubFailureError, asked: Asked) -> HyprstreamError:  # noqa: ARG001 - as all
    if asked.has_token:
        return ModelAccessDeniedError(
            f"{asked.what} is gated, and the account of the token in use has no access",
            hint=f"Accept its conditions at {asked.page} with that account; some owners take "
            "days to answer.",
        )
    return AuthenticationError(
        f"{asked.what} is gated: its owner wants to know who fetches it",
        hint=f"Accept its conditions at {asked.page}, then log in with `{asked.login}`.",
    )


def _no_model(failure: HubFailureError, asked: Asked) -> HyprstreamError:
    if failure.status == 401 and not asked.has_token:  # the same for absent and for private
        return ModelNotFoundError(
            f"the Hub shows no {asked.what}: there is none, or it is private",
            hint=f"Look at {asked.page}; if it is private, log in with `{asked.login}`.",
        )
    return ModelNotFoundError(
        f"the Hub has no {asked.what} that the account of the token in use may see",
        hint=f"Look at {asked.page}, or search with `hyprstream model search`.",
    )


def _no_revision(failure: HubFailureError, asked: Asked) -> HyprstreamError:  # noqa: ARG001
    return ModelNotFoundError(
        f"the Hub has the model, but no such revision: {asked.what}",
        hint=f"Write a branch, a git tag or a commit that {asked.page} shows.",
    )


def _by_status(failure: HubFailureError, asked: Asked) -> HyprstreamError:
    said = f"status {failure.status}, {failure.reason!r}"
    if failure.status == 401:
        return AuthenticationError(
            f"the Hub does not believe the token in use ({said})",
            hint=f"Make a new one and log in with `{asked.login}`; `hyprstream auth status` "
            "says where the present one lies.",
        )
    if failure.status == 403:
        return ModelAccessDeniedError(
            f"the token in use does not allow {asked.what} ({said})",
            hint="Give the token the right to read it, in the settings of the account.",
        )
    if failure.status == 429:
        return RateLimitedError(
            f"the Hub was asked too often, last for {asked.what}",
            retry_after_s=failure.retry_after_s,
        )
    if failure.status is not None and failure.status >= 500:
        return RegistryUnreachableError(
            f"the Hub fails, asked for {asked.what} ({said})",
            hint="Try again later; https://status.huggingface.co tells what is wrong.",
        )
    return _strange(failure, asked)


def _unreachable(failure: HubFailureError, asked: Asked) -> HyprstreamError:
    return RegistryUnreachableError(
        f"the Hub did not answer, or went away, asked for {asked.what}: {failure.reason}",
        hint="Try again, it goes on where it ended; look at the network, HF_ENDPOINT and proxies.",
    )


def _strange(failure: HubFailureError, asked: Asked) -> HyprstreamError:
    return RegistryAnswerError(
        f"the Hub's answer about {asked.what} makes no sense: {failure.reason!r}",
        hint="Look whether HF_ENDPOINT leads to a Hugging Face Hub.",
    )
