"""What a gateway counts. `limits.py` has what it allows; every limit has its counter here."""

from __future__ import annotations

import msgspec


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
