"""What a gateway allows, and what it counts. Every limit has its counter; `node/settings.py` gives the values."""

from __future__ import annotations

import msgspec

from roost.gateway.io.access import SAME_HOST
from roost.protocol.http import HeadLimits


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
    compress_max_bytes: int = 128 * 1024  # larger ones would hold the others up for milliseconds
    drop_oldest: bool = False  # what a client does not read: drop its oldest messages instead of closing
    tcp_keepalive_s: int = 20
    tcp_timeout_s: int = 20
    drain_spread_s: float = 2.0
    allowed_origins: tuple[str, ...] = (SAME_HOST,)
    trusted_proxies: tuple[str, ...] = ()
    busy_poll_us: int = 0  # 0: sleep at once


class Counters(msgspec.Struct):
    """Totals since the gateway started, and what is open now. Read by the node; never reset."""

    connections: int = 0
    accepted: int = 0
    requests: int = 0
    upgrades: int = 0
    sockets: int = 0
    hibernatable: int = 0
    inherited: int = 0  # sockets of a gateway that was killed, whose ends are told
    messages_in: int = 0
    sends: int = 0
    auto_responses: int = 0
    dials: int = 0
    upstreams_lost: int = 0  # kept ones that are dialled again
    closed_slow_reader: int = 0
    dropped_oldest: int = 0
    deflated: int = 0  # messages compressed; one to many sockets counts once
    closed_ping_flood: int = 0
    closed_head_timeout: int = 0
    closed_head_limit: int = 0
    closed_protocol_error: int = 0
    closed_too_big: int = 0
    closed_host_lost: int = 0
    closed_tls: int = 0
    refused_connections: int = 0
    refused_address: int = 0
    refused_requests: int = 0
    refused_handshakes: int = 0
    refused_origin: int = 0
    requests_again: int = 0  # that a host had been given but not begun when it ended
    refused_body: int = 0
    accept_paused: int = 0
    pongs_merged: int = 0
    events_redelivered: int = 0
    events_dropped: int = 0
    clients_held_back: int = 0
    sends_to_closed: int = 0
    busy_polls_found: int = 0  # waits that ended while the gateway stayed awake for them
    busy_polls_missed: int = 0  # those that went on asleep
