import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from hyprstream.catalog.connection import Connection
from hyprstream.catalog.web import Credential, Patience, Web, origin_of
from hyprstream.errors import (
    InvalidSettingsError,
    OfflineError,
    RegistryAnswerError,
    RegistryUnreachableError,
)
from tests.catalog.servers.faults import Fault, FaultServer, ProxyServer, serving
from tests.catalog.servers.tls import NAME, TlsServer, TunnelServer, make_certificate

PATIENCE = Patience(stall_s=1.0, connect_s=10.0, max_failures=2, sleep=lambda _: None)
TOKEN = "secret"  # noqa: S105


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with serving(FaultServer()) as server:
        server.put("/a", b"content")
        yield server


@pytest.fixture
def other() -> Iterator[FaultServer]:
    with serving(FaultServer()) as other:
        other.put("/a", b"content")
        yield other


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def far(certificate: tuple[Path, Path]) -> Iterator[FaultServer]:
    with serving(TlsServer(*certificate)) as far:
        far.put("/a", b"content")
        yield far


@pytest.fixture
def tunnel(far: FaultServer) -> Iterator[TunnelServer]:
    with serving(TunnelServer(far)) as tunnel:
        yield tunnel


@pytest.fixture
def environ(certificate: tuple[Path, Path], tunnel: TunnelServer) -> dict[str, str]:
    return {"SSL_CERT_FILE": str(certificate[0]), "HTTPS_PROXY": tunnel.url}


def get(
    url: str,
    *,
    environ: Mapping[str, str] | None = None,
    token_for: str | None = None,
    max_bytes: int = 100,
    offline: bool = False,
    patience: Patience = PATIENCE,
) -> bytes:
    credential = Credential(token=TOKEN, origin=origin_of(token_for)) if token_for else None
    with Web(Connection(environ=environ or {}, offline=offline), patience) as web:
        return web.get(url, what="a", max_bytes=max_bytes, credential=credential).content


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed(server: FaultServer, status: int):
    server.redirect("/b", "/a#fragment", status)
    assert get(server.url("/b")) == b"content"


def test_ten_redirects_are_followed_and_no_more(server: FaultServer):
    for n in range(11):
        server.redirect(f"/{n}", f"/{n + 1}" if n < 10 else "/a")
    assert get(server.url("/1")) == b"content"
    with pytest.raises(RegistryAnswerError, match="more than 10 times"):
        get(server.url("/0"))


def test_a_loop_of_redirects_ends(server: FaultServer):
    server.redirect("/b", "/b")
    with pytest.raises(RegistryAnswerError, match="redirects more than 10 times"):
        get(server.url("/b"))
    assert len(server.seen) == 11


def test_a_token_stays_on_its_host_across_redirects(server: FaultServer, other: FaultServer):
    server.redirect("/near", "/b")
    server.redirect("/b", other.url("/b"))
    other.redirect("/b", server.url("/a"))
    assert get(server.url("/near"), token_for=server.url("")) == b"content"
    assert [seen.token for seen in server.requests("/near")] == [TOKEN]
    assert [seen.token for seen in server.requests("/b")] == [TOKEN]
    assert [seen.token for seen in other.seen] == [None]
    assert [seen.token for seen in server.requests("/a")] == [None]  # who has left stays a stranger


def test_a_token_is_not_sent_to_another_port_of_its_host(server: FaultServer, other: FaultServer):
    assert get(server.url("/a"), token_for=other.url("")) == b"content"
    assert server.seen[0].token is None


@pytest.mark.parametrize(
    "location",
    [
        "",
        "ftp://127.0.0.1/a",
        "file:///etc/passwd",
        "http://example.org/a",
        "//example.org/a",
        "http://me:secret@127.0.0.1/a",
        "javascript:alert(1)",
    ],
)
def test_redirects_that_lead_where_they_must_not_are_refused(server: FaultServer, location: str):
    server.redirect("/b", location)
    with pytest.raises(RegistryAnswerError):
        get(server.url("/b"))
    assert len(server.seen) == 1


def test_a_redirect_to_what_is_no_address_is_a_failure(server: FaultServer):
    server.redirect("/b", "http://[::1/a")
    with pytest.raises(RegistryUnreachableError, match="Invalid URL"):
        get(server.url("/b"))


@pytest.mark.parametrize("url", ["http://example.org/a", "https://me:you@host/a", "ftp://host/a"])
def test_addresses_that_must_not_be_asked_are_not(url: str):
    with pytest.raises(RegistryAnswerError):
        get(url)


def test_a_long_answer_is_refused(server: FaultServer):
    server.put("/long", bytes(1 << 20))
    with pytest.raises(RegistryAnswerError, match="more than 100 bytes"):
        get(server.url("/long"))
    assert len(get(server.url("/long"), max_bytes=1 << 20)) == 1 << 20


def test_a_connection_is_used_again_after_a_redirect(server: FaultServer):
    server.redirect("/b", "/a")
    assert get(server.url("/b")) == b"content"
    assert server.num_connections == 1


def test_nobody_answers():
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a"
    with pytest.raises(RegistryUnreachableError, match=r"connection to 127\.0\.0\.1 failed"):
        get(url)


def test_a_server_that_says_nothing_is_not_waited_for(server: FaultServer):
    server.fail("/a", Fault(stall_at=0))
    with pytest.raises(RegistryUnreachableError, match="silent for too long"):
        get(server.url("/a"))
    assert len(server.seen) == 2


def test_a_server_that_drips_is_not_waited_for(server: FaultServer):
    server.put("/slow", bytes(1 << 20))
    server.fail("/slow", Fault(bytes_per_s=50_000))
    patience = Patience(stall_s=0.5, max_failures=1)
    with pytest.raises(RegistryUnreachableError, match="took more than 2 s"):
        get(server.url("/slow"), max_bytes=1 << 20, patience=patience)


def test_offline_asks_nobody(server: FaultServer):
    with pytest.raises(OfflineError):
        get(server.url("/a"), offline=True)
    assert server.seen == []


def test_a_proxy_of_the_environment_is_used(server: FaultServer):
    with serving(ProxyServer(server)) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            assert get(server.url("/a"), environ={name: proxy.url("")}) == b"content"
        assert len(proxy.seen) == 3
        assert get(server.url("/a"), environ={"http_proxy": proxy.host}) == b"content"
        for hosts in ("127.0.0.1", "*", "example.org, 127.0.0.1"):
            environ = {"http_proxy": proxy.url(""), "no_proxy": hosts}
            assert get(server.url("/a"), environ=environ) == b"content"
        assert len(proxy.seen) == 4


@pytest.mark.parametrize("proxy", ["socks5://host:1", "ftp://host", "http://host:port"])
def test_a_proxy_that_cannot_be_used_is_refused_without_its_password(
    server: FaultServer, proxy: str
):
    proxy = proxy.replace("://", "://me:secret@")
    with pytest.raises(InvalidSettingsError, match="http_proxy names cannot be used") as caught:
        get(server.url("/a"), environ={"http_proxy": proxy})
    assert "secret" not in f"{caught.value} {caught.value.hint}"


def test_tls_and_a_proxy_lead_to_a_server(
    tunnel: TunnelServer, far: FaultServer, environ: dict[str, str]
):
    far.tokens["/a"] = TOKEN
    assert get(f"https://{NAME}/a", environ=environ, token_for=f"https://{NAME}") == b"content"
    assert tunnel.asked == [f"{NAME}:443"]


def test_a_stranger_s_certificate_is_refused_at_once(tunnel: TunnelServer, environ: dict[str, str]):
    del environ["SSL_CERT_FILE"]
    with pytest.raises(RegistryAnswerError, match="is not to be trusted"):
        get(f"https://{NAME}/a", environ=environ)
    assert len(tunnel.asked) == 1


def test_certificates_that_cannot_be_read_are_named():
    with pytest.raises(InvalidSettingsError, match="/no/such/file"):
        get("https://127.0.0.1/a", environ={"SSL_CERT_FILE": "/no/such/file"})


def test_a_redirect_leads_neither_to_clear_text_nor_to_this_machine(
    server: FaultServer, far: FaultServer, environ: dict[str, str]
):
    far.redirect("/clear", f"http://{NAME}/a")
    far.redirect("/here", server.url("/a"))
    far.redirect("/here-too", far.url("/a"))
    for path in ("/clear", "/here", "/here-too"):
        with pytest.raises(RegistryAnswerError, match="where it must not lead"):
            get(f"https://{NAME}{path}", environ=environ, token_for=f"https://{NAME}")
    far.redirect("/fine", f"https://{NAME}:8443/a")
    assert get(f"https://{NAME}/fine", environ=environ, token_for=f"https://{NAME}") == b"content"
    assert far.requests("/a")[-1].token is None
    assert server.seen == []


def test_origins_are_written_in_one_way():
    assert origin_of("https://Host.Example:443/a?b") == "https://host.example"
    assert origin_of("http://[::1]:80/a") == "http://[::1]"
    assert origin_of("https://host:8443") == "https://host:8443"
