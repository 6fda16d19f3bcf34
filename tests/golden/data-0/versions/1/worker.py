from datetime import UTC, datetime

from workers import DurableObject, Response, WorkerEntrypoint


class Room(DurableObject):
    async def fetch(self, request):
        s = self.ctx.storage
        await s.put(
            {"number": 5, "text": "é🎉", "bytes": b"\x00\xff", "when": datetime(2026, 1, 2, tzinfo=UTC), "set": {1, 2}}
        )
        s.sql.exec("CREATE TABLE said (n INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT)")
        s.sql.exec("INSERT INTO said (text) VALUES ('one'), ('two')")
        await s.setAlarm(4_000_000_000_000)
        return Response("filled")

    async def alarm(self):
        pass


class Default(WorkerEntrypoint):
    async def fetch(self, request):
        await self.env.KV.put("key", "value")
        return await self.env.ROOM.getByName("lobby").fetch(request)
