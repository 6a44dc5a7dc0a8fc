"""`http://localhost[:port]/path[#sha256=...]`: models on a web server of this machine."""

from hyprstream.catalog.addresses import AddressRegistry
from hyprstream.catalog.connection import Connection


def connect(connection: Connection) -> AddressRegistry:
    """Make the registry; the option `url` names a server that all its names are on."""
    return AddressRegistry(connection)
