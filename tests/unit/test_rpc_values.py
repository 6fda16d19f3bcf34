"""api/rpc_values.py: what calls carry beside structured clone."""

from datetime import UTC, datetime

import js
import pytest

from roost.api.buffers import Blob, File
from roost.api.forms import FormData
from roost.api.headers import Headers
from roost.api.http import Request, Response
from roost.api.rpc import RemoteError, decode_result, error_of
from roost.api.rpc_stubs import RpcStub
from roost.api.rpc_values import MARK, decode_rpc, encode_rpc
from roost.errors import JsException, JsTypeError
from roost.js_values import JsDict, JsMap
from roost.values import DataCloneError, encode


def sent(value):
    return decode_rpc(encode_rpc(value), error_of)


def test_plain_values_travel_as_before():
    for value in (None, 1, 2**90, "ö", [1, {"a": b"x"}], {"a": {1, 2}}, datetime(2026, 1, 2, tzinfo=UTC)):
        assert encode_rpc(value) == encode(value)
        assert sent(value) == value
    assert sent({"a": {"b": 1}}).a.b == 1


def test_requests_and_responses():
    request = sent([Request("http://a/x", method="POST", headers={"X-A": "1"}, body=b"abc", redirect="error")])[0]
    assert (request.url, request.method, request.headers.get("x-a"), request.redirect) == (
        "http://a/x",
        "POST",
        "1",
        "error",
    )
    assert request._body == b"abc"
    assert sent(Request("http://a/"))._body is None
    answer = Response.json({"a": 1}, status=201)
    answer.url = "http://b/"
    response = sent({"r": answer}).r
    assert (response.status, response.url, response._body) == (201, "http://b/", b'{"a":1}')
    assert response.headers.get("content-type") == "application/json"
    assert answer.body_used

    async def stream():
        yield b"x"

    for bad, says in ((Response(stream()), "only be passed while"), (answer, "was read already")):
        with pytest.raises(DataCloneError, match=says):
            encode_rpc(bad)


def test_other_kinds():
    assert sent(Headers({"X-A": "1"})).pairs == [("X-A", "1")]
    blob = sent(Blob([b"abc"], "text/x"))
    assert (blob.raw, blob.type) == (b"abc", "text/x")
    file = sent(File([b"abc"], "n.txt", "text/x", last_modified=5))
    assert (file.raw, file.name, file.type, file.last_modified) == (b"abc", "n.txt", "text/x", 5)
    form = FormData({"a": "1"})
    form.append("f", File([b"x"], "n"))
    got = sent(form)
    assert (got.get("a"), got.get("f").name) == ("1", "n")
    found = sent(js.Map.new([[1, "a"], ["k", {"x": Blob(["y"])}]]))
    assert (found.get(1), found.get("k").x.raw) == ("a", b"y")
    assert sent([js.Date.new(0), js.Set.new([1]), Blob()])[:2] == [datetime(1970, 1, 1, tzinfo=UTC), {1}]
    assert bytes(sent([memoryview(b"ab"), Blob()])[0]) == b"ab"


def test_errors():
    for error, kind, text in (
        (ValueError("bad"), ValueError, "bad"), (KeyError("k"), KeyError, "k"), (JsTypeError("wrong"), TypeError, "wrong"),
        (JsException("js", "SyntaxError"), RemoteError, "js"),
    ):  # fmt: skip
        got = sent({"e": error}).e
        assert isinstance(got, kind)
        assert text in got.message
    assert sent(JsException("js", "SyntaxError")).name == "SyntaxError"


def test_a_programs_own_mark_and_cycles():
    for own in ({MARK: ["blob", b"x", ""]}, {MARK: 1, "a": Blob(["x"])}, {"deep": [{MARK: {"MARK": 1}}]}):
        got = sent(own)
        assert set(got) == set(own)
    assert sent({MARK: ["blob", b"x", ""]}) == {MARK: ["blob", b"x", ""]}
    loop = [Blob(["x"])]
    loop.append(loop)
    got = sent(loop)
    assert got[0].raw == b"x"
    assert got[1] is got
    own = {MARK: 1}
    own["again"] = [own]
    got = sent(own)
    assert got["again"][0] is got
    own = JsMap({"a": 1})
    own["again"] = own
    got = sent(own)
    assert got["again"] is got


def test_what_cannot_travel():
    for value in (lambda: 1, object(), [Blob(), object()]):
        with pytest.raises(DataCloneError):
            encode_rpc(value)
    with pytest.raises(ValueError, match="is not known"):
        decode_result(encode({MARK: ["nothing known"]}), None)
    for broken in ({MARK: 5}, {MARK: []}, {MARK: ["object", 5]}, {MARK: ["map", 5]}):
        with pytest.raises(ValueError, match="encoded value"):
            decode_result(encode(broken), None)


def test_objects_take_attributes():
    value = JsDict(a=1)
    value.b = 2
    assert value == {"a": 1, "b": 2}


def test_a_stub_needs_a_context():
    with pytest.raises(JsException, match="module level"):
        RpcStub(lambda: 1)
