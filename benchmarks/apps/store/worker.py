"""What is measured of storage: a durable counter, waking and reading, listing 10,000 keys, 1,000 inserts in one event."""

from js import WebSocketPair

from workers import DurableObject, Response, WorkerEntrypoint


class Store(DurableObject):
    async def fetch(self, request):
        what = request.url.split("/")[3]
        storage = self.ctx.storage
        if what == "ws":
            client, server = WebSocketPair.new().object_values()
            self.ctx.acceptWebSocket(server)
            return Response(None, status=101, web_socket=client)
        if what == "count":
            return Response(str(await self.count()))
        if what == "read":
            return Response(str(await storage.get("count")))
        if what == "fill":
            for start in range(0, 10_000, 100):
                await storage.put({f"key {number:06}": {"n": number} for number in range(start, start + 100)})
            return Response("filled")
        if what == "list":
            return Response(str(len(await storage.list())))
        if what == "insert":
            storage.sql.exec("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, x TEXT)")
            for number in range(1000):
                storage.sql.exec("INSERT INTO t (x) VALUES (?)", f"row {number}")
            return Response("inserted")
        return Response("?", status=404)

    async def count(self):
        count = (await self.ctx.storage.get("count") or 0) + 1
        await self.ctx.storage.put("count", count)
        return count

    async def webSocketMessage(self, ws, message):
        await self.count()
        ws.send(message)


class Default(WorkerEntrypoint):
    async def fetch(self, request):
        name = request.url.split("/")[4]
        return await self.env.STORES.getByName(name).fetch(request)
