"""The same worker as worker.js, line by line."""

from js import URL, Date, Headers, Request, URLSearchParams

from workers import DurableObject, Response, WorkerEntrypoint


class Lab(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        ctx.storage.put("constructor", "ran")

    async def fetch(self, request):
        storage = self.ctx.storage
        what = URL.new(request.url).pathname.split("/")[2]
        if what == "puts":
            storage.put("a", 1)
            storage.put("a", 2)
            storage.put("b", 1)
            storage.delete("b")
            storage.put({"c": 1, "d": 2})
            return Response.json(pairs(await storage.list()))
        if what == "kept":
            return Response.json(pairs(await storage.list()))
        if what == "all":
            storage.put("x", 1)
            storage.deleteAll()
            storage.put("y", 2)
            return Response.json(pairs(await storage.list()))
        if what == "alarm":
            storage.setAlarm(Date.now() + 100000)
            was_set = (await storage.getAlarm()) is not None
            storage.deleteAlarm()
            return Response.json([was_set, await storage.getAlarm()])
        if what == "many":
            for n in range(300):
                storage.put("n", n)
            return Response.json(await storage.get("n"))
        if what == "transaction":

            async def closure(txn):
                n = (await txn.get("t")) or 0
                txn.put("t", n + 1)

            storage.transaction(closure)
            return Response.json(await storage.get("t"))
        if what == "throws":
            storage.put("before", 1)
            raise Exception("on purpose")

    async def alarm(self):
        pass


def pairs(mapping):
    return [[name, value] for name, value in mapping.items()]


def headers():
    own = Headers.new({"B": "1", "a": " 2 ", "X-Empty": ""})
    own.append("b", "3")
    own.append("Set-Cookie", "x=1")
    own.append("set-cookie", "y=2")
    own.set("c", "4")
    own.append("d", "5")
    own.delete("D")
    seen = []
    own.forEach(lambda value, name, *_: seen.append([name, value]))
    return [
        pairs(own), list(own.keys()), list(own.values()), own.get("B"), own.get("none"), own.has("C"),
        own.get("set-cookie"), list(own.getSetCookie()), seen,
        pairs(Headers.new([["q", "1"], ["Q", "2"]])), pairs(Headers.new(own)),
    ]  # fmt: skip


def url(text, base):
    try:
        it = URL.new(text, base)
    except Exception as error:
        return getattr(error, "name", type(error).__name__)
    return [
        it.href, it.origin, it.username, it.password, it.host, it.hostname, it.port, it.pathname, it.search, it.hash,
        [[name, value] for name, value in it.searchParams],
    ]  # fmt: skip


def params(text):
    it = URLSearchParams.new(text)
    had = [it.get("a"), list(it.getAll("a")), it.has("b")]
    it.append("z", "ü &=+")
    it.sort()
    return [*had, it.toString(), [[name, value] for name, value in it]]


def made(text):
    try:
        return Request.new(text).url
    except Exception as error:
        return getattr(error, "name", type(error).__name__)


class Default(WorkerEntrypoint):
    async def fetch(self, request):
        pathname = URL.new(request.url).pathname
        if pathname == "/headers":
            return Response.json([pair for pair in pairs(request.headers) if pair[0].startswith("x-")])
        if pathname == "/own-headers":
            return Response.json(headers())
        if pathname == "/urls":
            return Response.json([url(text, base) for text, base in await request.json()])
        if pathname == "/requests":
            return Response.json([made(text) for text in await request.json()])
        if pathname == "/params":
            return Response.json([params(text) for text in await request.json()])
        if pathname.startswith("/lab"):
            return await self.env.LAB.getByName(pathname.split("/")[3]).fetch("http://lab/x/" + pathname.split("/")[2])
        return Response(request.url)
