import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from hyprstream.catalog.asking import ask_all
from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.catalog import Catalog
from hyprstream.catalog.many import registry_statuses, search_models
from hyprstream.catalog.offer import Offer, RegistryStatus
from hyprstream.errors import (
    HyprstreamError,
    RegistryUnreachableError,
    UnsupportedError,
    UnsupportedRegistryError,
)
from hyprstream.refs import ModelRef

Answer = Callable[[], int] | HyprstreamError


class Several(Catalog):
    """A catalog whose registries offer so many models each, or fail as they are told to."""

    def __init__(self, answers: dict[str, Answer]) -> None:
        super().__init__(ModelCache(Path("/nowhere")), environ=os.environ)
        self.answers = answers

    @property
    @override
    def schemes(self) -> tuple[str, ...]:
        return tuple(sorted(self.answers))

    @override
    def search(self, scheme: str, text: str, *, limit: int) -> tuple[Offer, ...]:
        answer = self.answers[scheme]
        if isinstance(answer, HyprstreamError):
            raise answer
        return tuple(
            Offer(ref=ModelRef(scheme=scheme, name=f"{text}{number}"))
            for number in range(min(limit, answer()))
        )

    @override
    def status(self, scheme: str) -> RegistryStatus:
        self.search(scheme, "x", limit=1)
        return RegistryStatus(scheme=scheme, address="here", state="ready")


def _names(offers: Sequence[Offer]) -> list[str]:
    return [str(offer.ref) for offer in offers]


@pytest.fixture
def released():
    event = threading.Event()
    yield event
    event.set()


def _break() -> int:
    raise ZeroDivisionError("of nothing")


def test_one_that_fails_is_slow_or_has_a_bug_does_not_spoil_the_rest(released: threading.Event):
    def wait() -> int:
        released.wait(60)
        return 1

    unreachable = RegistryUnreachableError("no answer", hint="Wait.")
    unsearchable = UnsupportedError("cannot be searched")
    catalog = Several({"a": lambda: 2, "b": unreachable, "c": wait, "d": _break, "e": unsearchable})
    begun = time.monotonic()
    found = search_models(catalog, "x", limit_s=0.5)
    assert time.monotonic() - begun < 20
    assert _names(found.offers) == ["a://x0", "a://x1"]
    said = {failure.scheme: str(failure.error) for failure in found.failures}
    assert said == {
        "b": "no answer",
        "c": "c did not answer within 0.5 seconds",
        "d": "d failed: ZeroDivisionError: of nothing",
    }
    states = {status.scheme: status for status in registry_statuses(catalog, limit_s=0.5)}
    assert {scheme: status.state for scheme, status in states.items()} == {
        "a": "ready",
        **dict.fromkeys("bcde", "unreachable"),
    }
    assert states["b"].problem == "no answer"


def test_the_only_registry_that_is_asked_says_itself_what_is_wrong():
    catalog = Several({"a": UnsupportedError("cannot be searched"), "b": lambda: 1})
    with pytest.raises(UnsupportedError, match="cannot be searched"):
        search_models(catalog, "x", registry="a")
    assert _names(search_models(catalog, "x", registry="b").offers) == ["b://x0"]
    real = Catalog(ModelCache(Path("/nowhere")), environ={})
    with pytest.raises(UnsupportedRegistryError, match="'acme'"):
        search_models(real, "x", registry="acme")


@given(
    counts=st.dictionaries(st.sampled_from("abcd"), st.integers(0, 6), min_size=1),
    limit=st.integers(0, 12),
)
def test_registries_share_the_room_and_none_has_two_more_than_another_that_has_more(
    counts: dict[str, int], limit: int
):
    catalog = Several({name: partial(int, count) for name, count in counts.items()})
    offers = search_models(catalog, "x", limit=limit).offers
    assert len(offers) == min(limit, sum(min(limit, count) for count in counts.values()))
    schemes = [offer.ref.scheme for offer in offers]
    assert schemes == sorted(schemes)  # those of one registry together
    shares = {name: schemes.count(name) for name in counts}
    assert all(
        shares[name] >= max(shares.values()) - 1
        for name, count in counts.items()
        if shares[name] < count
    )


def test_nobody_to_ask_is_no_answer():
    assert ask_all({}, limit_s=1) == ({}, {})
