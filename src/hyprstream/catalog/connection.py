"""What a registry is connected with: plain data that `runtime` hands over."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hyprstream.errors import OfflineError


def no_token(provider: str) -> str | None:  # noqa: ARG001 - as every source of tokens
    """Know no credential."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """The user's configuration, as far as registries may know it.

    Attributes:
        environ: The environment; the only one that a registry looks at.
        token: Gives the stored credential of a provider, such as `huggingface`, or None.
        options: `scheme`, that of the references; for a registry that the settings name
            also `url`, `layout` and `token_env`.
        offline: Forbids every use of the network.
    """

    environ: Mapping[str, str]
    token: Callable[[str], str | None] = field(default=no_token, repr=False)
    options: Mapping[str, str] = field(default_factory=dict)
    offline: bool = False

    def require_network(self, what: str) -> None:
        """Refuse what needs the network where it is forbidden.

        Args:
            what: What was about to be done, for the message.

        Raises:
            OfflineError: The settings say that this machine is offline.
        """
        if self.offline:
            raise OfflineError(
                f"{what} needs the network, and HYPRSTREAM_OFFLINE is set",
                hint="Unset HYPRSTREAM_OFFLINE, or use what `hyprstream model list` shows.",
            )
