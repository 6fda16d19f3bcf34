"""host/objects/actor.py and gateway_link.py: what an object had said before its host died is said again, once, only to a
gateway that has not heard it."""

import pytest

from hosted import run_hosted, settle, until
from roost import events as e

SOURCE = """
from workers import DurableObject, Response, WorkerEntrypoint

class Room(DurableObject):
    def webSocketMessage(self, ws, message):
        n = (self.ctx.storage.kv.get("n") or 0) + 1
        self.ctx.storage.kv.put("n", n)
        ws.send(f"{message} {n}")

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        return Response("")
"""


def sends(gateway):
    return [event.payload for event in gateway.got if type(event) is e.Send]


@pytest.mark.parametrize("besides", [False, True])
@pytest.mark.parametrize("heard", [True, False])
def test_sent_again_unless_it_was_heard(tmp_path, heard, besides):
    lives = []

    async def first(host, gateway, module):
        """Its gateway hears all, but for `Done` (or nothing at all)."""
        lives.append(host.links.life)
        gateway.link.send(e.Welcome(7, 0))
        gateway.answers_rosters = True
        gateway.message(101, "a")
        await until(lambda: sends(gateway))
        assert sends(gateway) == [b"a 1"]
        await until(lambda: gateway.take(e.GroupEnd))

    async def second(host, gateway, module):
        said = {"groups_upto": 0, "groups_besides": [1]} if besides else {"groups_upto": 1}
        gateway.link.send(e.Welcome(7, 1, [1], lives[0] if heard else 0, **said))
        gateway.answers_rosters = True
        gateway.message(101, "a")  # as event 1, again
        gateway.message(101, "b")
        await until(lambda: b"b 2" in sends(gateway))
        assert sends(gateway) == ([b"b 2"] if heard else [b"a 1", b"b 2"])
        await settle()
        assert host.counters.events_known == 1

    run_hosted(tmp_path, SOURCE, first, data=tmp_path / "data")
    run_hosted(tmp_path, SOURCE, second, data=tmp_path / "data")
