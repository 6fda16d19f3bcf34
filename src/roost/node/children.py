"""A node's child processes by their places, and those that were replaced and have still something to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from roost.node.orders import Came

if TYPE_CHECKING:
    from collections.abc import Iterator

    from roost.node.child_process import ChildProcess
    from roost.node.orders import Key, Order


class Children:
    """One node's. A place is empty only before its first child is there."""

    def __init__(self, gateways: int, hosts: int) -> None:
        self.gateways: list[ChildProcess | None] = [None] * gateways
        self.hosts: list[ChildProcess | None] = [None] * hosts
        self.successors: dict[tuple[str, int], ChildProcess] = {}  # that are to take a place, by role and index
        self.left: list[ChildProcess] = []  # whose successors have everything that can be moved

    def of(self, role: str) -> list[ChildProcess | None]:
        """The places of a role."""
        return self.gateways if role == "gateway" else self.hosts

    def __iter__(self) -> Iterator[ChildProcess]:
        """Those that have a place."""
        return (child for child in (*self.gateways, *self.hosts) if child is not None)

    @property
    def are_complete(self) -> bool:
        return None not in self.gateways and None not in self.hosts

    def tell_gateways(self, order: Order) -> None:
        for gateway in self.gateways:
            if gateway is not None:
                gateway.tell(order)

    def tell_hosts(self, order: Order) -> None:
        for host in self.hosts:
            if host is not None:
                host.tell(order)

    def has_left(self, child: ChildProcess) -> None:
        """It has a successor, and goes on with what cannot be moved."""
        self.left = [each for each in self.left if not each.is_gone] + [child]

    def elsewhere(self, index: int) -> list[Key]:
        """Objects of a place that hosts which were replaced there still have."""
        name = f"host {index}"
        return [key for child in self.left if child.name == name for key in child.held]

    def came(self, index: int, objects: list[Key]) -> None:
        """A host that was replaced has let go of objects (or has ended)."""
        current = self.hosts[index]
        if current is not None and not current.is_replaced:
            current.tell(Came(objects))
