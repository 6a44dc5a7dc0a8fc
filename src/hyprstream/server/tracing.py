"""Traces of requests for OpenTelemetry: the request, its wait, its prompt, its answer.

Nothing of OpenTelemetry is imported unless traces are wanted: `pip install 'hyprstream[otel]'`.
Spans hold ids, names of adapters and counts, and nothing of what was said.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from hyprstream import __version__
from hyprstream.errors import UnsupportedError
from hyprstream.runtime.server_config import ServerConfig
from hyprstream.runtime.text_service import Answered

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger(__name__)

Over = Callable[[str, int], None]
"""Takes the route and the status of a request that is over."""


class Tracing:
    """Makes spans. What belongs to a request is found by the context that it runs in.

    Args:
        provider: Takes the spans.
    """

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation import tracecontext  # noqa: PLC0415 - an extra

        self._provider = provider
        self._tracer = provider.get_tracer("hyprstream", __version__)
        self._callers = tracecontext.TraceContextTextMapPropagator()

    @contextmanager
    def request(self, headers: Headers, request_id: str) -> Iterator[Over]:
        """Trace a request, within the trace that its caller names in `traceparent`."""
        from opentelemetry.trace import SpanKind, StatusCode  # noqa: PLC0415 - an extra

        with self._tracer.start_as_current_span(
            "request",
            context=self._callers.extract(dict(headers)),
            kind=SpanKind.SERVER,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:

            def over(route: str, status: int) -> None:
                span.update_name(route)
                span.set_attribute("http.route", route)
                span.set_attribute("http.response.status_code", status)
                span.set_attribute("hyprstream.request_id", request_id)
                if status >= 500:
                    span.set_status(StatusCode.ERROR)

            yield over

    def answered(self, answered: Answered) -> None:
        """Make the spans of an answer that is over, within its request's."""
        times = answered.times
        if times is None:
            return
        over = times.over_ns
        started = times.started_ns or over
        first = times.first_ns or over
        for name, begin, end in (
            ("queue", times.opened_ns, started),
            ("prefill", started, first),
            ("decode", first, over),
        ):
            if end <= begin and name != "queue":
                continue  # it did not get that far
            span = self._tracer.start_span(name, start_time=begin)
            if name == "prefill":
                span.set_attribute("gen_ai.usage.input_tokens", len(answered.prompt))
            if name == "decode":
                span.set_attribute("gen_ai.usage.output_tokens", len(answered.answer))
                span.set_attribute("hyprstream.outcome", answered.outcome)
            if answered.adapter is not None:
                span.set_attribute("hyprstream.adapter", answered.adapter)
            span.end(max(begin, end))

    def close(self) -> None:
        """Send what is left; waits for the network, within the exporter's timeout."""
        self._provider.shutdown()


def open_tracing(config: ServerConfig, exporter: "SpanExporter | None" = None) -> Tracing | None:
    """Return what traces requests; None where no traces are wanted.

    Args:
        config: Of the server.
        exporter: Where spans go; None sends them to `server.trace_endpoint`.

    Raises:
        UnsupportedError: Traces are wanted, and OpenTelemetry is not installed.
    """
    if not config.trace_endpoint and exporter is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - an extra
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.trace.sampling import (  # noqa: PLC0415 - an extra
            ParentBased,
            TraceIdRatioBased,
        )
    except ImportError as error:
        raise UnsupportedError(
            "server.trace_endpoint wants traces, and OpenTelemetry is not installed",
            hint="pip install 'hyprstream[otel]', or leave it empty.",
        ) from error
    about = {"service.name": "hyprstream", "service.version": __version__}
    provider = TracerProvider(
        resource=Resource.create(about),
        sampler=ParentBased(TraceIdRatioBased(config.trace_share)),
        shutdown_on_exit=False,
    )
    to = exporter or OTLPSpanExporter(endpoint=config.trace_endpoint)
    provider.add_span_processor(BatchSpanProcessor(to))
    return Tracing(provider)
