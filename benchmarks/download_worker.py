"""The programs of the download benchmark, each run by its own process.

`serve FILE` answers every request with a file and prints its port; `fetch URL FOLDER SHA256`
downloads as a pull does and prints the seconds that it took; `hash FILE` reads and hashes.
"""

import hashlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path


def serve(file: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            connection, _ = server.accept()
            threading.Thread(target=answer, args=(connection, file), daemon=True).start()


def answer(connection: socket.socket, file: str) -> None:
    with connection, Path(file).open("rb") as stream:
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(65536)
        size_bytes = os.fstat(stream.fileno()).st_size
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {size_bytes}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        connection.sendfile(stream)


def fetch(url: str, folder: str, sha256: str) -> None:
    from hyprstream.catalog.card import SilentProgress
    from hyprstream.catalog.connection import Connection
    from hyprstream.catalog.downloads import RemoteFile, download
    from hyprstream.catalog.staging import Staging
    from hyprstream.catalog.web import Web
    from hyprstream.refs import ModelRef

    staging = Staging(ModelRef.parse("https://host/model.gguf"), Path(folder))
    file = RemoteFile(name="model.gguf", url=url, sha256=sha256)
    started = time.perf_counter()
    with Web(Connection(environ={})) as web:
        download(web, [file], staging, SilentProgress(), source="a benchmark")
    print(time.perf_counter() - started)


def digest(file: str) -> None:
    started = time.perf_counter()
    with Path(file).open("rb") as stream:
        hashlib.file_digest(stream, "sha256")
    print(time.perf_counter() - started)


if __name__ == "__main__":
    programs: dict[str, Callable[..., None]] = {"serve": serve, "fetch": fetch, "hash": digest}
    programs[sys.argv[1]](*sys.argv[2:])
