"""Who may open a WebSocket, and who a client really is behind a proxy. Plain decisions; owns nothing.

Browsers send cookies with any WebSocket handshake, whatever page asks for it (cross-site WebSocket hijacking), so the
`Origin` of a handshake is checked before the worker sees it. Clients that are no browsers send none and are not concerned.

Source: RFC 6455 §10.2; RFC 6454 §7; RFC 9110 §7.6.3 for what proxies add.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from roost.gateway.limits import SAME_HOST

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class Access:
    """The decisions of one gateway. Raises ValueError for what is no origin or no network."""

    def __init__(self, allowed_origins: Iterable[str] = (SAME_HOST,), trusted_proxies: Iterable[str] = ()) -> None:
        self._any = self._same_host = False
        self._origins: set[str] = set()
        self._suffixes: list[tuple[str, str]] = []  # of `https://*.example.com`: the scheme, and what the host ends with
        for origin in allowed_origins:
            if origin == "*":
                self._any = True
            elif origin == SAME_HOST:
                self._same_host = True
            elif origin == "null":
                self._origins.add(origin)
            else:
                scheme, host = _split(origin)
                if host.startswith("*."):
                    self._suffixes.append((scheme, host[1:]))
                else:
                    self._origins.add(f"{scheme}://{host}")
        self._proxies = [ipaddress.ip_network(network) for network in trusted_proxies]

    def origin_allowed(self, fields: Mapping[str, str]) -> bool:
        """Whether a handshake with these header fields, by their lower-case names, may go on."""
        origin = fields.get("origin")
        if origin is None or self._any:
            return True
        if origin == "null":
            return origin in self._origins
        try:
            scheme, host = _split(origin)
        except ValueError:
            return False
        if self._same_host and host == _without_default_port(fields.get("host", ""), scheme):
            return True
        return f"{scheme}://{host}" in self._origins or any(
            scheme == wanted and host.endswith(suffix) for wanted, suffix in self._suffixes
        )

    def is_proxy(self, peer: str) -> bool:
        """Whether that address is one of ours, whose word about its client counts."""
        if not self._proxies or not peer:
            return False
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._proxies)

    def client(self, peer: str, scheme: str, fields: Mapping[str, str]) -> tuple[str, str]:
        """The client's address and scheme: a trusted proxy's word for it, else what was seen.

        `X-Forwarded-For` is read from its end: what stands before the first address that is no proxy of ours, anybody may
        have written.
        """
        if not self.is_proxy(peer):
            return peer, scheme
        forwarded = fields.get("x-forwarded-for", "")
        client = peer
        for entry in reversed(forwarded.split(",")):
            try:
                client = str(ipaddress.ip_address(entry.strip()))
            except ValueError:
                break
            if not self.is_proxy(client):
                break
        said = fields.get("x-forwarded-proto", "").strip().lower()
        return client, said if said in _DEFAULT_PORTS else scheme


def _split(origin: str) -> tuple[str, str]:
    """Scheme and host of an origin, lower case, without the scheme's own port. Raises ValueError."""
    parts = urlsplit(origin)
    if not parts.scheme or not parts.netloc or parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(f"{origin!r} is not an origin such as https://example.com")
    return parts.scheme, _without_default_port(parts.netloc, parts.scheme)


def _without_default_port(host: str, scheme: str) -> str:
    port = _DEFAULT_PORTS.get(scheme)
    return host.lower().removesuffix(f":{port}") if port else host.lower()
