"""Looks into all registries at once; what one of them fails at is reported beside the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from hyprstream.catalog.asking import ask_all
from hyprstream.catalog.catalog import Catalog
from hyprstream.catalog.offer import Offer, RegistryStatus
from hyprstream.errors import HyprstreamError, UnsupportedError

_LIMIT_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A registry that gave no answer.

    Attributes:
        scheme: The scheme of its references.
        error: Why.
    """

    scheme: str
    error: HyprstreamError


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What registries have.

    Attributes:
        offers: Models, those of one registry together and in its order.
        failures: The registries that gave no answer. Such as cannot be searched at all are
            not among them.
    """

    offers: tuple[Offer, ...]
    failures: tuple[Failure, ...]


def search_models(
    catalog: Catalog,
    text: str,
    *,
    registry: str | None = None,
    limit: int = 20,
    limit_s: float = _LIMIT_S,
) -> Found:
    """Look for models by words.

    Args:
        catalog: Whose registries to ask.
        text: What to look for; "" for whatever a registry shows first.
        registry: The scheme of the only one to ask.
        limit: Most models to return; registries that have some share the room.
        limit_s: How long to wait for all of them together.

    Raises:
        UnsupportedRegistryError: There is no such registry.
        UnsupportedError: The only registry to ask cannot be searched.
        HyprstreamError: The only registry to ask gave no answer; says why.
    """
    if registry is not None:
        answers, failures = ask_all(
            {registry: partial(catalog.search, registry, text, limit=limit)}, limit_s=limit_s
        )
        for error in failures.values():
            raise error
        return Found(offers=_shared(answers, limit), failures=())
    answers, failures = ask_all(
        {scheme: partial(catalog.search, scheme, text, limit=limit) for scheme in catalog.schemes},
        limit_s=limit_s,
    )
    return Found(
        offers=_shared(answers, limit),
        failures=tuple(
            Failure(scheme=scheme, error=error)
            for scheme, error in failures.items()
            if not isinstance(error, UnsupportedError)
        ),
    )


def registry_statuses(catalog: Catalog, *, limit_s: float = _LIMIT_S) -> tuple[RegistryStatus, ...]:
    """Say how it stands with every registry; one that is silent for too long is unreachable."""
    statuses, failures = ask_all(
        {scheme: partial(catalog.status, scheme) for scheme in catalog.schemes}, limit_s=limit_s
    )
    silent = {
        scheme: RegistryStatus(
            scheme=scheme,
            address=catalog.address(scheme),
            state="unreachable",
            problem=str(error),
        )
        for scheme, error in failures.items()
    }
    return tuple((statuses | silent)[scheme] for scheme in catalog.schemes)


def _shared(answers: Mapping[str, Sequence[Offer]], limit: int) -> tuple[Offer, ...]:
    """Take from each in turn until there are enough; those of one registry stay together."""
    shares = dict.fromkeys(answers, 0)
    left = limit
    while left > 0 and (open_ := [name for name in answers if shares[name] < len(answers[name])]):
        for name in open_[:left]:
            shares[name] += 1
        left -= len(open_[:left])
    return tuple(offer for name, share in shares.items() for offer in answers[name][:share])
