"""`workers.wsgi`: Flask, Django and other WSGI apps as workers. Each request runs in a thread of its own.

`fetch` and `entrypoint` have the signatures of `asgi`. Source: PEP 3333; reference 1.2.

Long because one request's two sides, the thread's and the loop's, are read together.
"""

from __future__ import annotations

import asyncio
import contextvars
import io
import logging
import tempfile
import threading
from collections import deque
from typing import IO, TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes, urlsplit

from roost.api.entrypoint import WorkerEntrypoint
from roost.api.http import Request, Response
from roost.compat.pyodide.ffi import blocking_wait
from roost.errors import JsTypeError, OverloadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Environ = dict[str, Any]
    App = Callable[[Environ, Callable[..., Callable[[bytes], None]]], Iterable[bytes]]

_log = logging.getLogger("roost.worker")

MAX_THREADS: Final = 32  # of one host
MAX_WAITING: Final = 1_000  # requests that wait for one
_AHEAD: Final = 16  # pieces of a response body that the app may be ahead of its reader
_SPOOL_BYTES: Final = 1024 * 1024  # of a request body in memory; what is larger is on the disk
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

_loop: contextvars.ContextVar[asyncio.AbstractEventLoop] = contextvars.ContextVar("roost_wsgi_loop")


class _Threads:
    """How many requests run, and those that wait for their turn."""

    def __init__(self, at_most: int) -> None:
        self._at_most = at_most
        self.running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        """Raises OverloadError if too many wait."""
        if self.running < self._at_most:
            self.running += 1
            return
        if len(self._waiting) >= MAX_WAITING:
            raise OverloadError(f"{self._at_most} requests run in the WSGI app and {MAX_WAITING} wait; try again later.")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()
            raise

    def leave(self) -> None:
        """One has ended: the next one's turn takes its place."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1


_threads = _Threads(MAX_THREADS)
_alone = _Threads(1)


async def fetch(app: App, req: Any, env: Any, ctx: Any = None, *, serialize: bool = False) -> Response:
    """Answer a request by a WSGI app: `return await wsgi.fetch(app, request, self.env)`. `serialize`: one request at a
    time, for an app that is not made for threads."""
    request = req if isinstance(req, Request) else Request(req)
    body: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115 - the thread closes it
    threads = _alone if serialize else _threads
    entered = False
    try:
        await _spool(request, body)
        await threads.enter()
        entered = True
        exchange = _Exchange(app, build_environ(request, env, body), body, threads)
        exchange.start()  # the place and the body are the thread's from here on
    except BaseException:
        body.close()
        if entered:
            threads.leave()
        raise
    return await exchange.answer()


def entrypoint(app: App) -> type[WorkerEntrypoint]:
    """A `Default` class that serves an app: `Default = wsgi.entrypoint(app)`."""

    class Default(WorkerEntrypoint):
        async def fetch(self, request: Request) -> Response:
            return await fetch(app, request, self.env, self.ctx)

    return Default


class FromThread:
    """Something of the platform, for an app's thread: its methods are called on the host's loop, to which it belongs.

    What they return comes back; what would be awaited there has begun, and `pyodide.ffi.run_sync` waits for it.
    """

    def __init__(self, target: Any) -> None:
        self.__dict__["_target"] = target
        self.__dict__["_loop"] = _loop.get(None)

    def __del__(self) -> None:
        """What it stands for may only go where it belongs."""
        loop = self.__dict__.get("_loop")
        if loop is not None and not loop.is_closed() and asyncio._get_running_loop() is not loop:
            try:
                loop.call_soon_threadsafe(_let_go, [self.__dict__.pop("_target")])
            except RuntimeError:
                pass  # it was closed meanwhile

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _for_thread(getattr(self.__dict__["_target"], name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _on_loop(self.__dict__["_target"], args, kwargs)

    def __getitem__(self, key: Any) -> Any:
        return _for_thread(self.__dict__["_target"][key])

    def __contains__(self, key: Any) -> bool:
        return key in self.__dict__["_target"]

    def __repr__(self) -> str:
        return repr(self.__dict__["_target"])


def _let_go(last: list[Any]) -> None:
    last.clear()


class _Begun:
    """What goes on on the loop."""

    def __init__(self, task: asyncio.Future[Any]) -> None:
        self.task = task

    async def wait(self) -> Any:
        return await self.task


def _unwrapped(value: Any) -> Any:
    return value.__dict__["_target"] if isinstance(value, FromThread) else value


def _for_thread(value: Any) -> Any:
    return value if isinstance(value, _PLAIN) else FromThread(value)


_PLAIN: Final = (str, bytes, int, float, bool, type(None), list, dict, tuple, set, FromThread)


def _on_loop(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    loop = _loop.get(None)
    if loop is None or asyncio._get_running_loop() is not None:
        return function(*args, **kwargs)
    args = tuple(map(_unwrapped, args))
    kwargs = {name: _unwrapped(value) for name, value in kwargs.items()}

    async def call() -> Any:
        result = function(*args, **kwargs)
        return _Begun(asyncio.ensure_future(result)) if hasattr(result, "__await__") else result

    result = _blocking(call(), loop)
    return result if isinstance(result, _Begun) else _for_thread(result)


def _blocking(coroutine: Any, loop: asyncio.AbstractEventLoop) -> Any:
    """Run it on the loop, in the thread's context variables, and wait here."""
    variables = contextvars.copy_context()

    async def run() -> Any:
        return await asyncio.get_running_loop().create_task(coroutine, context=variables)

    return asyncio.run_coroutine_threadsafe(run(), loop).result()


def _run_sync(awaitable: Any) -> Any:
    """`pyodide.ffi.run_sync`, in an app's thread."""
    awaitable = _unwrapped(awaitable)  # a property of a stub
    coroutine = awaitable.wait() if isinstance(awaitable, _Begun) else _awaited(awaitable)
    return _for_thread(_blocking(coroutine, _loop.get()))


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


async def _spool(request: Request, body: IO[bytes]) -> None:
    if request.body is not None:
        async for piece in request.body:
            if len(piece) > _SPOOL_BYTES or body.tell() > _SPOOL_BYTES:
                await asyncio.to_thread(body.write, piece)
            else:
                body.write(piece)
    body.seek(0)


class _Errors:
    """`wsgi.errors`: lines of the worker's log."""

    def write(self, text: str) -> None:
        if text.strip():
            _log.error("%s", text.rstrip())

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Nothing is kept back."""


def build_environ(req: Any, env: Any, body: Any) -> Environ:
    """A request as PEP 3333 has it. `body` is bytes or a file; `workers.env` is what the platform calls `env`."""
    request = req if isinstance(req, Request) else Request(req)
    if isinstance(body, bytes | bytearray):
        body = io.BytesIO(body)
    url = urlsplit(request.url)
    size = body.seek(0, 2)
    body.seek(0)
    environ: Environ = {
        "REQUEST_METHOD": str(request.method),
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(url.path or "/").decode("latin-1"),
        "QUERY_STRING": url.query,
        "SERVER_NAME": url.hostname or "localhost",
        "SERVER_PORT": str(url.port or (443 if url.scheme == "https" else 80)),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": str(request.headers.get("cf-connecting-ip") or ""),
        "CONTENT_LENGTH": str(size),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": url.scheme,
        "wsgi.input": body,
        "wsgi.input_terminated": True,
        "wsgi.errors": _Errors(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "workers.env": FromThread(env),
    }
    for name, value in request.headers.pairs:
        key = name.upper().replace("-", "_")
        if key == "CONTENT_TYPE":
            environ[key] = value
        elif "_" in name or key in ("CONTENT_LENGTH", "PROXY"):
            continue  # it could pass for another field, or for a variable of the process
        elif (key := f"HTTP_{key}") in environ:
            environ[key] += ("; " if key == "HTTP_COOKIE" else ",") + value
        else:
            environ[key] = value
    return environ


class _Exchange:
    """One request in its thread, and its response on the loop."""

    def __init__(self, app: App, environ: Environ, body: IO[bytes], threads: _Threads) -> None:
        self._threads = threads
        self._app = app
        self._environ = environ
        self._body = body
        self._loop = asyncio.get_running_loop()
        self._head: asyncio.Future[tuple[str, list[tuple[str, str]]]] = self._loop.create_future()
        self._pieces: deque[bytes] = deque()
        self._room = threading.Semaphore(_AHEAD)
        self._news = asyncio.Event()
        self._over = False
        self._complete = False  # nothing can come behind what is there
        self._error: BaseException | None = None
        self._gone = False  # nobody reads on
        self._started: tuple[str, list[tuple[str, str]]] | None = None
        self._said = False  # the head has left

    def start(self) -> None:
        """Raises RuntimeError if there can be no more threads."""
        variables = contextvars.copy_context()
        variables.run(_loop.set, self._loop)
        variables.run(blocking_wait.set, _run_sync)
        threading.Thread(target=variables.run, args=(self._run,), name="wsgi", daemon=True).start()

    async def answer(self) -> Response:
        try:
            status, fields = await self._head
        except BaseException:
            self.leave()
            raise
        code, _, reason = status.partition(" ")
        body: Any = None
        if code not in ("204", "304"):
            body = b"".join(self._pieces) if self._over and self._error is None else _Pieces(self)
        return Response(body, int(code), reason, fields)

    # on the loop

    def _begun(self, head: tuple[str, list[tuple[str, str]]], piece: bytes, complete: bool) -> None:
        self._over = self._complete = complete
        if piece:
            self._pieces.append(piece)
        if not self._head.done():
            self._head.set_result(head)

    def _came(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._news.set()

    def _ended(self, error: BaseException | None) -> None:
        self._threads.leave()
        if not self._complete:
            self._over, self._error = True, error
        elif error is not None:
            _log.error("the WSGI app failed after its response: %s", error, exc_info=error)
        self._news.set()
        if not self._head.done() and not self._gone:
            self._head.set_exception(error or RuntimeError("the WSGI app has not called start_response()."))

    async def next_piece(self) -> bytes | None:
        while not self._pieces:
            if self._over:
                if self._error is not None:
                    raise self._error
                return None
            self._news.clear()
            await self._news.wait()
        self._room.release()
        return self._pieces.popleft()

    def leave(self) -> None:
        self._gone = True
        self._room.release()

    # in the thread

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            with self._body:
                self._respond()
        except BaseException as failure:  # noqa: BLE001 - the user's
            error = failure
        self._call(self._ended, error)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            pass  # the host has ended

    def _respond(self) -> None:
        result = self._app(self._environ, self._start_response)
        try:
            if isinstance(result, list | tuple):
                self._whole(result)
            else:
                self._one_by_one(result)
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()

    def _start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
        if exc_info is not None and self._said:
            try:
                raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        if self._started is not None and exc_info is None:
            raise AssertionError("start_response() was called twice without exc_info (PEP 3333).")
        for name, _ in headers:
            if name.lower() in _HOP_BY_HOP:
                raise AssertionError(f"start_response(): an app may not set {name} (PEP 3333).")
        self._started = status, list(headers)
        return self._write

    def _whole(self, pieces: Iterable[bytes]) -> None:
        body = b"".join([_checked(piece) for piece in pieces])
        if self._said or self._started is None:
            self._write(body)
            return
        status, headers = self._started
        if status[:3] not in ("204", "304") and all(name.lower() != "content-length" for name, _ in headers):
            headers.append(("Content-Length", str(len(body))))
        self._said = True
        self._call(self._begun, self._started, body, True)

    def _one_by_one(self, pieces: Iterable[bytes]) -> None:
        iterator: Iterator[bytes] = iter(pieces)
        for piece in iterator:
            if piece:
                self._write(piece)
            if self._gone:
                return
        if not self._said:
            self._write(b"")

    def _write(self, piece: bytes) -> None:
        _checked(piece)
        if self._started is None:
            raise RuntimeError("the WSGI app has not called start_response().")
        if not self._said:
            self._said = True
            size = next((value for name, value in self._started[1] if name.lower() == "content-length"), None)
            if piece:
                self._room.acquire()
            self._call(self._begun, self._started, piece, size == str(len(piece)))
            return
        self._room.acquire()
        if self._gone:
            self._room.release()
            raise ConnectionAbortedError("The client has left.")
        self._call(self._came, piece)


def _checked(piece: Any) -> bytes:
    if not isinstance(piece, bytes):
        raise JsTypeError(f"a WSGI app must give bytes, not {type(piece).__name__} (PEP 3333).")
    return piece


class _Pieces:
    """A response's body as it comes. Letting go of it ends the app's iteration."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._exchange.next_piece()
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        self._exchange.leave()

    def __del__(self) -> None:
        self._exchange.leave()
