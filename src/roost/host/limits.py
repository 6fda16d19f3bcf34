"""What a host allows, and what it counts. Every limit has its counter; `node/settings.py` gives the values."""

from __future__ import annotations

import msgspec


class HostLimits(msgspec.Struct, frozen=True):
    """Bounds of one host, each at least 1."""

    max_live_objects: int = 10_000
    max_sockets_per_object: int = 32_768
    max_fetch_connections: int = 1000
    max_rpc_stubs: int = 100_000  # functions, targets and streams of its objects and requests that others hold
    max_queued_events: int = 8192  # of one object: those that wait for it, and messages whose handlers wait


class HostCounters(msgspec.Struct):
    """Totals since the host started. Read by the node; never reset."""

    events: int = 0
    requests: int = 0
    wakes: int = 0
    sleeps: int = 0
    sleeps_early: int = 0  # to make room for others (`max_live_objects`)
    wakes_refused: int = 0  # no room: every object in memory is busy
    sockets_refused: int = 0  # `max_sockets_per_object`
    events_shed: int = 0  # `max_queued_events`
    fetches: int = 0
    fetches_refused: int = 0  # `max_fetch_connections`
    rates_uncounted: int = 0  # `limit()` of more than 100,000 keys in a period
    kv_refused: int = 0  # more than 1,000 KV operations waited
    cache_hits: int = 0
    cache_misses: int = 0
    cache_evictions: int = 0  # responses that made room (`storage.max_cache_bytes`)
    cache_refused: int = 0  # more than 1,000 operations of `caches` waited
    cache_failures: int = 0  # its file could not be read or written
    rpc_stubs: int = 0  # functions, targets and streams that were passed to others
    rpc_stubs_held: int = 0  # how many of those there are now
    rpc_stubs_refused: int = 0  # `max_rpc_stubs`, or more than 1,000 of an object or request
    rpc_stubs_expired: int = 0  # nobody has said any more that he holds them
    events_unknown: int = 0
    events_given_up: int = 0  # an earlier host hung in them
    events_quarantined: int = 0  # of objects that are not woken any more; requests, too
    answers_unsaid: int = 0  # to gateways that were away for too long
    events_known: int = 0  # given again, though an earlier host had finished them
    tasks: int = 0
    alarms: int = 0
    calls: int = 0
