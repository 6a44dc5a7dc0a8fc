"""Who the user is to registries: logs in, looks and logs out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hyprstream.catalog.catalog import Catalog
from hyprstream.catalog.credentials import Credential, Credentials, Provider, secret_token
from hyprstream.catalog.providers import ALIASES
from hyprstream.errors import (
    AuthenticationError,
    InvalidInputError,
    InvalidRequestError,
    UnavailableError,
)
from hyprstream.runtime.models import known_providers, open_catalog, open_credentials
from hyprstream.runtime.settings import Settings

AccountState = Literal["valid", "invalid", "unchecked", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """How the user stands with one provider; holds no token.

    Attributes:
        provider: Its name.
        address: Where its tokens go.
        state: `valid` was accepted just now, `invalid` was refused, `unchecked` could not be
            asked about, `none` is no token.
        name: Whose the token is, if the provider said so.
        place: Where the token lies.
        problem: Why it is invalid or unchecked; None where there is no reason.
    """

    provider: str
    address: str
    state: AccountState
    name: str | None = None
    place: str | None = None
    problem: str | None = None


class Accounts:
    """The user's accounts with the registries that have any.

    Args:
        catalog: Asks registries whose a token is.
        credentials: The tokens.
        known: Who asks for tokens, by name.
    """

    def __init__(
        self, catalog: Catalog, credentials: Credentials, known: Mapping[str, Provider]
    ) -> None:
        self._catalog = catalog
        self._credentials = credentials
        self._known = known

    def providers(self) -> tuple[Provider, ...]:
        """List who asks for tokens."""
        return tuple(self._known.values())

    def provider(self, name: str) -> Provider:
        """Find who asks for tokens by that name.

        Raises:
            InvalidRequestError: Nobody does.
        """
        provider = self._known.get(ALIASES.get(name, name))
        if provider is None:
            raise InvalidRequestError(
                f"{name!r} is nobody to log in to",
                hint=f"Known are: {', '.join(self._known)}; other registries take no token here.",
            )
        return provider

    def login(self, name: str, token: str) -> Account:
        """Let the provider check a token, and keep it.

        Args:
            name: The provider.
            token: The token.

        Returns:
            Whose it is, and where it lies now. `in_use` may name another place: what the
            environment says comes first.

        Raises:
            AuthenticationError: The provider does not know it; an earlier one stays.
            UnavailableError: The provider cannot be asked.
            InvalidSettingsError: It is no token, or cannot be kept.
        """
        provider, secret = self.provider(name), secret_token(token, "what was given")
        owner = self._catalog.whoami(provider.name, secret.reveal())
        kept = self._credentials.keep(provider, secret)
        return _account(kept, "unchecked" if owner is None else "valid", name=owner)

    def in_use(self, name: str) -> str | None:
        """Name the place that the token of a provider is taken from; None if there is none."""
        found = self._credentials.find(self.provider(name))
        return None if found is None else found.place

    def status(self) -> tuple[Account, ...]:
        """Look at every token and ask its provider about it."""
        return tuple(self._status(provider) for provider in self._known.values())

    def logout(self, name: str) -> bool:
        """Forget what `login` kept; whether there was anything."""
        return self._credentials.forget(self.provider(name))

    def _status(self, provider: Provider) -> Account:
        try:
            found = self._credentials.find(provider)
        except InvalidInputError as error:
            return Account(
                provider=provider.name,
                address=provider.address,
                state="invalid",
                problem=str(error),
            )
        if found is None:
            return Account(provider=provider.name, address=provider.address, state="none")
        try:
            owner = self._catalog.whoami(provider.name, found.secret.reveal())
        except AuthenticationError as error:
            return _account(found, "invalid", problem=str(error))
        except UnavailableError as error:
            return _account(found, "unchecked", problem=str(error))
        return _account(found, "unchecked" if owner is None else "valid", name=owner)


def open_accounts(settings: Settings) -> Accounts:
    """Open the user's accounts; nothing is created until somebody logs in."""
    known = known_providers(settings)
    return Accounts(open_catalog(settings), open_credentials(settings), known)


def _account(
    found: Credential, state: AccountState, *, name: str | None = None, problem: str | None = None
) -> Account:
    return Account(
        provider=found.provider.name,
        address=found.provider.address,
        state=state,
        name=name,
        place=found.place,
        problem=problem,
    )
