"""The node's settings: `roost.toml`, or `[tool.roost]` of `pyproject.toml`. `docs/reference/settings.md` is their page.

Every setting has a default and its unit in its name. Unknown sections and keys are errors with the nearest name.
"""

from __future__ import annotations

import os
import tomllib
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from roost.config_values import nearest
from roost.errors import ConfigError
from roost.gateway.io.access import Access
from roost.gateway.io.tls import ServerTls
from roost.gateway.limits import SAME_HOST, GatewayLimits
from roost.protocol.http import HeadLimits

if TYPE_CHECKING:
    from pathlib import Path


class Limits(msgspec.Struct, frozen=True):
    """`[limits]`: what one client or one object may use."""

    max_message_bytes: int = 1024 * 1024
    max_outbound_bytes: int = 1024 * 1024
    max_connections: int = 0
    max_connections_per_address: int = 0
    max_head_bytes: int = 32 * 1024
    max_headers: int = 100
    max_body_bytes: int = 100 * 1024 * 1024
    max_pings_per_s: int = 100
    max_dials: int = 1000
    max_waiting_requests: int = 1024
    max_unfinished_events: int = 16384
    max_unfinished_bytes: int = 64 * 1024 * 1024
    max_open_databases: int = 1000
    max_live_objects: int = 10_000
    max_sockets_per_object: int = 32_768
    max_queued_events: int = 8192
    max_fetch_connections: int = 1000
    max_rpc_stubs: int = 100_000
    slow_reader: Literal["close", "drop_oldest"] = "close"
    cpu_ms: int = 30_000
    class_cpu_ms: dict[str, int] = {}
    max_tls_pumps: int = 3
    max_host_memory_bytes: int = 0


class Timeouts(msgspec.Struct, frozen=True):
    """`[timeouts]`, in seconds."""

    head_s: float = 10.0
    idle_http_s: float = 75.0
    close_s: float = 5.0
    dial_s: float = 10.0
    host_wait_s: float = 10.0
    drain_s: float = 10.0
    drain_spread_s: float = 2.0
    restart_pause_s: float = 5.0
    deploy_grace_s: float = 5.0
    replaced_host_s: float = 30.0
    host_silence_s: float = 3.0
    gateway_silence_s: float = 60.0
    tcp_keepalive_s: int = 20
    tcp_timeout_s: int = 20


class Hibernation(msgspec.Struct, frozen=True):
    """`[hibernation]`."""

    idle_s: float = 10.0
    io_pin_s: float = 900.0


class Storage(msgspec.Struct, frozen=True):
    """`[storage]`: what objects may take of the disk besides what they store."""

    max_log_bytes: int = 16 * 1024 * 1024
    max_node_log_bytes: int = 1024 * 1024 * 1024
    min_free_bytes: int = 64 * 1024 * 1024
    max_cache_bytes: int = 256 * 1024 * 1024


class Network(msgspec.Struct, frozen=True):
    """`[network]`: who may connect, and through what."""

    allowed_origins: tuple[str, ...] = (SAME_HOST,)
    trusted_proxies: tuple[str, ...] = ()
    compression: bool = True
    compression_level: int = 6
    compress_min_bytes: int = 256
    compress_max_bytes: int = 1024 * 1024
    busy_poll_us: int = 100
    tls_cert: str = ""
    tls_key: str = ""


class Asgi(msgspec.Struct, frozen=True):
    """`[asgi]`: apps of ASGI frameworks."""

    startup_s: float = 30.0
    hosts: Literal["one", "all"] = "one"


class Settings(msgspec.Struct, frozen=True):
    """All of it."""

    network: Network = Network()
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    hibernation: Hibernation = Hibernation()
    storage: Storage = Storage()
    asgi: Asgi = Asgi()

    def gateway_limits(self) -> GatewayLimits:
        """What of it a gateway needs."""
        limits, timeouts = self.limits, self.timeouts
        return GatewayLimits(
            head=HeadLimits(limits.max_head_bytes, limits.max_headers),
            head_timeout_s=timeouts.head_s,
            idle_timeout_s=timeouts.idle_http_s,
            close_timeout_s=timeouts.close_s,
            dial_timeout_s=timeouts.dial_s,
            host_wait_s=timeouts.host_wait_s,
            max_body_bytes=limits.max_body_bytes,
            max_message_bytes=limits.max_message_bytes,
            max_outbound_bytes=limits.max_outbound_bytes,
            max_connections=limits.max_connections,
            max_connections_per_address=limits.max_connections_per_address,
            max_waiting_requests=limits.max_waiting_requests,
            max_unfinished_events=limits.max_unfinished_events,
            max_unfinished_bytes=limits.max_unfinished_bytes,
            max_dials=limits.max_dials,
            max_pings_per_s=limits.max_pings_per_s,
            drop_oldest=limits.slow_reader == "drop_oldest",
            tcp_keepalive_s=timeouts.tcp_keepalive_s,
            tcp_timeout_s=timeouts.tcp_timeout_s,
            drain_spread_s=timeouts.drain_spread_s,
            allowed_origins=self.network.allowed_origins,
            trusted_proxies=self.network.trusted_proxies,
            compression=self.network.compression,
            compression_level=self.network.compression_level,
            compress_min_bytes=self.network.compress_min_bytes,
            compress_max_bytes=self.network.compress_max_bytes,
            busy_poll_us=self.network.busy_poll_us,
        )


_SMALLEST_LOG_BYTES = 1024 * 1024
_LARGEST_MESSAGE_BYTES = 32 * 1024 * 1024


def read_settings(folder: Path) -> Settings:
    """The settings beside an app; the defaults if it has none. Raises ConfigError naming file and key."""
    own = folder / "roost.toml"
    project = folder / "pyproject.toml"
    for path in (own, project):
        if not path.is_file():
            continue
        try:
            raw = tomllib.loads(path.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise ConfigError(f"{path}: cannot be read: {error}") from error
        if path == project:
            raw = raw.get("tool", {}).get("roost")
            if raw is None:
                continue
        return parse_settings(raw, str(path))
    return Settings()


def with_tls(settings: Settings, folder: Path, cert: str | None, key: str | None) -> Settings:
    """The settings with the command line's certificate; paths of the settings' own are relative to `folder`. Raises
    ConfigError."""
    network = settings.network
    if (cert is None) != (key is None):
        raise ConfigError("--tls-cert and --tls-key go together.", key="--tls-cert")
    if cert is not None and key is not None:
        network = msgspec.structs.replace(network, tls_cert=os.path.abspath(cert), tls_key=os.path.abspath(key))
    elif network.tls_cert:
        network = msgspec.structs.replace(
            network, tls_cert=str((folder / network.tls_cert).resolve()), tls_key=str((folder / network.tls_key).resolve())
        )
    if network.tls_cert:
        ServerTls(network.tls_cert, network.tls_key)
    return msgspec.structs.replace(settings, network=network)


def parse_settings(raw: dict[str, Any], where: str) -> Settings:
    """Settings from their mapping. Raises ConfigError naming the key, with the nearest known one."""
    sections = {field.name: field for field in msgspec.structs.fields(Settings)}
    for section, values in raw.items():
        if section not in sections:
            raise ConfigError(f"{where}: unknown section [{section}].{nearest(section, list(sections))}", key=section)
        known = [field.name for field in msgspec.structs.fields(sections[section].type)]
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: [{section}] must be a table.", key=section)
        for key in values:
            if key not in known:
                raise ConfigError(f"{where}: unknown setting {section}.{key}.{nearest(key, known)}", key=f"{section}.{key}")
    try:
        settings = msgspec.convert(raw, Settings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from error
    for section in sections:
        for key, value in msgspec.structs.asdict(getattr(settings, section)).items():
            if isinstance(value, int | float) and value < 0:
                raise ConfigError(f"{where}: {section}.{key} must not be negative.", key=f"{section}.{key}")
    if not 1 <= settings.limits.max_message_bytes <= _LARGEST_MESSAGE_BYTES:
        raise ConfigError(
            f"{where}: limits.max_message_bytes must be between 1 and {_LARGEST_MESSAGE_BYTES} (32 MiB).",
            key="limits.max_message_bytes",
        )
    try:
        Access(settings.network.allowed_origins, settings.network.trusted_proxies)
    except ValueError as error:
        raise ConfigError(f"{where}: network: {error}.", key="network") from error
    if bool(settings.network.tls_cert) != bool(settings.network.tls_key):
        raise ConfigError(f"{where}: network.tls_cert and network.tls_key go together.", key="network.tls_cert")
    if not 1 <= settings.network.compression_level <= 9:
        raise ConfigError(f"{where}: network.compression_level must be between 1 and 9.", key="network.compression_level")
    at_least_one = ("live_objects", "sockets_per_object", "queued_events", "fetch_connections", "rpc_stubs")
    for key in (f"max_{name}" for name in at_least_one):
        if not getattr(settings.limits, key):
            raise ConfigError(f"{where}: limits.{key} must be at least 1.", key=f"limits.{key}")
    for key, cpu_ms in (("cpu_ms", settings.limits.cpu_ms), *settings.limits.class_cpu_ms.items()):
        if cpu_ms < 50:
            name = key if key == "cpu_ms" else f"class_cpu_ms.{key}"
            raise ConfigError(f"{where}: limits.{name} must be at least 50.", key=f"limits.{name}")
    for key in ("max_log_bytes", "max_node_log_bytes"):
        if getattr(settings.storage, key) < _SMALLEST_LOG_BYTES:
            raise ConfigError(
                f"{where}: storage.{key} must be at least {_SMALLEST_LOG_BYTES} (1 MiB).", key=f"storage.{key}"
            )
    if not settings.limits.max_open_databases:
        raise ConfigError(f"{where}: limits.max_open_databases must be at least 1.", key="limits.max_open_databases")
    return settings
