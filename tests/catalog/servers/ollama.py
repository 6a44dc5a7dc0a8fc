"""An Ollama registry on loopback: manifests by tag and digest, blobs by digest, and tokens."""

import hashlib
import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

from typing_extensions import override

from tests.catalog.servers.faults import FaultServer, Resource, Seen

KIND = "application/vnd.ollama.image."
TOKEN = "a-token-for-strangers"  # noqa: S105


class OllamaServer(FaultServer):
    """Serves models that were added.

    Attributes:
        wants_token: Everything is answered with 401 until a token of `/token` is sent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.wants_token = False

    def add(
        self, name: str, tag: str, layers: list[tuple[str, bytes]], **changes: Any
    ) -> dict[str, Any]:
        """Add a model of layers, each of a kind and a content; return its manifest."""
        entries = [self.layer(name, kind, content) for kind, content in layers]
        config = self.layer(name, "config", b"{}")
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {**config, "mediaType": "application/vnd.docker.container.image.v1+json"},
            "layers": entries,
            **changes,
        }
        self.put_manifest(name, tag, json.dumps(manifest).encode())
        return manifest

    def layer(self, name: str, kind: str, content: bytes) -> dict[str, Any]:
        """Add a blob; return how a manifest names it."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.put(f"/v2/{name}/blobs/{digest}", content)
        return {"mediaType": KIND + kind, "digest": digest, "size": len(content)}

    def put_manifest(self, name: str, tag: str, content: bytes) -> None:
        """Serve a manifest by its tag, and by its digest as Ollama's registry does."""
        self.put(f"/v2/{name}/manifests/{tag}", content)
        self.put(f"/v2/{name}/blobs/sha256:{hashlib.sha256(content).hexdigest()}", content)

    @override
    def answer(self, request: Seen) -> Resource | None:
        parts = urlsplit(request.path)
        if parts.path == "/token":
            assert parse_qs(parts.query) == {
                "service": ["registry"],
                "scope": ["repository:library/tiny:pull"],
            }
            return Resource.of_json({"token": TOKEN})
        if self.wants_token and request.token != TOKEN:
            challenge = (
                f'Bearer realm="{self.url("/token")}",service="registry",'
                'scope="repository:library/tiny:pull"'
            )
            return Resource(content=b"", status=401, headers={"WWW-Authenticate": challenge})
        return super().answer(request)
