"""`hf://[org/]name[:quant][@revision]`: models of the Hugging Face Hub.

The Hub's own client library talks to it (`catalog/hub/client.py`). Without a tag, a model is
its SafeTensors files and what belongs to them; a tag chooses a GGUF file. A branch or a git
tag is resolved to a commit, and that is what is kept. What lies in the cache of the Hub's own
tools is used there.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

from hyprstream.catalog.card import ModelCard, Progress, SilentProgress, check_file_name
from hyprstream.catalog.connection import Connection
from hyprstream.catalog.hub import environment, snapshots
from hyprstream.catalog.hub.answers import HubFile, HubModel, read_found, read_model
from hyprstream.catalog.hub.failures import Asked, to_error
from hyprstream.catalog.hub.process import HubFailureError, HubProcess
from hyprstream.catalog.hub.selection import choose
from hyprstream.catalog.hub.transfer import Transfer
from hyprstream.catalog.offer import Offer, RegistryState, RegistryStatus
from hyprstream.catalog.staging import Staging
from hyprstream.errors import (
    AccessError,
    HyprstreamError,
    InvalidReferenceError,
    OfflineError,
    RegistryAnswerError,
    UnsupportedError,
)
from hyprstream.refs import ModelRef

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})?")
_IDLE_S = 180.0
_MAX_FILE_BYTES = 50_000_000_000  # what the Hub gives out in one piece over HTTP
_MAX_FILES = 10_000


def connect(connection: Connection) -> "HfRegistry":
    """Make the registry; of another Hub, if the options name an address."""
    return HfRegistry(connection)


class HfRegistry:
    """A Hub. Stateless."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._environ = connection.environ
        address = connection.options.get("url") or environment.endpoint(connection.environ)
        self._address = address.rstrip("/")
        self._scheme = connection.options.get("scheme", "hf")

    def canonical(self, ref: ModelRef) -> ModelRef:
        """Write a quantisation in capitals and leave `main` away: one model has one name.

        Raises:
            InvalidReferenceError: The Hub has no such names.
        """
        if not _NAME.fullmatch(ref.name) or "--" in ref.name or ".." in ref.name:
            raise InvalidReferenceError(
                f"{ref.name!r} is not a name on the Hub",
                hint=f"Write {self._scheme}://ORGANISATION/NAME, as on the model's page.",
            )
        tag = ref.tag
        if tag is not None and not tag.lower().endswith(".gguf"):
            tag = tag.upper()
        return replace(ref, tag=tag, revision=None if ref.revision == "main" else ref.revision)

    def locate(self, ref: ModelRef) -> Path | None:
        """Find the model in the cache of the Hub's own tools, if all of it is there."""
        if self._connection.options.get("url"):
            return None  # that cache does not say which Hub a model is from
        cache = environment.cache_folder(self._environ)
        return snapshots.find(cache, ref.name, ref.revision, ref.tag)

    def fetch(self, ref: ModelRef, staging: Staging, progress: Progress) -> ModelCard:
        """Download what the loader needs.

        Raises:
            ModelNotFoundError: The Hub has no such model, revision or file.
            AuthenticationError: The model is for people who log in.
            ModelAccessDeniedError: The account may not have it.
            RegistryUnreachableError: The Hub did not answer.
            RegistryAnswerError: Its answer makes no sense.
            RateLimitedError: It wants to be asked less often.
            ChecksumMismatchError: A file is not what was promised.
            UnsupportedFormatError: The model is in a form that is not read here.
            StorageFullError: The disk is full.
            OfflineError: The settings forbid the network.
        """
        return self.fetch_files(ref, staging, progress, ())

    def fetch_files(
        self, ref: ModelRef, staging: Staging, progress: Progress, patterns: Sequence[str]
    ) -> ModelCard:
        """Download the files that fit one of the shell patterns; without any, as `fetch`."""
        if patterns and ref.tag is not None:
            raise InvalidReferenceError(
                f"{ref} names a file with its tag, and others are chosen besides",
                hint="Leave away the tag, or what chooses files.",
            )
        self._require_network(f"fetching {ref}")
        if environment.is_set(self._environ, "HF_HUB_DISABLE_PROGRESS_BARS"):
            progress = SilentProgress()
        with self._asking(str(ref), name=ref.name) as hub:
            progress.start(f"looking for {ref}", None)
            answer = hub.ask("model", name=ref.name, revision=ref.revision)
            model = read_model(answer, str(ref))
            pinned = replace(ref, revision=model.commit)
            files, entry = _chosen(pinned, model, patterns)
            progress.done()
            Transfer(
                hub=hub, address=self._address, ref=pinned, staging=staging, progress=progress
            ).bring(files)
        terms = f", license {model.terms}" if model.terms else ""
        source = f"{self._address}/{ref.name}/tree/{model.commit}{terms}"
        return ModelCard(ref=pinned, files=staging.files, entry=entry, source=source)

    def search(self, text: str, *, limit: int) -> Sequence[Offer]:
        """Search the Hub; what is fetched most often comes first."""
        self._require_network(f"searching {self._address}")
        with self._asking(f"models like {text!r}") as hub:
            found = read_found(hub.ask("search", query=text, limit=limit), "models")
        offers = []
        for model in found:
            known = [tag for tag in ("gguf", "safetensors") if tag in model.tags]
            parts = [model.task or "", *known, "gated" if model.gated else ""]
            try:
                ref = self.canonical(ModelRef(scheme=self._scheme, name=model.name))
            except InvalidReferenceError:
                continue  # a name that could not be asked for
            offers.append(
                Offer(
                    ref=ref,
                    description=", ".join(part for part in parts if part),
                    downloads=model.downloads,
                    updated_at=model.updated,
                )
            )
        return offers

    def whoami(self, token: str) -> str:
        """Name the account that a token belongs to.

        Raises:
            AuthenticationError: To none.
            RegistryUnreachableError: The Hub did not answer.
            OfflineError: The settings forbid the network.
        """
        self._require_network("checking a token")
        with self._asking("the token", token=token) as hub:
            name = hub.ask("whoami")
        if not isinstance(name, str):
            raise RegistryAnswerError("the Hub names the account of the token with no text")
        return name

    def status(self) -> RegistryStatus:
        """Ask the Hub who the user is; where there is no token, whether it answers."""
        token = None
        try:
            token = self._connection.token(self._scheme)
            self._require_network(f"asking {self._address}")
            with self._asking("nothing") as hub:
                hub.ask("ping" if token is None else "whoami")
        except HyprstreamError as error:
            problem: HyprstreamError | None = error
        else:
            problem = None
        return RegistryStatus(
            scheme=self._scheme,
            address=self._address,
            state=_state(problem),
            authenticated=token is not None,
            problem=None if problem is None else str(problem),
        )

    @contextmanager
    def _asking(
        self, what: str, *, name: str = "", token: str | None = None
    ) -> Iterator[HubProcess]:
        token = token or self._connection.token(self._scheme)
        try:
            with HubProcess(self._connection.environ, self._address, token, idle_s=_IDLE_S) as hub:
                yield hub
        except HubFailureError as failure:
            login = f"hyprstream auth login --provider {self._scheme}"
            asked = Asked(
                what=what, page=f"{self._address}/{name}", login=login, has_token=token is not None
            )
            raise to_error(failure, asked) from failure

    def _require_network(self, what: str) -> None:
        self._connection.require_network(what)
        for variable in environment.OFFLINE:
            if environment.is_set(self._environ, variable):
                raise OfflineError(
                    f"{what} needs the network, and {variable} is set",
                    hint=f"Unset {variable}, or use what `hyprstream model list` shows.",
                )


def _state(problem: HyprstreamError | None) -> RegistryState:
    match problem:
        case None:
            return "ready"
        case OfflineError():
            return "offline"
        case AccessError():
            return "unauthorized"
        case _:
            return "unreachable"


def _chosen(
    ref: ModelRef, model: HubModel, patterns: Sequence[str]
) -> tuple[dict[str, HubFile], str]:
    """Choose the files to fetch: the names they shall have, and which of them is the model."""
    listed = {file.name: file for file in model.files}
    choice = choose(ref.name, list(listed), tag=ref.tag, patterns=patterns)
    entry = PurePosixPath(choice.entry).name if choice.entry else ""
    files = {entry if name == choice.entry else name: listed[name] for name in choice.names}
    if len(files) > _MAX_FILES:
        raise UnsupportedError(f"{ref} has {len(files):,} files, more than {_MAX_FILES:,}")
    for name, file in files.items():
        if file.sha256 is None and file.git_sha1 is None:
            raise RegistryAnswerError(f"the Hub tells no hash of {file.name} of {ref}")
        check_file_name(name)
        if file.size_bytes > _MAX_FILE_BYTES:
            raise UnsupportedError(
                f"{file.name} of {ref} has {file.size_bytes:,} bytes, and the Hub gives out no "
                f"more than {_MAX_FILE_BYTES:,} in one piece over HTTP",
                hint="Look for the model in several smaller files.",
            )
    return files, entry
