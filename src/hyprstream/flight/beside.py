"""Flight beside HTTP: the same runtime, the same keys, the same files of TLS."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from hyprstream.flight.auth import Gate
from hyprstream.flight.listening import Tls, check_guarded
from hyprstream.flight.service import FlightService
from hyprstream.runtime.runtime import Runtime
from hyprstream.runtime.server_config import ServerConfig
from hyprstream.runtime.warehouse.desk import Desk
from hyprstream.runtime.warehouse.served import ServedBrain
from hyprstream.runtime.warehouse.tenants import open_warehouses


@asynccontextmanager
async def flight_beside(
    runtime: Runtime, gate: Gate | None, announce: Callable[[str], None]
) -> AsyncIterator[None]:
    """Serve Flight SQL with a runtime, at the port of its settings, while the context lasts.

    Args:
        runtime: Serves; its event loop is the running one.
        gate: Knows the keys; None lets everybody in.
        announce: Told the address.

    Raises:
        InvalidSettingsError: The address cannot be had, or is not to be had in this way.
        UnavailableError: Another process has the tables.
    """
    config, loop = runtime.settings.server, asyncio.get_running_loop()
    assert config.flight_port is not None, "nobody asked for it"
    tls = _tls(config)
    warehouses = await asyncio.to_thread(
        open_warehouses,
        runtime.settings,
        runtime.adapters,
        lambda name: ServedBrain(runtime, loop, name),
    )
    try:
        service = FlightService(
            warehouses,
            host=config.host,
            port=config.flight_port,
            gate=gate,
            tls=tls,
            desk=Desk(runtime, loop),
        )
        try:
            announce(f"{service.scheme}://{service.shown_host}:{service.port}")
            yield
        finally:
            # On a thread: what the service waits for comes over this loop.
            await asyncio.to_thread(service.close)
    finally:
        await asyncio.to_thread(warehouses.close)


def check_config(config: ServerConfig, gate: Gate | None) -> None:
    """Look whether Flight may listen as it is configured, before a model is loaded in vain.

    Raises:
        InvalidSettingsError: It may not.
    """
    host = f"[{config.host}]" if ":" in config.host else config.host
    check_guarded(host, has_keys=gate is not None, has_tls=bool(config.tls_cert))


def _tls(config: ServerConfig) -> Tls | None:
    if not config.tls_cert:
        return None
    client_ca = Path(config.tls_client_ca) if config.tls_client_ca else None
    return Tls(certificate=Path(config.tls_cert), key=Path(config.tls_key), client_ca=client_ca)
