"""What Prometheus reads. A registry for each server: two live in one process."""

import time
from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from hyprstream.server.observed import Moment, Observed

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_GAPS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)


class Metrics:
    """Counts requests, tokens and times.

    Args:
        num_requests: Requests that hold something of the engine.
        num_adapters: Adapter versions that requests use.
    """

    def __init__(self, *, num_requests: Callable[[], int], num_adapters: Callable[[], int]) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "hyprstream_http_requests",
            "Requests by route and status.",
            ["route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "hyprstream_http_request_seconds",
            "From the head of a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._first = Histogram(
            "hyprstream_time_to_first_token_seconds",
            "From a request to the first piece of its answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._gaps = Histogram(
            "hyprstream_inter_token_seconds",
            "Between two pieces of an answer that is streamed.",
            buckets=_GAPS,
            registry=registry,
        )
        self._prompt = Counter("hyprstream_prompt_tokens", "Tokens of prompts.", registry=registry)
        self._generated = Counter(
            "hyprstream_generation_tokens", "Tokens of answers.", registry=registry
        )
        self._rollbacks = Counter(
            "hyprstream_rollbacks",
            "Promotions that people undid; what learning undid is among its decisions.",
            registry=registry,
        )
        self._observed = Observed()
        registry.register(self._observed)
        running = Gauge(
            "hyprstream_num_requests",
            "Requests that wait or are being answered.",
            registry=registry,
        )
        running.set_function(num_requests)
        adapters = Gauge(
            "hyprstream_adapter_versions_in_use",
            "Adapter versions that answer now.",
            registry=registry,
        )
        adapters.set_function(num_adapters)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that is over."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def tokens(self, prompt: int, generated: int) -> None:
        """Count the tokens of a request that is over."""
        self._prompt.inc(prompt)
        self._generated.inc(generated)

    def watch(self) -> "Watch":
        """Start to measure an answer."""
        return Watch(self._first, self._gaps)

    def rolled_back(self) -> None:
        """Count a promotion that people undid."""
        self._rollbacks.inc()

    def page(self, moment: Moment) -> bytes:
        """Write all of it as Prometheus reads it, with what was seen at a moment."""
        self._observed.moment = moment
        return generate_latest(self._registry)


class Watch:
    """Measures the pieces of one answer."""

    def __init__(self, first: Histogram, gaps: Histogram) -> None:
        self._first = first
        self._gaps = gaps
        self._last = time.perf_counter()
        self._is_first = True

    def piece(self) -> None:
        """Take note that a piece came."""
        now = time.perf_counter()
        histogram, self._is_first = (self._first if self._is_first else self._gaps), False
        histogram.observe(now - self._last)
        self._last = now
