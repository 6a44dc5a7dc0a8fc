"""`s3://bucket/path[@revision]`: models in S3 and what speaks its protocol, through s3fs.

Needs `pip install 'hyprstream[s3]'`. Keys, session token, region and endpoint come from the
variables that AWS' own tools read, or from their files and services; a public bucket is read
with AWS_NO_SIGN_REQUEST=1. A registry of the user's own (`url = "s3://bucket/prefix"`) names
models below its prefix.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from hyprstream.catalog.buckets import Bucket, FileSystem
from hyprstream.catalog.card import ModelCard, Progress
from hyprstream.catalog.connection import Connection
from hyprstream.catalog.offer import Offer, RegistryStatus
from hyprstream.catalog.staging import Staging
from hyprstream.errors import (
    AccessError,
    AuthenticationError,
    HyprstreamError,
    InvalidReferenceError,
    ModelAccessDeniedError,
    ModelNotFoundError,
    RegistryUnreachableError,
    UnsupportedError,
)
from hyprstream.refs import BUCKET_SCHEME, ModelRef

_CONNECT_S = 10
_READ_S = 60
_ATTEMPTS = 4
_TRUE = frozenset({"1", "yes", "true", "on"})
_NO_KEYS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")
_KEYS = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; AWS_NO_SIGN_REQUEST=1 for public buckets."


def connect(connection: Connection) -> "S3Registry":
    """Make the registry; the option `url` names a bucket that all its names are in."""
    return S3Registry(connection)


class S3Registry:
    """Buckets. Stateless."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._environ = connection.environ
        self._scheme = connection.options.get("scheme", BUCKET_SCHEME)
        self._root = connection.options.get("url", "").removeprefix("s3://").strip("/")

    def canonical(self, ref: ModelRef) -> ModelRef:
        """Return the reference: every key is a name of its own.

        Raises:
            InvalidReferenceError: It names a bucket and nothing in it.
        """
        if not self._root and "/" not in ref.name:
            raise InvalidReferenceError(
                f"{ref} names a bucket and no model in it", hint="Write s3://bucket/path."
            )
        return ref

    def locate(self, ref: ModelRef) -> Path | None:  # noqa: ARG002 - part of the protocol
        """Return None: what is in a bucket is used from the cache only."""
        return None

    def fetch(self, ref: ModelRef, staging: Staging, progress: Progress) -> ModelCard:
        """Download the files of the model.

        Raises:
            ModelNotFoundError: There is none, or it is no longer the revision asked for.
            AccessError: The keys are missing, or do not open the bucket.
            RegistryUnreachableError: The store did not answer, or the model changed meanwhile.
            ChecksumMismatchError: A file has another length than the store said.
            StorageFullError: The disk is full.
            UnsupportedError: s3fs is not installed.
            OfflineError: The settings forbid the network.
        """
        self._connection.require_network(f"fetching {ref}")
        return self._bucket().fetch(ref, staging, progress)

    def search(self, text: str, *, limit: int) -> Sequence[Offer]:
        """Look for models below the prefix of a registry of the user's own."""
        if not self._root:
            raise UnsupportedError(
                "buckets in general cannot be searched",
                hint="Name yours in the settings, as [registries.NAME] with layout s3.",
            )
        self._connection.require_network(f"searching s3://{self._root}")
        return self._bucket().search(self._scheme, text, limit=limit)

    def status(self) -> RegistryStatus:
        """Look into the bucket of a registry of the user's own; without one, ask nobody."""
        address = f"s3://{self._root}" if self._root else self._endpoint or "AWS"
        problem = None if find_spec("s3fs") else str(_missing())
        if self._connection.offline or problem or not self._root:
            return RegistryStatus(
                scheme=self._scheme,
                address=address,
                state="offline" if self._connection.offline else "unchecked",
                authenticated=self._has_keys,
                problem=problem,
            )
        try:
            self._bucket().look()
        except HyprstreamError as error:
            denied = isinstance(error, AccessError)
            return RegistryStatus(
                scheme=self._scheme,
                address=address,
                state="unauthorized" if denied else "unreachable",
                authenticated=self._has_keys,
                problem=str(error),
            )
        return RegistryStatus(
            scheme=self._scheme, address=address, state="ready", authenticated=self._has_keys
        )

    @property
    def _endpoint(self) -> str | None:
        environ = self._environ
        return environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")

    @property
    def _has_keys(self) -> bool:
        return "AWS_ACCESS_KEY_ID" in self._environ or "AWS_PROFILE" in self._environ

    def _bucket(self) -> Bucket:
        return Bucket(_open(self._environ, self._endpoint), self._root, _as_ours)


def _open(environ: Mapping[str, str], endpoint: str | None) -> FileSystem:
    """Open the file system, of this call alone: fsspec would keep it for the whole process."""
    try:
        s3fs = import_module("s3fs")
    except ImportError as error:
        raise _missing() from error
    client: dict[str, Any] = {
        "region_name": environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    }
    with _as_ours("the store"):
        files = s3fs.S3FileSystem(
            anon=environ.get("AWS_NO_SIGN_REQUEST", "").lower() in _TRUE,
            key=environ.get("AWS_ACCESS_KEY_ID"),
            secret=environ.get("AWS_SECRET_ACCESS_KEY"),
            token=environ.get("AWS_SESSION_TOKEN"),
            profile=environ.get("AWS_PROFILE"),
            endpoint_url=endpoint,
            client_kwargs={name: value for name, value in client.items() if value},
            config_kwargs={
                "connect_timeout": _CONNECT_S,
                "read_timeout": _READ_S,
                "retries": {"max_attempts": _ATTEMPTS},
            },
            use_listings_cache=False,
            skip_instance_cache=True,
        )
    return cast("FileSystem", files)


@contextmanager
def _as_ours(path: str) -> Iterator[None]:
    """Turn what s3fs and the libraries below it raise into errors of ours."""
    try:
        yield
    except HyprstreamError:
        raise
    except FileNotFoundError as error:
        raise ModelNotFoundError(
            f"there is nothing at s3://{path}", hint="Check the name of the bucket and the path."
        ) from error
    except PermissionError as error:
        raise ModelAccessDeniedError(
            f"s3://{path} may not be read: {error}", hint="Check the keys and the bucket's policy."
        ) from error
    except Exception as error:
        if type(error).__name__ in _NO_KEYS:
            raise AuthenticationError(f"no keys for s3://{path}: {error}", hint=_KEYS) from error
        if not _is_of_the_network(error):
            raise
        raise RegistryUnreachableError(
            f"the store did not answer for s3://{path}: {error}",
            hint="Check the network, AWS_ENDPOINT_URL and the region.",
        ) from error


def _is_of_the_network(error: Exception) -> bool:
    """Tell whether an error is of the libraries below s3fs, or of a connection."""
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, OSError) or bool(modules & {"botocore", "aiobotocore", "aiohttp"})


def _missing() -> UnsupportedError:
    return UnsupportedError(
        "s3:// needs s3fs, which is not installed", hint="Run `pip install 'hyprstream[s3]'`."
    )
