"""Who may do what, route by route, and what bad requests get."""

import json
import re
import socket

import pytest
from starlette.routing import Route as StarletteRoute

from hyprstream.server.app import ROUTES, build_routes
from hyprstream.server.schemas.chat import ChatRequest
from hyprstream.server.schemas.sampling import IGNORED
from tests.project.pages import DOCS

SCOPES = ("inference", "feedback", "admin")
OPEN = {"/health", "/", "/console/{name}"}
"""Whether the server is up, and the files of the page that asks for a key: no data."""


def filled(path: str) -> str:
    """A path with something in the place of its parameters: nothing that is there."""
    return re.sub(r"\{(\w+)(:\w+)?\}", "nobody", path)


def test_the_table_of_scopes_is_the_list_of_routes():
    app = build_routes()
    found = {
        (method, getattr(route, "path", ""))
        for route in app.routes
        if isinstance(route, StarletteRoute) or hasattr(route, "methods")
        for method in getattr(route, "methods", ())
    }
    assert len(found) >= len(ROUTES) > 10
    assert found == {(route.method, route.path) for route in ROUTES}
    assert len(app.routes) == len(ROUTES)
    assert {route.path for route in ROUTES if route.needs == "open"} == OPEN


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_each_route_admits_the_keys_of_its_scope_and_no_others(served, route):
    with served.client("") as client:

        def status(key: str) -> int:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            content = b"no json" if route.method != "GET" else None
            with client.stream(  # some answers never end
                route.method, filled(route.path), headers=headers, content=content
            ) as answer:
                if answer.status_code in (401, 403):
                    answer.read()
                    anthropic = route.error_form == "anthropic"
                    keys = {"message", "type"}
                    if not anthropic:
                        keys |= {"param", "code"}
                    assert set(answer.json()["error"]) == keys
                return answer.status_code

        if route.needs == "open":
            assert status("") == (404 if "{" in route.path else 200)
            return
        assert status("") == 401
        assert status("hs-" + "0" * 43) == 401
        assert status(served.keys["revoked"]) == 401
        for scope in SCOPES:
            refused = status(served.keys[scope]) == 403
            assert refused == (scope != route.needs)
        assert status(served.keys["all"]) not in (401, 403)


def test_what_is_not_there_is_told_to_nobody_without_a_key(served):
    with served.client("") as stranger, served.client("inference") as friend:
        for path in (
            "/docs",
            "/console",
            "/console/a/b",
            "/openapi",
            "/v2/x",
            "/v1/chat",
            f"{served.server.url}//health",
            "/health/",
        ):
            assert stranger.get(path).status_code == 401
            assert friend.get(path).status_code == 404
        assert stranger.put("/health").status_code == 401
        assert friend.put("/v1/models").status_code == 405
        assert friend.get("/v1/chat/completions").json()["error"]["code"] == "method_not_allowed"


def test_keys_are_taken_as_bearers_or_as_they_are_in_a_header_of_their_own(served):
    key = served.keys["all"]
    with served.client("") as client:
        for header in (key, f"Basic {key}", "Bearer", f"Bearer{key}", "Bearer \u00e9"):
            answer = client.get("/v1/models", headers={"Authorization": header.encode("latin-1")})
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        answer = client.get("/v1/models", headers={"Authorization": f"bearer {key}"})
        assert answer.status_code == 200
        for given, status in ((key, 200), (f"Bearer {key}", 401), ("", 401), ("x", 401)):
            assert client.get("/v1/models", headers={"x-api-key": given}).status_code == status
        both = {"Authorization": "Bearer x", "x-api-key": key}
        assert client.get("/v1/models", headers=both).status_code == 401


def test_a_key_says_nothing_of_answers_of_adapters_that_are_not_its_own(served, client):
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    own, other = (
        client.post("/v1/chat/completions", json={**body, "model": name}).json()["id"]
        for name in ("poet", "team/clerk")
    )
    with served.client("poet") as limited:
        for answer, status in ((own, 200), (other, 404)):
            told = limited.post("/v1/feedback", json={"id": answer, "thumbs": "down"})
            assert told.status_code == status, told.text
    assert client.post("/v1/feedback", json={"id": other, "thumbs": "down"}).status_code == 200


def test_a_key_sees_and_uses_only_its_adapters(served):
    with served.client("poet") as client:
        assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["model", "poet"]
        assert client.get("/v1/models/poet").status_code == 200
        hidden = client.get("/v1/models/team/clerk")
        absent = client.get("/v1/models/team/nobody")
        assert hidden.status_code == absent.status_code == 404
        same = hidden.json()["error"]["message"].replace("clerk", "nobody")
        assert same == absent.json()["error"]["message"]
        body = {"prompt": "a", "max_tokens": 1}
        for route, model, status in (
            ("/v1/completions", "poet", 200),
            ("/v1/completions", "team/clerk", 404),
            ("/v1/completions", "model:team/clerk", 404),
            ("/v1/inference/poet/completions", None, 200),
            ("/v1/inference/team/clerk/completions", "poet", 404),
        ):
            assert client.post(route, json={**body, "model": model}).status_code == status


CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
BAD = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
    ({"temperature": 3}, "temperature"),
    ({"temperature": "NaN"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 17}, None),
    ({"n": 10**30}, "n"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_completion_tokens": 2}, None),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 1}, None),
    ({"stop": ["x"] * 17}, None),
    ({"stop": [""]}, None),
    ({"logit_bias": {"x": 1}}, None),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"logit_bias": {"256": 1}}, None),
    ({"seed": 2**64}, "seed"),
    ({"functions": []}, "functions"),
    ({"stream_options": {"include_usage": True}}, None),
    ({"response_format": {"type": "json_schema"}}, None),
    ({"response_format": {"type": "poem"}}, None),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"enum": ["x" * 40_000]}},
            }
        },
        None,
    ),
    ({"tool_choice": "required"}, None),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, None),
    ({"chat_template_kwargs": {"parse_special_in_content": True}}, None),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"chat_template": "{{ messages }}"}, "chat_template"),
    ({"chat_template_kwargs": {"chat_template": "x"}}, None),
    ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, None),
]


@pytest.mark.parametrize(("change", "param"), BAD, ids=lambda value: str(value)[:50])
def test_bad_requests_are_told_what_is_wrong_with_them(client, change, param):
    content = json.dumps({**CHAT, **change})
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/chat/completions", content=content, headers=headers)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param
    assert error["message"]
    assert error["code"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 100_000, b'{"a":' * 5000, b"1" * 10_000],
    ids=lambda content: str(content[:8]),
)
def test_what_is_no_body_is_refused(client, content):
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/chat/completions", content=content, headers=headers)
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_errors_quote_neither_prompts_nor_paths(client, served):
    secret = "correct horse battery staple"  # noqa: S105  # of no account
    bodies = [
        {**CHAT, "messages": [{"role": "user", "content": secret, "x": secret}]},
        {**CHAT, "temperature": secret},
        {"messages": secret},
        {**CHAT, "messages": [{"role": "user", "content": {"a": secret}}]},
    ]
    for body in bodies:
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400
        assert secret not in answer.text
        assert str(served.home) not in answer.text
    assert secret not in served.server.log


def test_ids_of_requests_go_in_and_out(client):
    given = "My-id_1.2"
    assert client.get("/health", headers={"X-Request-ID": given}).headers["x-request-id"] == given
    for wrong in ("a b", "x" * 129, "a\u00e9", "<script>"):
        header = {"X-Request-ID": wrong.encode("latin-1")}
        found = client.get("/health", headers=header).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", found)


def test_pages_of_strangers_and_rebound_names_are_refused(client):
    for header, status in (
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:8080"}, 421),
        ({"Host": "localhost.evil.example"}, 421),
        ({"Host": "localhost"}, 200),
        ({"Host": "127.0.0.1:9"}, 200),
        ({"Host": "[::1]:9"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ):
        answer = client.get("/health", headers=header)
        assert (answer.status_code, header) == (status, header)
        assert "access-control-allow-origin" not in answer.headers
    own = str(client.base_url).rstrip("/")
    assert client.get("/health", headers={"Origin": own}).status_code == 200
    assert client.options("/v1/models", headers={
        "Origin": own, "Access-Control-Request-Method": "GET"}).status_code == 405  # fmt: skip


def test_bodies_are_bounded(client):
    big = json.dumps({**CHAT, "user": "x" * (4 << 20)}).encode()
    headers = {"Content-Type": "application/json"}
    assert client.post("/v1/chat/completions", content=big, headers=headers).status_code == 413

    def pieces():
        for start in range(0, len(big), 65_536):
            yield big[start : start + 65_536]

    answer = client.post("/v1/chat/completions", content=pieces(), headers=headers)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"


def test_a_body_that_is_not_said_to_be_json_is_no_body(client):
    """A web page may send text unasked, and must not be able to make it a request."""
    content = json.dumps(CHAT).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = client.post(
            "/v1/chat/completions", content=content, headers={"Content-Type": kind}
        )
        assert answer.status_code == 400


def test_ignored_fields_change_nothing_and_are_documented(client):
    body = {**CHAT, "max_tokens": 8, "temperature": 0}
    given = {"metadata": {"a": "b"}, "store": True, "service_tier": "auto",
             "prompt_cache_key": "x", "prompt_cache_retention": "24h"}  # fmt: skip
    assert set(given) == set(IGNORED)
    plain = client.post("/v1/chat/completions", json=body).json()["choices"]
    assert client.post("/v1/chat/completions", json={**body, **given}).json()["choices"] == plain
    page = (DOCS / "reference" / "http.md").read_text("utf-8")
    for name in IGNORED:
        assert f"| `{name}` |" in page
    for name in ChatRequest.model_fields:
        assert f"`{name}`" in page, name


def test_the_server_tells_how_it_is(client):
    assert client.get("/ready").json() == {"status": "ready", "model": "model"}
    assert client.get("/version").json()["name"] == "hyprstream"
    page = client.get("/metrics").text
    for name in ("hyprstream_http_requests_total", "hyprstream_time_to_first_token_seconds_bucket",
                 "hyprstream_generation_tokens_total"):  # fmt: skip
        assert f"\n{name}" in page
    paths = client.get("/openapi.json").json()["paths"]
    assert {route.path.replace(":path", "") for route in ROUTES} == set(paths)


def test_every_route_is_documented_with_its_scope():
    page = (DOCS / "reference" / "http.md").read_text("utf-8")
    rows = re.findall(r"^\| `([A-Z]+) (/\S*)` \| (\w+) \|", page, re.MULTILINE)
    assert sorted(rows) == sorted((route.method, route.path, route.needs) for route in ROUTES)


def sent_raw(served, data: bytes) -> tuple[int, dict[str, str]]:
    """Send bytes as they are; the status and the error that come back."""
    host, port = served.server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(data)
        answer = b""
        while piece := raw.recv(65_536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    return int(head.split()[1]), json.loads(body)["error"]


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01 hello\r\n\r\n", b"GET /health\r\n\r\n",
     b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
     b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n"],
    ids=lambda data: str(data[:20]),
)  # fmt: skip
def test_what_is_no_request_is_refused_in_the_form_of_all_errors(served, data):
    status, error = sent_raw(served, data)
    assert status == 400
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "invalid_http"


def test_a_head_that_is_too_long_is_refused_in_the_form_of_all_errors(served):
    status, error = sent_raw(served, b"GET /health HTTP/1.1\r\nX: " + b"a" * 70_000)
    assert (status, error["code"]) == (431, "head_too_large")
