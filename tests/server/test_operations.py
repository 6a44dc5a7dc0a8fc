"""What an operator does to a server that runs: reads its log, changes settings, looks at traces."""

import ast
import asyncio
import json
import logging
import shutil
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from typing_extensions import override

from hyprstream.errors import InvalidSettingsError
from hyprstream.runtime.retention_config import RetentionConfig
from hyprstream.runtime.runtime import Runtime
from hyprstream.runtime.server_config import ServerConfig
from hyprstream.runtime.settings import Settings
from hyprstream.server.app import build_app
from hyprstream.server.live import CHANGEABLE, LiveConfig
from hyprstream.server.logs import JsonLines
from hyprstream.server.tracing import open_tracing
from tests.server.process import SRC, ServerProcess

WORDS = "a purple walrus that nobody else knows"
CHAT = {"model": "poet", "messages": [{"role": "user", "content": WORDS}], "max_tokens": 4}


def test_settings_are_read_again_and_those_of_the_start_wait(tmp_path):
    before = Settings(home=tmp_path, server=ServerConfig(port=1, max_answers=3))
    found = [before]
    live = LiveConfig(before, lambda: found[0])
    seen: list[int] = []
    live.listen(lambda settings: seen.append(settings.server.max_concurrent))
    assert live.reload().changed == ()
    retention = RetentionConfig(max_age_days=1)
    train = before.train.__class__(retention=retention, max_share=0.1)
    server = ServerConfig(port=2, max_answers=9, max_concurrent=7, model_name="x")
    found[0] = before.model_copy(update={"server": server, "train": train})
    done = live.reload()
    changed = ["server.model_name", "server.max_answers", "server.max_concurrent",
               "train.retention"]  # fmt: skip
    assert sorted(done.changed) == sorted(changed)
    assert set(done.waiting) == {"server.port", "train"}
    assert (live.current.port, live.current.max_answers) == (1, 9)
    assert seen == [256, 256, 7]
    # What waits is told again; what was changed is not.
    again = live.reload()
    assert (again.changed, set(again.waiting)) == ((), {"server.port", "train"})


def test_settings_that_cannot_be_used_change_nothing(tmp_path, caplog):
    def load() -> Settings:
        raise InvalidSettingsError("setting server.port: no", hint="Correct it.")

    live = LiveConfig(Settings(home=tmp_path), load)
    with pytest.raises(InvalidSettingsError):
        live.reload()
    live.reload_and_tell()
    assert "the settings in force stay" in caplog.text
    assert live.current == ServerConfig()


def test_what_may_change_is_documented():
    page = (SRC.parent / "docs" / "how-to" / "deploy.md").read_text()
    missing = [name for name in CHANGEABLE if f"`{name}`" not in page]
    assert not missing


def test_lines_of_json_tell_of_errors_without_what_they_say():
    lines: list[str] = []
    handler = logging.Handler()
    handler.setFormatter(JsonLines())
    handler.emit = lambda record: lines.append(handler.format(record))  # type: ignore[method-assign]
    log = logging.getLogger("tests.lines")
    log.addHandler(handler)
    log.error("a file /home/someone/secret.txt is\nmissing", extra={"request_id": "r1"})
    try:
        ServerConfig(port=-777)
    except InvalidSettingsError:
        log.exception("it failed")
    log.removeHandler(handler)
    first, second = map(json.loads, lines)
    assert first["message"] == "a file [path] is\nmissing"
    assert (first["level"], first["request_id"]) == ("error", "r1")
    assert second["error"] == "InvalidSettingsError"
    assert second["raised_at"].startswith("runtime/server_config.py:")
    assert "777" not in lines[1]


async def traced(model, home, headers) -> tuple[httpx.Response, InMemorySpanExporter]:
    settings = Settings(home=home)
    exporter = InMemorySpanExporter()
    tracing = open_tracing(settings.server, exporter)
    assert tracing is not None
    async with Runtime(model, settings) as runtime:
        app = build_app(runtime, None, tracing=tracing)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
            await client.post("/v1/chat/completions", json={**CHAT, "stream": True, "n": 2})
            await client.get("/nothing")
    await asyncio.to_thread(tracing.close)
    return answer, exporter


def test_a_request_is_traced_from_its_wait_to_its_last_token(home, tmp_path):
    folder, model = home
    alone = tmp_path / "traced"
    shutil.copytree(folder, alone, ignore=shutil.ignore_patterns("keys", "learning", "model"))
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace}-{parent}-01", "X-Request-ID": "mine"}
    answer, exporter = asyncio.run(traced(model, alone, headers))
    assert answer.status_code == 200
    spans = exporter.get_finished_spans()
    [request] = [span for span in spans if span.context.trace_id == int(trace, 16)
                 and span.name == "/v1/chat/completions"]  # fmt: skip
    assert request.parent is not None
    assert request.parent.span_id == int(parent, 16)
    assert request.attributes is not None
    assert request.attributes["hyprstream.request_id"] == "mine"
    assert request.attributes["http.response.status_code"] == 200
    inner = {span.name: span for span in spans if span.parent
             and span.parent.span_id == request.context.span_id}  # fmt: skip
    assert inner.keys() == {"queue", "prefill", "decode"}
    times: list[Any] = [request.start_time, inner["queue"].start_time, inner["queue"].end_time,
             inner["prefill"].end_time, inner["decode"].end_time]  # fmt: skip
    assert times == sorted(times)
    assert inner["prefill"].start_time == inner["queue"].end_time
    assert inner["decode"].start_time == inner["prefill"].end_time
    usage = answer.json()["usage"]
    prefill, decode = (dict(inner[name].attributes or {}) for name in ("prefill", "decode"))
    assert prefill["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert decode["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert decode["hyprstream.adapter"] == "poet"
    names = [span.name for span in spans]
    assert (names.count("queue"), names.count("none")) == (
        2,
        1,
    )  # of a stream as well; of a 404 not
    assert "walrus" not in "".join(span.to_json() for span in spans)


def test_nothing_of_opentelemetry_is_imported_with_the_module():
    # Its functions import it, once traces are wanted; import-linter keeps it out of all others.
    tree = ast.parse((SRC / "hyprstream" / "server" / "tracing.py").read_text())
    imported = [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    imported += [name.name for node in tree.body if isinstance(node, ast.Import)
                 for name in node.names]  # fmt: skip
    assert imported
    assert not [name for name in imported if name.startswith("opentelemetry")]
    assert open_tracing(ServerConfig()) is None


@pytest.fixture
def collector():
    """What takes in spans on loopback, as OTLP over HTTP."""
    names: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            sent = ExportTraceServiceRequest.FromString(content)
            names.extend(span.name for resource in sent.resource_spans
                         for scope in resource.scope_spans for span in scope.spans)  # fmt: skip
            self.send_response(200)
            self.end_headers()

        @override
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", names
        server.shutdown()
        serving.join()


def test_an_operator_changes_settings_reads_the_log_and_gets_traces(home, tmp_path, collector):
    folder, _ = home
    endpoint, names = collector
    alone = tmp_path / "operated"
    shutil.copytree(folder, alone, ignore=shutil.ignore_patterns("keys", "learning"))
    file = tmp_path / "settings.toml"
    file.write_text("[server]\nmax_answers = 2\n")
    environment = {
        "HYPRSTREAM_CONFIG": str(file),
        "HYPRSTREAM_SERVER__LOG_FORMAT": "json",
        "HYPRSTREAM_SERVER__TRACE_ENDPOINT": endpoint,
        "HYPRSTREAM_API_KEY": "a key that is long enough",
    }
    with ServerProcess(alone, **environment) as server:
        with server.client("a key that is long enough") as client:
            chat = {**CHAT, "n": 3}
            assert client.post("/v1/chat/completions", json=chat).status_code == 400
            file.write_text("[server]\nmax_answers = 3\nport = 9\n")
            done = client.post("/v1/settings/reload").json()
            assert done == {"changed": ["server.max_answers"], "waiting": []}
            assert client.post("/v1/chat/completions", json=chat).status_code == 200
            file.write_text("[server]\nmax_answers = 'many'\n")
            refused = client.post("/v1/settings/reload")
            assert refused.status_code == 400
            assert "the settings in force stay" in refused.json()["error"]["message"]
            assert str(tmp_path) not in refused.text
            server.process.send_signal(signal.SIGHUP)
            wait_for(lambda: "cannot be used" in server.log)
            assert client.post("/v1/chat/completions", json=chat).status_code == 200
            file.write_text("[server]\nmax_answers = 1\n")
            server.process.send_signal(signal.SIGHUP)
            wait_for(lambda: "were read again" in server.log)
            assert client.post("/v1/chat/completions", json=chat).status_code == 400
            ids = {"X-Request-ID": "one-of-mine"}
            client.get("/v1/models", headers=ids).raise_for_status()
        assert server.end() == 0
        lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
        [mine] = [line for line in lines if line.get("request_id") == "one-of-mine"]
        assert (mine["route"], mine["status"], mine["method"]) == ("/v1/models", 200, "GET")
        assert mine["seconds"] >= 0
        for line in map(json.dumps, lines):
            for secret in (WORDS, "long enough", "Traceback", str(tmp_path)):
                assert secret not in line
        assert names.count("/v1/chat/completions") == 4
        assert names.count("decode") == 2


def wait_for(condition) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
