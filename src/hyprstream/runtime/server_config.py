"""What a user can set of the server: where it listens, whom it lets in, how much it takes.

Plain data, no torch.
"""

from dataclasses import dataclass
from typing import Literal

from hyprstream.errors import InvalidSettingsError
from hyprstream.refs import is_loopback

TlsVersion = Literal["1.2", "1.3"]
LogFormat = Literal["text", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The section `[server]` of the settings."""

    host: str = "127.0.0.1"
    """Address to listen at. Beyond this machine a key is needed."""
    port: int = 8080
    """Port to listen at; 0 takes a free one."""
    flight_port: int | None = None
    """Port of Arrow Flight SQL, at the same address; 0 takes a free one, and none serves none."""
    model_name: str = ""
    """What clients call the model; empty takes the last part of its reference."""
    models: tuple[str, ...] = ()
    """Further models, loaded when they are asked for."""
    max_loaded: int = 2
    """Most models in memory at a time, the first one among them."""
    keep_loaded_s: float = 300.0
    """How long a further model stays in memory without a request; 0 keeps it for ever."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that clients may address the server by, besides those of this machine."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may use the server, as `https://chat.example`."""
    tls_cert: str = ""
    """File of the certificate chain; empty serves without TLS."""
    tls_key: str = ""
    """File of its private key."""
    tls_client_ca: str = ""
    """File of the authorities whose certificates clients must show; empty asks for none."""
    tls_min_version: TlsVersion = "1.2"
    """Lowest version of TLS."""
    log_format: LogFormat = "text"
    """Form of the log on stderr: lines for people, or a JSON object on each."""
    trace_endpoint: str = ""
    """Where traces go, as OTLP over HTTP: `http://127.0.0.1:4318/v1/traces`; empty sends none."""
    trace_share: float = 1.0
    """Share of requests that are traced, 0 to 1, where the caller has not decided."""
    max_body_bytes: int = 4 << 20
    """Longest body of a request."""
    max_upload_bytes: int = 1 << 30
    """Longest adapter that is sent in."""
    max_answers: int = 16
    """Most answers to one request, over all its prompts."""
    max_tokens: int = 0
    """Most tokens of an answer; 0 leaves it to the context."""
    max_schema_bytes: int = 32_768
    """Longest JSON schema of an answer, and longest one of all tools together."""
    max_concurrent: int = 256
    """Most requests of one key at a time."""
    max_per_minute: int = 0
    """Most requests of one key in a minute; 0 counts none."""
    max_metric_adapters: int = 100
    """Most adapters that `/metrics` tells by their names."""
    max_connections: int = 1024
    """Most connections at a time."""
    header_timeout_s: float = 10.0
    """Longest that the head of a request may take to arrive."""
    body_timeout_s: float = 60.0
    """Longest that its body may take."""
    write_timeout_s: float = 60.0
    """Longest that a client may leave an answer unread."""
    ping_s: float = 15.0
    """A stream that is silent for so long gets a comment, so that it is not taken for dead."""
    drain_s: float = 30.0
    """How long answers under way may go on after the server was told to end."""

    def __post_init__(self) -> None:
        """Reject values outside their range.

        Raises:
            InvalidSettingsError: A field is wrong, or two contradict each other.
        """
        self._check_ports()
        for name, low in _LOWEST.items():
            if getattr(self, name) < low:
                raise _wrong(name, getattr(self, name), f"{low} or more")
        for name in _ABOVE_0:
            if not getattr(self, name) > 0:
                raise _wrong(name, getattr(self, name), "a number of seconds above 0")
        self._check_together()

    def _check_together(self) -> None:
        """Reject values that contradict others."""
        if bool(self.tls_cert) != bool(self.tls_key):
            raise _wrong("tls_key", self.tls_key, "the key of tls_cert, or leave out both")
        if self.tls_client_ca and not self.tls_cert:
            raise _wrong("tls_client_ca", self.tls_client_ca, "empty, or give tls_cert as well")
        if self.models and self.max_loaded < 2:  # the first, and one more
            raise _wrong("max_loaded", self.max_loaded, "2 or more, to serve further models")
        if not 0 <= self.trace_share <= 1:
            raise _wrong("trace_share", self.trace_share, "a number from 0 to 1")
        if "*" in self.cors_origins:
            raise _wrong("cors_origins", "*", "a list of the origins that are meant")

    def _check_ports(self) -> None:
        for name, port in (("port", self.port), ("flight_port", self.flight_port or 0)):
            if not 0 <= port <= 65_535:
                raise _wrong(name, port, "a number from 0 to 65535")
        if self.flight_port is not None and self.tls_min_version == "1.3":
            raise _wrong("tls_min_version", "1.3", "1.2: Flight cannot refuse that")

    @property
    def scheme(self) -> str:
        """`https` or `http`."""
        return "https" if self.tls_cert else "http"

    @property
    def is_local(self) -> bool:
        """Tell whether only this machine can reach the server."""
        return is_loopback(f"[{self.host}]" if ":" in self.host else self.host)


_LOWEST = {
    "max_loaded": 1,
    "keep_loaded_s": 0,
    "max_body_bytes": 1,
    "max_upload_bytes": 1,
    "max_answers": 1,
    "max_tokens": 0,
    "max_schema_bytes": 1,
    "max_concurrent": 1,
    "max_per_minute": 0,
    "max_metric_adapters": 0,
    "max_connections": 1,
}
_ABOVE_0 = ("header_timeout_s", "body_timeout_s", "write_timeout_s", "ping_s", "drain_s")


def _wrong(name: str, value: object, meaning: str) -> InvalidSettingsError:
    return InvalidSettingsError(f"server.{name} is {value!r}", hint=f"Make it {meaning}.")
