"""How commands find the server of their home, and what they believe of it."""

import json

import httpx
import pytest

from hyprstream.errors import AccessError, ConflictError, NotFoundError, UnavailableError
from hyprstream.runtime.journal import Journal
from hyprstream.runtime.remote import RemoteServer, found_server, is_learning, marked
from hyprstream.runtime.settings import Settings


def test_a_server_is_found_while_its_journal_is_held_and_no_longer(tmp_path):
    settings = Settings(home=tmp_path)
    url = "http://127.0.0.1:8080"
    assert found_server(settings) is None
    with marked(settings, url):
        assert found_server(settings) is None  # nobody learns: what a kill left behind
        journal = Journal(settings.journal_file)
        assert is_learning(settings)
        assert found_server(settings) == url
        foreign = ("7", '"http://example.com"', '"file:///etc"', '"http://127.0.0.1.evil.com"')
        for content in ("", "[]", "{", *(f'{{"url": {value}}}' for value in foreign)):
            settings.server_file.write_text(content)
            assert found_server(settings) is None, content
    assert not settings.server_file.exists()
    journal.close()
    assert not is_learning(settings)


def server(answer) -> RemoteServer:
    return RemoteServer(
        "http://127.0.0.1:8080", "a key", transport=httpx.MockTransport(lambda _: answer)
    )


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, AccessError), (403, AccessError), (404, NotFoundError), (409, ConflictError),
     (500, UnavailableError), (302, UnavailableError)],
)  # fmt: skip
def test_a_refusal_is_an_error_of_its_kind(status, kind):
    body = {"error": {"message": "why\x1b[31m not", "code": "x"}}
    with server(httpx.Response(status, json=body)) as asked, pytest.raises(kind) as raised:
        asked.status("poet")
    assert "why" in str(raised.value)
    assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"<html>", b"[" * 100_000, b"1" * (17 << 20)])
def test_an_answer_that_is_none_is_told(content):
    with (
        server(httpx.Response(200, content=content)) as asked,
        pytest.raises(UnavailableError),
    ):
        asked.status("poet")


def test_what_is_asked_is_what_the_server_knows():
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.method, str(request.url), request.headers["authorization"]))
        return httpx.Response(200, content=json.dumps({"ok": True}))

    transport = httpx.MockTransport(answer)
    with RemoteServer("http://127.0.0.1:9/ignored", "k", transport=transport) as asked:
        asked.stop_learning("team/poet")
        asked.erase("a b&c", "")
    assert seen == [
        ("POST", "http://127.0.0.1:9/v1/training/team/poet/stop", "Bearer k"),
        ("DELETE", "http://127.0.0.1:9/v1/samples?user=a+b%26c", "Bearer k"),
    ]
