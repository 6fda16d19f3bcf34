"""The load of the fault rows (behaviour 5.5) and the checkers of their invariants (5.4).

Rooms with sockets that send numbered messages; each is written, answered with the room's running number, and told to every
socket of the room. So each socket must see every number from its joining on, in order, once: that one sequence carries
most invariants. Sockets have attachments, rooms set alarms, objects sleep soon. What a client, the gateway and the
program saw of each socket's end is joined at the end.
"""

import json
import random
import selectors
import threading
import time
from collections import Counter
from pathlib import Path

from conftest import write_app
from roost.testing import HandshakeRefused, wait_for

SOURCE = """
import json, time
from js import WebSocketPair
from workers import DurableObject, Response, WorkerEntrypoint

VERSION = 0

class Room(DurableObject):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        sql = ctx.storage.sql
        sql.exec("CREATE TABLE IF NOT EXISTS seen (id TEXT)")
        sql.exec("CREATE TABLE IF NOT EXISTS joined (socket TEXT)")
        sql.exec("CREATE TABLE IF NOT EXISTS ended (socket TEXT, how TEXT)")
        sql.exec("CREATE TABLE IF NOT EXISTS alarms (due REAL, fired REAL)")

    async def fetch(self, request):
        sql = self.ctx.storage.sql
        if not request.headers.get("Upgrade"):
            return Response.json({
                "seen": [row.id for row in sql.exec("SELECT id FROM seen")],
                "joined": [row.socket for row in sql.exec("SELECT socket FROM joined")],
                "ended": [[row.socket, row.how] for row in sql.exec("SELECT socket, how FROM ended")],
                "alarms": [[row.due, row.fired] for row in sql.exec("SELECT due, fired FROM alarms")],
                "open": [ws.deserializeAttachment()["id"] for ws in self.ctx.getWebSockets()],
            })
        name = request.url.split("?id=")[1]
        client, server = WebSocketPair.new()
        server.serializeAttachment({"id": name})
        self.ctx.acceptWebSocket(server)
        sql.exec("INSERT INTO joined VALUES (?)", name)
        return Response(None, status=101, web_socket=client)

    async def webSocketMessage(self, ws, message):
        kind, name = json.loads(message)
        if kind == "flood":
            for number in range(200):
                ws.send(json.dumps(["flood", "x" * 10000]))
            return
        self.ctx.storage.sql.exec("INSERT INTO seen VALUES (?)", name)
        n = (await self.ctx.storage.get("n") or 0) + 1
        await self.ctx.storage.put("n", n)
        if kind == "alarm" and await self.ctx.storage.getAlarm() is None:
            due = int(time.time() * 1000) + 300
            await self.ctx.storage.setAlarm(due)
            await self.ctx.storage.put("due", due)
        text = json.dumps(["news", n, name])
        for other in self.ctx.getWebSockets():
            if other is not ws:
                try:
                    other.send(text)
                except Exception:
                    pass
        ws.send(json.dumps(["ack", n, name, ws.deserializeAttachment()["id"], VERSION]))

    def ended(self, ws, how):
        self.ctx.storage.sql.exec("INSERT INTO ended VALUES (?, ?)", ws.deserializeAttachment()["id"], how)

    async def webSocketClose(self, ws, code, reason, clean):
        self.ended(ws, f"close {code}")

    async def webSocketError(self, ws, error):
        self.ended(ws, "error")

    async def alarm(self, info):
        due = await self.ctx.storage.get("due")
        self.ctx.storage.sql.exec("INSERT INTO alarms VALUES (?, ?)", due, time.time() * 1000)

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        path = request.url.split("/", 3)[3]
        if path == "version":
            return Response(str(VERSION))
        return await self.env.ROOM.getByName(path.split("?")[0]).fetch(request)
"""

SETTINGS = """
[hibernation]
idle_s = 0.3
[timeouts]
restart_pause_s = 0.5
close_s = 2.0
"""


def write_rooms(folder: Path, version: int = 0, mutant: str = "", settings: str = SETTINGS) -> Path:
    source = SOURCE.replace("VERSION = 0", f"VERSION = {version}")
    return write_app(folder, mutant + source, "Room", settings=settings)


class Faults(Exception):
    """What the checkers found; each line names its invariant."""


class Client:
    """One socket after the other under one name: what it sent, what it saw."""

    def __init__(self, number, room):
        self.number, self.room = number, room
        self.incarnation = 0
        self.sent = 0
        self.ws = None
        self.waiting_for = None  # the id of the message in flight
        self.began = 0.0
        self.last_n = None
        self.acked = []
        self.unsure = []  # in flight when the socket ended
        self.ended = []  # names of sockets that are over, and how we know

    @property
    def name(self):
        return f"{self.number}.{self.incarnation}"


class Load:
    """`sockets` clients over `rooms` rooms, driven by one thread from `start` to `stop`; `check` judges what they saw."""

    def __init__(self, node, *, rooms=20, sockets=100, seed=1, alarms=True, strict=True):
        self.node = node
        self.random = random.Random(seed)
        self.rooms = [f"room-{number}" for number in range(rooms)]
        self.clients = [Client(number, self.rooms[number % rooms]) for number in range(sockets)]
        self.alarms = alarms
        # Not strict: what one socket's message says to sockets at *another* gateway may be missed or repeated if the host
        # dies between its writes to the two (architecture, "As built").
        self.strict = strict
        self.missed = self.repeated = 0
        self.pauses_s = []  # from sending to the answer
        self.told = {room: set() for room in self.rooms}  # what any socket of it heard of
        self.versions = Counter()
        self.found = []  # what is wrong, as it is seen
        self.closes = Counter()
        self.paused = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._stop = threading.Event()
        self._idle = threading.Event()
        self._thread = None
        self._error = None
        self.peak_bytes = {}

    # the clients

    def start(self):
        for client in self.clients:
            self._join(client)
        self._thread = threading.Thread(target=self._run, name="load")
        self._thread.start()
        return self

    def _join(self, client):
        """Connect, as long as it takes: a gateway may be down."""
        deadline = time.monotonic() + 60
        while not self._stop.is_set():
            client.incarnation += 1
            try:
                client.ws = self.node.connect(f"/{client.room}?id={client.name}", timeout_s=60)
                break
            except (OSError, HandshakeRefused):
                client.ended.append((client.name, "never joined"))
                if time.monotonic() > deadline:
                    raise
                self._stop.wait(0.05)
        else:
            return  # nobody wants it any more
        client.last_n = None
        client.waiting_for = None
        self._selector.register(client.ws.sock, selectors.EVENT_READ, client)

    def _say(self, client):
        client.sent += 1
        client.waiting_for = f"{client.number}:{client.sent}"
        client.began = time.monotonic()
        kind = "alarm" if self.alarms and self.random.random() < 0.02 else "say"
        client.ws.send(json.dumps([kind, client.waiting_for]))

    def _lost(self, client, how):
        self.closes[how] += 1
        self._selector.unregister(client.ws.sock)
        client.ws.abort()
        client.ended.append((client.name, how))
        if client.waiting_for is not None:
            client.unsure.append(client.waiting_for)
            client.waiting_for = None
        client.ws = None

    def _heard(self, client, message):
        kind, *rest = json.loads(message)
        if kind == "flood":
            return
        n, name = rest[0], rest[1]
        self.told[client.room].add(name)
        if client.last_n is not None and n != client.last_n + 1 and not self.strict and kind == "news":
            self.missed += n > client.last_n
            self.repeated += n <= client.last_n
        elif client.last_n is not None and (n != client.last_n + 1 if self.strict else n <= client.last_n):
            self.found.append(f"I6: {client.name} in {client.room} saw {n} ({kind} {name}) after {client.last_n}")
        client.last_n = n if client.last_n is None or self.strict else max(n, client.last_n)
        if kind == "ack":
            if name != client.waiting_for:
                self.found.append(f"I6: {client.name} waited for {client.waiting_for} and got the answer to {name}")
            if rest[2] != client.name:
                self.found.append(f"I8: the attachment of {client.name} is {rest[2]}")
            client.acked.append(name)
            client.waiting_for = None
            self.pauses_s.append(time.monotonic() - client.began)
            self.versions[rest[3]] += 1

    def _run(self):
        try:
            while not self._stop.is_set():
                for client in self.clients:
                    if client.ws is None:
                        self._join(client)
                for client in self.clients:
                    if client.ws is not None and client.waiting_for is None and not self.paused.is_set():
                        try:
                            self._say(client)
                        except OSError:
                            self._lost(client, "broken while sending")
                            break
                if self.paused.is_set() and not any(client.waiting_for for client in self.clients):
                    self._idle.set()
                else:
                    self._idle.clear()
                for key, _ in self._selector.select(0.05):
                    client = key.data
                    if client.ws is None or key.fileobj is not client.ws.sock:
                        continue
                    try:
                        self._heard(client, client.ws.recv(30))
                        while client.ws._events:
                            self._heard(client, client.ws.recv(30))
                    except (OSError, ConnectionError) as error:
                        self._lost(client, str(error)[:30])
        except Exception as error:
            self._error = error

    def answers(self):
        return sum(len(client.acked) for client in self.clients)

    def go_on(self, answers, timeout_s=60):
        """Until so many more messages have been answered."""
        goal = self.answers() + answers
        wait_for(lambda: self._error or self.answers() >= goal, "the load stands still", timeout_s)
        if self._error:
            raise self._error
        self.sample()

    def sample(self):
        for name, pid in self.node.status()["pids"].items():
            try:
                with open(f"/proc/{pid}/smaps_rollup") as file:
                    size = next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
            except (OSError, StopIteration):
                continue
            self.peak_bytes[name] = max(self.peak_bytes.get(name, 0), size)

    def rest(self, timeout_s=60):
        """The quiet phase: nobody speaks; every answer has come."""
        self.paused.set()
        self._idle.clear()
        try:
            wait_for(lambda: self._error or self._idle.is_set(), timeout_s=timeout_s)
        except AssertionError:
            silent = [(c.name, c.room, c.waiting_for, c.last_n, c.sent) for c in self.clients if c.waiting_for is not None]
            raise Faults(f"I10: no answer within {timeout_s:g} s: {silent[:5]} ({len(silent)}); {self.found[:5]}") from None
        if self._error:
            raise self._error

    def speak(self):
        self.paused.clear()

    def stop(self):
        """End the load's thread; sockets stay open."""
        self._stop.set()
        self._thread.join(90)
        assert not self._thread.is_alive()
        if self._error:
            raise self._error

    def close(self):
        self._stop.set()
        if self._thread is not None:
            self._thread.join(90)
        for client in self.clients:
            if client.ws is not None:
                client.ws.abort()
        self._selector.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # the checkers

    def check(self, *, max_memory_bytes=400 * 1024 * 1024, rest_s=60):
        """Judge the whole run; raises Faults with everything that is wrong."""
        self.rest(rest_s)
        self.stop()
        found = list(self.found)
        wait_for(self._no_ends_pending, "close events are missing (I7)", 40)
        for room in self.rooms:
            found += self._check_room(room)
        report = self.node.status()
        waiting = sum(gateway["unfinished"] for gateway in report["gateways"] if gateway)
        if waiting:
            found.append(f"I14: {waiting} events are still unfinished")
        open_now = sum(client.ws is not None for client in self.clients)
        if self.node.counter("sockets") != open_now:
            found.append(f"I14: the gateways hold {self.node.counter('sockets')} sockets, the clients {open_now}")
        found += [f"I12: {name} had {size >> 20} MiB" for name, size in self.peak_bytes.items() if size > max_memory_bytes]
        if found:
            few = [entry for kind in sorted({entry[:3] for entry in found}) for entry in
                   [each for each in found if each.startswith(kind)][:5]]  # fmt: skip
            raise Faults("\n".join(few) + f"\n({len(found)} in all)")

    def _state(self, room):
        return json.loads(self.node.get(f"/{room}")[2])

    def _no_ends_pending(self):
        """Every socket that joined and is over has been told of."""
        states = {room: self._state(room) for room in self.rooms}
        for client in self.clients:
            state = states[client.room]
            ended = {name for name, _ in state["ended"]}
            over = {name for name, _ in client.ended if name in state["joined"]}
            if over - ended:
                return False
        return True

    def _check_room(self, room):
        found = []
        state = self._state(room)
        clients = [client for client in self.clients if client.room == room]
        seen = Counter(state["seen"])
        acked = {name for client in clients for name in client.acked}
        unsure = {name for client in clients for name in client.unsure}
        if lost := acked - set(seen):
            found.append(f"I1: {room} has lost {sorted(lost)[:3]} ({len(lost)})")
        if unwritten := self.told[room] - set(seen):
            found.append(f"I5: {room} spoke of {sorted(unwritten)[:3]} and has not written it ({len(unwritten)})")
        if doubled := [name for name, times in seen.items() if times > 1]:
            found.append(f"I2: {room} counts {doubled[:3]} more than once ({len(doubled)})")
        if invented := set(seen) - acked - unsure:
            found.append(f"I2: {room} has {sorted(invented)[:3]}, which nobody sent ({len(invented)})")
        ended = Counter(name for name, _ in state["ended"])
        over = {name for client in clients for name, _ in client.ended}
        if twice := [name for name, times in ended.items() if times > 1]:
            found.append(f"I7: {room} heard of the end of {twice[:3]} more than once ({len(twice)})")
        alive = {client.name for client in clients if client.ws is not None}
        if wrong := alive & set(ended):
            found.append(f"I7: {room} heard of the end of {sorted(wrong)[:3]}, which are open")
        if missing := (over & set(state["joined"])) - set(ended):
            found.append(f"I7: {room} never heard of the end of {sorted(missing)[:3]} ({len(missing)})")
        if alive != set(state["open"]):
            found.append(f"I8: {room} knows {sorted(set(state['open']) ^ alive)[:3]} otherwise than the clients")
        for due, fired in state["alarms"]:
            if fired < due - 1:
                found.append(f"I9: an alarm of {room} fired {due - fired:.0f} ms early")
        return found

    def p99_s(self, since=0):
        """Of the answers after the first `since`: 99 % of the time that clients waited was in waits no longer than this.

        Weighed by time, as a client that waits asks nothing more: by number, the quick answers beside a stall hide it.
        """
        ordered = sorted(self.pauses_s[since:])
        left_s = 0.99 * sum(ordered)
        for pause_s in ordered:
            left_s -= pause_s
            if left_s <= 0:
                return pause_s
        return 0.0

    def check_others(self, quiet_s, since):
        """I13: those whom a fault does not concern wait at most twice as long as in quiet (or 0.1 s: the machine's own)."""
        during_s = self.p99_s(since)
        if during_s > max(2 * quiet_s, 0.1):
            raise Faults(f"I13: the others' p99 is {during_s:.3f} s; in quiet {quiet_s:.3f} s")
        return during_s
