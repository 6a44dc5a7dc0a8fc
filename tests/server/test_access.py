"""Who is let in, and how often."""

import pytest

from hyprstream.runtime.keys import EVERYTHING, Grant
from hyprstream.server.access import Guard, Route
from hyprstream.server.errors import ApiError


def endpoint() -> None:
    """Answer nothing."""


ROUTES = (
    Route(method="GET", path="/health", endpoint=endpoint, needs="open"),
    Route(method="GET", path="/v1/models/{model:path}", endpoint=endpoint, needs="inference"),
    Route(method="DELETE", path="/v1/models/{model:path}", endpoint=endpoint, needs="admin"),
)
KEY = Grant(id="k", scopes=frozenset({"inference"}))


class FakeClock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_guard(max_concurrent=2, max_per_minute=0, clock=None) -> Guard:
    return Guard(
        ROUTES,
        None,
        max_concurrent=max_concurrent,
        max_per_minute=max_per_minute,
        clock=clock or FakeClock(),
    )


def test_routes_are_found_by_method_and_whole_path():
    guard = make_guard()
    assert guard.route("GET", "/health") is ROUTES[0]
    assert guard.route("GET", "/v1/models/a/b") is ROUTES[1]
    assert guard.route("DELETE", "/v1/models/a") is ROUTES[2]
    for method, path in (
        ("POST", "/health"), ("GET", "/health/"), ("GET", "/health/x"), ("GET", "/v1/models"),
        ("GET", "//health"), ("GET", "/HEALTH"), ("get", "/health"),
    ):  # fmt: skip
        assert guard.route(method, path) is None


def test_without_keys_everybody_of_this_machine_may_do_everything():
    guard = make_guard()
    assert guard.admit(ROUTES[2], "") == EVERYTHING
    assert guard.admit(None, "") == EVERYTHING


def test_requests_of_a_key_at_a_time_are_bounded():
    guard = make_guard(max_concurrent=2)
    other = Grant(id="other", scopes=frozenset())
    guard.enter(KEY)
    guard.enter(KEY)
    with pytest.raises(ApiError) as caught:
        guard.enter(KEY)
    assert caught.value.status_code == 429
    guard.enter(other)
    guard.leave(KEY)
    guard.enter(KEY)


def test_requests_of_a_key_in_a_minute_are_bounded():
    clock = FakeClock()
    guard = make_guard(max_concurrent=100, max_per_minute=6, clock=clock)
    for _ in range(6):
        guard.enter(KEY)
    with pytest.raises(ApiError) as caught:
        guard.enter(KEY)
    assert caught.value.status_code == 429
    assert caught.value.headers == {"Retry-After": "10"}
    clock.now += 10
    guard.enter(KEY)
    with pytest.raises(ApiError):
        guard.enter(KEY)
    clock.now += 1000
    for _ in range(6):
        guard.enter(KEY)
    with pytest.raises(ApiError):
        guard.enter(KEY)
