"""The process: how it begins, whom it waits for, how it ends."""

import contextlib
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.flight as fl
import pytest

from hyprstream.errors import InvalidSettingsError, UnavailableError
from hyprstream.flight.client import Server
from hyprstream.runtime.keys import KeyFile
from hyprstream.runtime.server_config import ServerConfig
from hyprstream.runtime.settings import Settings
from hyprstream.server.serve import bind, check_tls, open_verifier
from tests.server.process import ServerProcess

STREAM = {
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 1500,
    "ignore_eos": True,
    "stream": True,
}


def test_beyond_this_machine_a_key_is_needed(tmp_path):
    settings = Settings(home=tmp_path, server=ServerConfig(host="0.0.0.0"))  # noqa: S104
    with pytest.raises(InvalidSettingsError, match="open to everybody"):
        open_verifier(settings)
    assert open_verifier(Settings(home=tmp_path)) is None
    assert open_verifier(Settings(home=tmp_path, server=ServerConfig(host="::1"))) is None
    KeyFile(settings.keys_folder).create("x", ["inference"])
    assert open_verifier(settings) is not None
    assert open_verifier(Settings(home=tmp_path)) is not None


def test_a_key_of_the_environment_is_one_and_must_be_long(tmp_path, monkeypatch):
    monkeypatch.setenv("HYPRSTREAM_API_KEY", "short")
    with pytest.raises(InvalidSettingsError):
        open_verifier(Settings(home=tmp_path))
    monkeypatch.setenv("HYPRSTREAM_API_KEY", "long enough for a key")
    settings = Settings(home=tmp_path, server=ServerConfig(host="0.0.0.0"))  # noqa: S104
    assert "long enough" not in repr(settings)
    verifier = open_verifier(settings)
    assert verifier is not None
    assert verifier.grant("long enough for a key") is not None


def test_an_address_that_cannot_be_had_is_told_before_a_model_is_loaded():
    with bind(ServerConfig(port=0)) as taken:
        taken.listen()
        with pytest.raises(UnavailableError):
            bind(ServerConfig(port=taken.getsockname()[1]))
    with pytest.raises((InvalidSettingsError, UnavailableError)):
        bind(ServerConfig(host="no.such.host.invalid"))


@pytest.mark.parametrize(
    "fields",
    [{"port": 70_000}, {"tls_cert": "x"}, {"tls_client_ca": "x"}, {"max_answers": 0},
     {"ping_s": 0}, {"cors_origins": ("*",)}, {"max_per_minute": -1}],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(fields):
    with pytest.raises(InvalidSettingsError):
        ServerConfig(**fields)


def test_without_keys_this_machine_may_do_everything_and_slow_heads_are_cut(home):
    folder, _ = home
    alone = folder.parent / "keyless"
    shutil.copytree(folder, alone, ignore=shutil.ignore_patterns("keys"))
    with ServerProcess(alone, HYPRSTREAM_SERVER__HEADER_TIMEOUT_S="0.5",
                       HYPRSTREAM_SERVER__BODY_TIMEOUT_S="0.5",
                       HYPRSTREAM_SERVER__MAX_CONNECTIONS="8") as server:  # fmt: skip
        with server.client() as client:
            assert client.get("/metrics").status_code == 200
        host, port = server.url.removeprefix("http://").split(":")
        for begin in (b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: "):
            with socket.create_connection((host, int(port)), timeout=10) as raw:
                raw.sendall(begin)
                assert raw.recv(1000) == b""
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.sendall(
                b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\n\r\n{"
            )
            assert raw.recv(1000).startswith(b"HTTP/1.1 408")
        with contextlib.ExitStack() as held:
            for _ in range(8):
                held.enter_context(socket.create_connection((host, int(port)), timeout=10))
            refused = httpx.get(f"{server.url}/health", trust_env=False)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "too_many_connections"
        assert server.end(signal.SIGINT) == 130


def test_answers_under_way_are_finished_when_the_server_is_told_to_end(home):
    folder, _ = home
    alone = folder.parent / "drained"
    shutil.copytree(folder, alone, ignore=shutil.ignore_patterns("keys"))
    with ServerProcess(alone) as server, server.client() as client:
        codes: list[int] = []
        with (
            client.stream("GET", "/v1/events") as watched,  # who looks on is not waited for
            client.stream("POST", "/v1/chat/completions", json=STREAM) as answer,
        ):
            events = watched.iter_lines()  # held: without it the connection is closed
            next(events)
            lines = answer.iter_lines()
            next(lines)
            ending = threading.Thread(target=lambda: codes.append(server.end()))
            ending.start()
            rest = [line for line in lines if line]
            ending.join(20)  # less than `drain_s`
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in rest[-2]
        assert codes == [0]
        with pytest.raises(httpx.ConnectError):
            client.get("/health")
        assert "Traceback" not in server.log


def test_tls_asks_for_certificates_and_shows_its_own(home, tmp_path):
    folder, _ = home
    alone = folder.parent / "tls"
    shutil.copytree(folder, alone, ignore=shutil.ignore_patterns("keys"))
    authority, server_files, client_files = certificates(tmp_path)
    options = ["--tls-cert", server_files[0], "--tls-key", server_files[1],
               "--tls-client-ca", authority, "--flight-port", "0"]  # fmt: skip
    with ServerProcess(alone, *options) as server:
        assert server.url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=authority)
        stranger = httpx.Client(base_url=server.url, verify=context, trust_env=False)
        with (
            stranger,
            pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)),
        ):
            stranger.get("/health")
        context = ssl.create_default_context(cafile=authority)
        context.load_cert_chain(*client_files)
        with httpx.Client(base_url=server.url, verify=context, trust_env=False) as friend:
            assert friend.get("/health").json() == {"status": "ok"}
        _check_flight_asks_for_certificates(server.flight, Path(authority), client_files)
    with pytest.raises(InvalidSettingsError):
        check_tls(ServerConfig(tls_cert=server_files[1], tls_key=server_files[0]))
    with pytest.raises(InvalidSettingsError):
        check_tls(ServerConfig(tls_cert="/nowhere/x", tls_key="/nowhere/y"))


def _check_flight_asks_for_certificates(address, authority, files):
    assert address.startswith("grpc+tls://127.0.0.1:")
    certificate, key = (Path(file).read_bytes() for file in files)
    options = {"tls_root_certs": authority.read_bytes()}
    with fl.connect(address, **options, cert_chain=certificate, private_key=key) as friend:
        assert list(friend.list_actions())
    host = address.removeprefix("grpc+tls://")
    strangers: tuple[tuple[str, dict[str, bytes]], ...] = (
        (address, options),
        (address, {}),
        (f"grpc://{host}", {}),
    )
    for place, given in strangers:
        with fl.connect(place, **given) as stranger, pytest.raises(pa.ArrowException):
            list(stranger.list_actions())
    text = "SELECT name FROM adapters"
    with pytest.raises(UnavailableError):
        Server(address=host, tls_ca=authority).query(text)
    server = Server(address=host, tls_ca=authority, tls_cert=Path(files[0]), tls_key=Path(files[1]))
    names = {row["name"] for row in server.query(text).to_pylist()}
    assert {"poet", "team/clerk"} <= names  # and what other tests have made


def certificates(folder):
    """An authority, and what it signed for a server and for a client."""

    def openssl(*arguments: str) -> None:
        program = ["openssl", *arguments]
        subprocess.run(program, cwd=folder, check=True, capture_output=True)

    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca",
            "-days", "2", "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    for name in ("server", "client"):
        openssl("req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr",
                "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1")  # fmt: skip
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                "-out", f"{name}.pem", "-days", "2", "-copy_extensions", "copy")  # fmt: skip
    pairs = [(str(folder / f"{n}.pem"), str(folder / f"{n}.key")) for n in ("server", "client")]
    return str(folder / "ca.pem"), *pairs
