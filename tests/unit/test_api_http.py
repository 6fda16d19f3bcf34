"""api/http.py, api/headers.py, api/namespace.py and api/state.py: values and their errors (reference 1.3, 4.2, 4.4)."""

import asyncio

import pytest

from roost.api.http import Request, Response
from roost.api.namespace import DurableObjectNamespace
from roost.api.state import check_tags
from roost.api.websocket import WebSocketPair
from roost.errors import JsException, JsRangeError, JsTypeError
from roost.ids import namespace_key
from workers import Blob, Headers


def run(awaitable):
    async def main():
        return await awaitable

    return asyncio.run(main())


def test_a_redirect_needs_an_absolute_url():
    assert Response.redirect("https://a.test/x", 307).headers.get("location") == "https://a.test/x"
    for bad in ("/elsewhere", "", "//a.test/"):
        with pytest.raises(JsTypeError, match="Unable to parse URL"):
            Response.redirect(bad)
    with pytest.raises(JsRangeError):
        Response.redirect("https://a.test/", 200)


def test_headers():
    headers = Headers({"Content-Type": "a", "X": 1})
    headers.append("x", "2")
    assert headers.get("content-type") == "a"
    assert headers["X"] == "1, 2"
    assert headers.get_all("x") == ["1", "2"]
    assert "CONTENT-TYPE" in headers
    assert headers.get("none", "d") == "d"
    headers.set("x", "3")
    del headers["content-type"]
    assert headers.items() == [("x", "3")]
    assert "3" not in repr(headers)
    for name, value in (("a b", "x"), ("", "x"), ("a", "x\r\ny"), ("é", "x")):
        with pytest.raises(TypeError):
            headers.append(name, value)


def test_bodies_are_read_once():
    request = Request.incoming("POST", "http://a/", [], b'{"name": "x"}')
    assert run(request.json()) == {"name": "x"}
    assert request.body_used
    with pytest.raises(OSError, match="Body already used"):
        run(request.text())
    assert request.method == "POST"


def test_streams():
    async def pieces():
        yield b"a"
        yield "é"

    async def both():
        one = await Response(pieces()).bytes()
        two = [piece async for piece in Response(pieces()).body]
        return one, two

    assert run(both()) == ("aé".encode(), [b"a", "é".encode()])


def test_response_bodies_and_types():
    assert Response("x").headers["content-type"] == "text/plain;charset=UTF-8"
    assert Response("x", headers={"Content-Type": "text/html"}).headers.items() == [("content-type", "text/html")]
    assert Response(Blob(["x"], "image/png")).headers["content-type"] == "image/png"
    assert "content-type" not in Response(b"x").headers
    assert Response.json({"a": 1}).headers["content-type"] == "application/json"
    assert run(Response.json([1, "é"]).json()) == [1, "é"]
    assert Response.redirect("http://b/").status == 302
    for value in ({"a": 1}, [1], 5):
        with pytest.raises(TypeError, match="Unsupported type in Response"):
            Response(value)
    with pytest.raises(ValueError, match="no further options"):
        Response(Response("x"), status=201)


def test_response_and_sockets():
    client = WebSocketPair.new()[0]
    assert Response(None, status=101, web_socket=client).webSocket is client
    assert Response.new(None, status=101, webSocket=client).web_socket is client
    with pytest.raises(JsRangeError, match="must have status code 101"):
        Response(None, web_socket=client)
    with pytest.raises(ValueError, match="must carry a WebSocket"):
        Response(None, status=101)
    with pytest.raises(JsRangeError):
        Response(None, status=99)
    with pytest.raises(JsTypeError, match="Cannot clone"):
        Response(None, status=101, web_socket=client).clone()
    with pytest.raises(JsTypeError, match="null body status"):
        Response("x", status=204)


class Caller:
    async def fetch_object(self, ref, request):
        return Response(f"{ref.class_name} {request.method} {request.url}")


def namespace(name="Room"):
    return DurableObjectNamespace(name, namespace_key("app", name), Caller(), lambda n: b"r" * n)


def test_namespace():
    """W43."""
    rooms = namespace()
    lobby = rooms.idFromName("lobby")
    assert lobby == rooms.id_from_name("lobby")
    assert lobby.name == "lobby"
    assert str(lobby) == lobby.toString()
    again = rooms.idFromString(str(lobby))
    assert again.equals(lobby)
    assert again.name is None
    assert rooms.newUniqueId().name is None
    assert rooms.get(lobby).name == rooms.get_by_name("lobby").name == "lobby"
    assert rooms.idFromName("x" * 1025).name is None
    stub = rooms.getByName("lobby", locationHint="weur")
    assert run(run_text(stub.fetch("http://o/p", method="POST"))) == "Room POST http://o/p"
    with pytest.raises(TypeError, match="64 hex digits"):
        rooms.idFromString("nope")
    with pytest.raises(TypeError, match="not valid for this namespace"):
        rooms.idFromString(str(namespace("Other").idFromName("lobby")))
    with pytest.raises(TypeError, match="another namespace"):
        rooms.get(namespace("Other").idFromName("x"))
    with pytest.raises(TypeError, match="getByName"):
        rooms.get("lobby")
    with pytest.raises(TypeError, match="absolute URL"):
        run(stub.fetch("/path"))


async def run_text(awaitable):
    return await (await awaitable).text()


def test_tags():
    assert check_tags(None) == ()
    assert check_tags(["a", "b", "a"]) == ("a", "b")
    assert check_tags([""]) == ("",)
    check_tags([str(n) for n in range(10)] + ["0"])
    check_tags(["é" * 128])
    with pytest.raises(JsException, match="at most 10 tags"):
        check_tags([str(n) for n in range(11)])
    with pytest.raises(JsException, match="256 bytes"):
        check_tags(["é" * 129])
