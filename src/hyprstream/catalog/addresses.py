"""Models at an address of the web: one GGUF file, or a folder. Behind `https://` and `http://`.

A folder has an `index.json`

    {"files": [{"name": "config.json", "size": 684, "sha256": "..."}, ...]}

or, without one, the files that model folders are known to have. The revision of a file is the
SHA-256 of its content, that of a folder the SHA-256 of what `sha256sum` prints for its files in the
order of their names; an address that ends in `#sha256=...` means that content and no other.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hyprstream.catalog.card import FileEntry, ModelCard, Progress, check_file_name, model_entries
from hyprstream.catalog.connection import Connection
from hyprstream.catalog.downloads import RemoteFile, download
from hyprstream.catalog.offer import Offer, RegistryStatus
from hyprstream.catalog.staging import Staging
from hyprstream.catalog.web import Credential, Patience, Web, origin_of
from hyprstream.errors import (
    AccessError,
    ChecksumMismatchError,
    InvalidReferenceError,
    ModelNotFoundError,
    RegistryAnswerError,
    UnsupportedError,
    UnsupportedFormatError,
)
from hyprstream.refs import ModelRef

_INDEX = "index.json"
_CONFIG = "config.json"
_SHARDS = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"
_OPTIONAL = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("generation_config.json", "chat_template.jinja", "chat_template.json"),
    *("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"),
)
_OTHER_FILES = re.compile(r"\.(safetensors|bin|pt|pth|ckpt|pkl|h5|onnx|zip|tar|t?gz|7z|whl)$", re.I)
_MAX_INDEX_BYTES = 4 << 20
_MAX_FILES = 10_000


class _IndexEntry(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    name: Annotated[str, Field(max_length=255)]
    size: Annotated[int, Field(ge=0, le=1 << 42)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", max_length=64)]


class _Index(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    files: Annotated[list[_IndexEntry], Field(min_length=1, max_length=_MAX_FILES)]


class _Shards(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    weight_map: Annotated[dict[str, str], Field(min_length=1)]


Document = TypeVar("Document", bound=BaseModel)


class AddressRegistry:
    """Servers of the web that keep files, and know nothing of models. Stateless."""

    def __init__(self, connection: Connection, patience: Patience | None = None) -> None:
        self._connection = connection
        self._patience = patience
        self._scheme = connection.options.get("scheme", "https")
        self._base = connection.options.get("url", "").rstrip("/")

    def canonical(self, ref: ModelRef) -> ModelRef:
        """Write the host in lower case.

        Raises:
            InvalidReferenceError: The reference has a tag.
        """
        if ref.tag is not None:
            raise InvalidReferenceError(
                f"{ref} has a tag, and addresses have none",
                hint="Leave out what follows the colon.",
            )
        if not ref.is_url:
            return ref
        host, slash, path = ref.name.partition("/")
        return replace(ref, name=host.lower() + slash + path)

    def locate(self, ref: ModelRef) -> Path | None:  # noqa: ARG002 - part of the protocol
        """Return None: what lies elsewhere is used from the cache only."""
        return None

    def fetch(self, ref: ModelRef, staging: Staging, progress: Progress) -> ModelCard:
        """Download the file, or the files of the folder.

        Raises:
            ModelNotFoundError: There is no model.
            UnsupportedFormatError: It is in a file that is not read.
            InvalidReferenceError: There are several models.
            ChecksumMismatchError: It is not what the reference or the index promises.
            RegistryAnswerError: The index breaks its format.
            HyprstreamError: As `downloads.download`.
        """
        url = self._url(ref)
        last = unquote(url.rpartition("/")[2])
        with Web(self._connection, self._patience) as web:
            if last.endswith(".gguf"):
                revision, entry = self._fetch_file(web, ref, staging, progress)
            elif _OTHER_FILES.search(last):
                raise UnsupportedFormatError(
                    f"{url} is a file of a kind that is not fetched alone",
                    hint="Name a .gguf file, or the folder that holds config.json and the weights.",
                )
            else:
                revision, entry = self._fetch_folder(web, ref, staging, progress)
        return ModelCard(
            ref=replace(ref, revision=revision), files=staging.files, entry=entry, source=url
        )

    def search(self, text: str, *, limit: int) -> Sequence[Offer]:  # noqa: ARG002
        """Refuse: there is no list of all addresses."""
        raise UnsupportedError(
            f"{self._base or f'{self._scheme}://'} cannot be searched: web servers have no search",
            hint="Look for the address with a browser.",
        )

    def status(self) -> RegistryStatus:
        """Ask whether the server answers, where the settings name one."""
        if not self._base:
            return RegistryStatus(
                scheme=self._scheme,
                address=f"any {self._scheme}:// address",
                state="offline" if self._connection.offline else "unchecked",
            )
        credential = self._credential()
        patience = self._patience or Patience(connect_s=5.0, stall_s=5.0, max_failures=1)
        with Web(self._connection, patience) as web:
            probe = web.probe(f"{self._base}/", credential)
        return RegistryStatus(
            scheme=self._scheme,
            address=self._base,
            state=probe.state,
            authenticated=credential is not None,
            problem=probe.problem,
        )

    def _url(self, ref: ModelRef) -> str:
        return f"{self._base}/{ref.name}" if self._base else f"{ref.scheme}://{ref.name}"

    def _credential(self) -> Credential | None:
        """Take the token of a server that the settings name; it is for no other."""
        if not self._base:
            return None
        variable = self._connection.options.get("token_env", "")
        token = self._connection.environ.get(variable) or self._connection.token(self._scheme)
        return Credential(token=token, origin=origin_of(self._base)) if token else None

    def _remote(
        self,
        ref: ModelRef,
        name: str = "",
        *,
        size_bytes: int | None = None,
        sha256: str | None = None,
    ) -> RemoteFile:
        """Describe a file of a folder, or, without a name, the one that the address is."""
        url = f"{self._url(ref)}/{quote(name)}" if name else self._url(ref)
        own_name = re.sub(r"[^A-Za-z0-9._+-]", "_", unquote(url.rpartition("/")[2]))
        return RemoteFile(
            name=name or own_name,
            url=url,
            size_bytes=size_bytes,
            sha256=sha256,
            credential=self._credential(),
        )

    def _fetch_file(
        self, web: Web, ref: ModelRef, staging: Staging, progress: Progress
    ) -> tuple[str, str]:
        file = self._remote(ref, sha256=ref.revision)
        download(web, [file], staging, progress, source=str(ref))
        (entry,) = staging.files
        return entry.sha256, entry.name

    def _fetch_folder(
        self, web: Web, ref: ModelRef, staging: Staging, progress: Progress
    ) -> tuple[str, str]:
        progress.start(f"looking for {ref}", None)
        index = self._document(web, ref, _INDEX)
        progress.done()
        if index is None:
            self._fetch_known(web, ref, staging, progress)
            revision = _revision_of(staging.files)
            _check_pin(ref, revision)
            return revision, ""
        entries = [
            FileEntry(name=entry.name, size_bytes=entry.size, sha256=entry.sha256)
            for entry in _read(_Index, index, f"{self._url(ref)}/{_INDEX}").files
        ]
        revision = _revision_of(entries)
        _check_pin(ref, revision)
        model = _only_model(ref, [entry.name for entry in entries])
        files = [
            self._remote(ref, entry.name, size_bytes=entry.size_bytes, sha256=entry.sha256)
            for entry in entries
        ]
        download(web, files, staging, progress, source=str(ref))
        return revision, model

    def _fetch_known(self, web: Web, ref: ModelRef, staging: Staging, progress: Progress) -> None:
        """Bring what model folders are known to have: some files must be there, some may."""
        config = self._document(web, ref, _CONFIG)
        if config is None:
            raise ModelNotFoundError(
                f"{self._url(ref)} has neither {_INDEX} nor {_CONFIG}",
                hint="Name a .gguf file, or write an index as docs/models.md says.",
            )
        shards = self._document(web, ref, _SHARDS)
        weights = {_WEIGHTS}
        if shards is not None:
            where = f"{self._url(ref)}/{_SHARDS}"
            weights = set(_read(_Shards, shards, where).weight_map.values())
            if len(weights) > _MAX_FILES:
                raise RegistryAnswerError(f"{where} names {len(weights):,} files")
        for name in weights:
            check_file_name(name)
        for name in _OPTIONAL:
            try:
                download(web, [self._remote(ref, name)], staging, progress, source=str(ref))
            except (ModelNotFoundError, AccessError):
                continue  # some servers say 403 for what they do not have
        needed = [_CONFIG, *([_SHARDS] if shards is not None else []), *sorted(weights)]
        files = [self._remote(ref, name) for name in needed]
        download(web, files, staging, progress, source=str(ref))

    def _document(self, web: Web, ref: ModelRef, name: str) -> bytes | None:
        """Read a small file of a folder; None if it has none of that name."""
        try:
            return web.get(
                f"{self._url(ref)}/{name}",
                what=f"{name} of {ref}",
                max_bytes=_MAX_INDEX_BYTES,
                credential=self._credential(),
            ).content
        except ModelNotFoundError:
            return None


def _read(kind: type[Document], content: bytes, where: str) -> Document:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        problem = error.errors()[0]
        part = ".".join(map(str, problem["loc"]))[:100] or "all of it"
        raise RegistryAnswerError(
            f"{where} cannot be used: {part}: {problem['msg']}",
            hint="docs/models.md says what an index looks like.",
        ) from error


def _revision_of(files: Iterable[FileEntry]) -> str:
    """Hash what `sha256sum` prints for the files, in the order of their names."""
    lines = [f"{file.sha256}  {file.name}\n" for file in files]
    lines.sort(key=lambda line: line[64:])
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _check_pin(ref: ModelRef, revision: str) -> None:
    if ref.revision not in (None, revision):
        raise ChecksumMismatchError(
            f"the folder of {ref} has other content: its revision is {revision}",
            hint="Leave out what follows #, if the new content is what you want.",
        )


def _only_model(ref: ModelRef, names: Sequence[str]) -> str:
    entries = model_entries(names)
    if "" in entries:
        return ""
    if len(entries) == 1:
        return entries[0]
    if not entries:
        raise ModelNotFoundError(
            f"the index of {ref} lists no model: looked for *.gguf and for config.json with "
            "*.safetensors",
            hint="Weights in other formats, such as pickles, are not read.",
        )
    raise InvalidReferenceError(
        f"the index of {ref} lists several models: {', '.join(entries[:10])}",
        hint="Name one of them after the folder.",
    )
