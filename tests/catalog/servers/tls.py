"""Servers that speak TLS, under names that only a proxy leads to.

`https://models.example` exists on this machine alone: a `TunnelServer` lets a client of it reach a
`TlsServer`, as the proxy of a company does (CONNECT, RFC 9110, 9.3.6).
"""

import select
import shutil
import socket
import socketserver
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from tests.catalog.servers.faults import FaultServer

NAME = "models.example"


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate of the name, signed by itself, and its key; skip without openssl."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", f"/CN={NAME}"),
            *("-addext", f"subjectAltName=DNS:{NAME},IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


class TlsServer(FaultServer):
    """A `FaultServer` that speaks TLS."""

    def __init__(self, certificate: Path, key: Path) -> None:
        super().__init__()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(
            self.socket, server_side=True, do_handshake_on_connect=False
        )

    @override
    def url(self, path: str) -> str:
        return f"https://{self.host}{path}"


class TunnelServer(socketserver.ThreadingTCPServer):
    """A proxy that leads every CONNECT to one server.

    Attributes:
        asked: The hosts that clients wanted to reach.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, upstream: FaultServer) -> None:
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.upstream = upstream
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: ends that go away are ordinary."""


class _Tunnel(socketserver.StreamRequestHandler):
    server: TunnelServer
    rbufsize = 0

    @override
    def handle(self) -> None:
        method, host, _ = self.rfile.readline().decode().split(" ", 2)
        assert method == "CONNECT"
        self.server.asked.append(host)
        while self.rfile.readline().strip():
            pass
        self.wfile.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        upstream = ("127.0.0.1", self.server.upstream.server_port)
        with socket.create_connection(upstream) as far:
            ends = {self.connection: far, far: self.connection}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    data = end.recv(1 << 16)
                    if not data:
                        return
                    ends[end].sendall(data)
