"""`ollama://[host[:port]/][namespace/]name[:tag][@digest]`: models of an Ollama registry.

A registry gives a manifest, which lists layers by the SHA-256 of their content, and the layers
(`/v2/<namespace>/<name>/manifests/<tag>`, `.../blobs/sha256:<digest>`). The revision of a model is
the SHA-256 of its manifest. What a local Ollama has in its store is used where it lies.

The model comes as one GGUF file; template, system prompt, parameters and licenses lie beside it
as named files. Ollama's templates are in Go's language: the chat template that is used is the
one inside the GGUF file.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hyprstream.catalog.card import SHA256, ModelCard, Progress
from hyprstream.catalog.challenge import token_for
from hyprstream.catalog.connection import Connection
from hyprstream.catalog.downloads import RemoteFile, download
from hyprstream.catalog.image import read_image
from hyprstream.catalog.offer import Offer, RegistryStatus
from hyprstream.catalog.staging import Staging
from hyprstream.catalog.web import Answer, Credential, Patience, Web, origin_of
from hyprstream.errors import (
    AuthenticationError,
    ChecksumMismatchError,
    HyprstreamError,
    InvalidReferenceError,
    ModelNotFoundError,
    UnsupportedError,
)
from hyprstream.refs import ModelRef, is_loopback

log = logging.getLogger(__name__)

_HOST = "registry.ollama.ai"
_NAMESPACE = "library"
_TAG = "latest"
_ACCEPT = (
    "application/vnd.docker.distribution.manifest.v2+json, "
    "application/vnd.oci.image.manifest.v1+json"
)
_MAX_MANIFEST_BYTES = 1 << 20


def connect(connection: Connection) -> "OllamaRegistry":
    """Make the registry; the option `url` names another one than Ollama's own."""
    return OllamaRegistry(connection)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A name, taken apart."""

    host: str
    namespace: str
    name: str
    tag: str


class OllamaRegistry:
    """A registry that speaks Ollama's protocol. Stateless."""

    def __init__(self, connection: Connection, patience: Patience | None = None) -> None:
        self._connection = connection
        self._patience = patience
        self._scheme = connection.options.get("scheme", "ollama")
        self._url = connection.options.get("url", f"https://{_HOST}").rstrip("/")

    def canonical(self, ref: ModelRef) -> ModelRef:
        """Leave away what goes without saying, except the tag: it may move to other content.

        Raises:
            InvalidReferenceError: The name has too many parts, or the revision is no digest.
        """
        if ref.revision is not None and not SHA256.fullmatch(ref.revision):
            raise InvalidReferenceError(
                f"{ref.revision!r} is not the digest of a manifest",
                hint="Write the 64 hexadecimal digits of its SHA-256.",
            )
        place = self._place(ref)
        parts = [place.host, place.namespace, place.name]
        if place.host == self._default_host:
            parts = parts[1:] if place.namespace != _NAMESPACE else parts[2:]
        return replace(ref, name="/".join(parts), tag=place.tag)

    def locate(self, ref: ModelRef) -> Path | None:
        """Find the model in the store of a local Ollama."""
        place = self._place(ref)
        environ = self._connection.environ
        if store := environ.get("OLLAMA_MODELS"):
            folder = Path(store)
        elif home := environ.get("HOME"):
            folder = Path(home, ".ollama", "models")
        else:
            return None
        file = folder.joinpath("manifests", place.host, place.namespace, place.name, place.tag)
        try:
            if file.stat().st_size > _MAX_MANIFEST_BYTES:
                return None
            content = file.read_bytes()
            image = read_image(content, str(file))
            # A digest is 64 hexadecimal digits here: it cannot lead anywhere else.
            blob = folder / "blobs" / f"sha256-{image.model.sha256}"
            is_whole = blob.stat().st_size == image.model.size_bytes
        except OSError:
            return None
        except HyprstreamError as error:
            log.warning("the store of Ollama is not used for %s: %s", ref, error)
            return None
        is_wanted = ref.revision in (None, hashlib.sha256(content).hexdigest())
        return blob if is_whole and is_wanted else None

    def fetch(self, ref: ModelRef, staging: Staging, progress: Progress) -> ModelCard:
        """Download the layers of the manifest.

        Raises:
            ModelNotFoundError: The registry does not have the model.
            UnsupportedFormatError: The model is not one GGUF file.
            ChecksumMismatchError: A layer, or a pinned manifest, has another hash.
            RegistryAnswerError: The manifest breaks its format.
            HyprstreamError: As `downloads.download`.
        """
        place = self._place(ref)
        base = f"{self._address(place)}/v2/{place.namespace}/{place.name}"
        with Web(self._connection, self._patience) as web:
            progress.start(f"looking for {ref}", None)
            manifest, credential = self._manifest(web, ref, base, place.tag)
            progress.done()
            image = read_image(manifest.content, manifest.url)
            stem = f"{place.name}-{place.tag}" if place.tag != _TAG else place.name
            layers = {f"{stem}.gguf": image.model, **image.others}
            files = [
                RemoteFile(
                    name=name,
                    url=f"{base}/blobs/sha256:{layer.sha256}",
                    size_bytes=layer.size_bytes,
                    sha256=layer.sha256,
                    credential=credential,
                )
                for name, layer in layers.items()
            ]
            download(web, files, staging, progress, source=str(ref))
        digest = hashlib.sha256(manifest.content).hexdigest()
        return ModelCard(
            ref=replace(ref, revision=digest),
            files=staging.files,
            entry=f"{stem}.gguf",
            source=f"{base}/manifests/{place.tag} sha256:{digest}",
        )

    def search(self, text: str, *, limit: int) -> Sequence[Offer]:  # noqa: ARG002
        """Refuse: the protocol has no search."""
        raise UnsupportedError(
            f"{self._url} cannot be searched: the protocol of Ollama's registry has no search",
            hint="Look for models with a browser, at https://ollama.com/search.",
        )

    def status(self) -> RegistryStatus:
        """Ask whether the registry answers."""
        credential = self._credential(self._url)
        patience = self._patience or Patience(connect_s=5.0, stall_s=5.0, max_failures=1)
        with Web(self._connection, patience) as web:
            probe = web.probe(f"{self._url}/v2/", credential)
        is_known = probe.state == "unauthorized" and credential is None  # it answers strangers so
        return RegistryStatus(
            scheme=self._scheme,
            address=self._url,
            state="ready" if is_known else probe.state,
            authenticated=credential is not None,
            problem=None if is_known else probe.problem,
        )

    @property
    def _default_host(self) -> str:
        return self._url.partition("://")[2]

    def _place(self, ref: ModelRef) -> _Place:
        parts = ref.name.split("/")
        if len(parts) > 3 or any(":" in part for part in parts[-2:]):
            raise InvalidReferenceError(
                f"{ref.name!r} is not the name of a model in an Ollama registry",
                hint=f"Write {self._scheme}://name:tag, namespace/name or host/namespace/name.",
            )
        host, namespace, name = [*[self._default_host, _NAMESPACE][: 3 - len(parts)], *parts]
        tag = _TAG if ref.tag is None else ref.tag
        return _Place(host=host.lower(), namespace=namespace, name=name, tag=tag)

    def _address(self, place: _Place) -> str:
        if place.host == self._default_host:
            return self._url
        return f"{'http' if is_loopback(place.host) else 'https'}://{place.host}"

    def _credential(self, address: str) -> Credential | None:
        """Take the token of this registry; it is for no other host."""
        variable = self._connection.options.get("token_env", "")
        token = self._connection.environ.get(variable) or self._connection.token(self._scheme)
        if not token or origin_of(address) != origin_of(self._url):
            return None
        return Credential(token=token, origin=origin_of(self._url))

    def _manifest(
        self, web: Web, ref: ModelRef, base: str, tag: str
    ) -> tuple[Answer, Credential | None]:
        """Fetch the manifest, logging in as nobody in particular where that is asked for."""
        credential = self._credential(base)
        try:
            return self._ask(web, ref, base, tag, credential), credential
        except AuthenticationError as error:
            if credential is not None:
                raise
            token = token_for(web, error.challenge, asker=base, what=str(ref))
            if token is None:
                raise
            credential = Credential(token=token, origin=origin_of(base))
            return self._ask(web, ref, base, tag, credential), credential

    def _ask(
        self, web: Web, ref: ModelRef, base: str, tag: str, credential: Credential | None
    ) -> Answer:
        def get(path: str, headers: Mapping[str, str]) -> Answer:
            return web.get(
                f"{base}/{path}",
                what=str(ref),
                max_bytes=_MAX_MANIFEST_BYTES,
                credential=credential,
                headers=headers,
            )

        if ref.revision is None:
            return get(f"manifests/{tag}", {"Accept": _ACCEPT})
        try:
            answer = get(f"blobs/sha256:{ref.revision}", {})  # Ollama's registry keeps them so
        except ModelNotFoundError:
            answer = get(f"manifests/sha256:{ref.revision}", {"Accept": _ACCEPT})
        found = hashlib.sha256(answer.content).hexdigest()
        if found != ref.revision:
            raise ChecksumMismatchError(
                f"the manifest of {ref} has the SHA-256 {found}",
                hint="Pull it again; if that does not help, report it to the registry.",
            )
        return answer
