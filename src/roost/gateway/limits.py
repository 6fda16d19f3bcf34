"""What a gateway allows. Every limit has its counter (`counters.py`); `node/settings.py` gives the values."""

from __future__ import annotations

from typing import Final

import msgspec

from roost.protocol.http import HeadLimits

SAME_HOST: Final = "same-host"  # in `allowed_origins`: pages of the host that they ask


class GatewayLimits(msgspec.Struct, frozen=True):
    """Bounds of one gateway. Sizes in bytes, times in seconds, as their names say."""

    head: HeadLimits = HeadLimits()
    head_timeout_s: float = 10.0
    idle_timeout_s: float = 75.0
    close_timeout_s: float = 5.0
    dial_timeout_s: float = 10.0
    host_wait_s: float = 10.0
    max_body_bytes: int = 100 * 1024 * 1024
    max_message_bytes: int = 1024 * 1024
    max_outbound_bytes: int = 1024 * 1024
    max_connections: int = 0  # 0: as many as the file limit allows
    max_connections_per_address: int = 0  # 0: no bound of its own
    max_waiting_requests: int = 1024
    max_unfinished_events: int = 16384
    max_unfinished_bytes: int = 64 * 1024 * 1024
    max_dials: int = 1000
    max_pings_per_s: int = 100
    compression: bool = True  # permessage-deflate with clients that offer it
    compression_level: int = 6
    compress_min_bytes: int = 256
    compress_max_bytes: int = 1024 * 1024  # larger ones would hold the others up for milliseconds
    drop_oldest: bool = False  # what a client does not read: drop its oldest messages instead of closing
    tcp_keepalive_s: int = 20
    tcp_timeout_s: int = 20
    drain_spread_s: float = 2.0
    allowed_origins: tuple[str, ...] = (SAME_HOST,)
    trusted_proxies: tuple[str, ...] = ()
    busy_poll_us: int = 0  # 0: sleep at once
