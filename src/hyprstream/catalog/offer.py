"""What registries say about themselves and about what they have. Plain data."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from hyprstream.refs import ModelRef

RegistryState = Literal["ready", "unchecked", "offline", "unreachable", "unauthorized"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A model that a registry has.

    Attributes:
        ref: How to name it.
        description: What it is, in the registry's words; may be empty.
        size_bytes: Length of its files together; None where the registry does not say.
        downloads: How often it was fetched, as the registry counts.
        updated_at: When it last changed.
    """

    ref: ModelRef
    description: str = ""
    size_bytes: int | None = None
    downloads: int | None = None
    updated_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryStatus:
    """How it stands with a registry.

    Attributes:
        scheme: The scheme of its references.
        address: Where it is, for people.
        state: `ready` answered just now, `unchecked` is of a kind that cannot be asked,
            `offline` was not asked because the settings forbid the network, `unreachable`
            did not answer, `unauthorized` does not accept the credential.
        authenticated: A credential is sent along.
        problem: Why it is not ready; None if it is.
    """

    scheme: str
    address: str
    state: RegistryState
    authenticated: bool = False
    problem: str | None = None
