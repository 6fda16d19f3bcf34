"""`js` and `pyodide.ffi`: JavaScript's own objects and functions as Python sources use them."""

import json
import math
import re
from datetime import UTC, datetime

import js
import pytest
from pyodide.ffi import create_once_callable, create_proxy, to_js

from roost.api.runtime import Compat
from roost.errors import JsException, WorkerError
from roost.host.worker.loader import load_worker
from roost.js_values import JsDate, JsDict, JsList
from roost.values import DataCloneError


def test_arrays_and_objects():
    assert getattr(js.Array, "from")(iter([1, 2])).to_py() == js.Array.from_([1, 2]) == [1, 2]
    assert js.Array.of(3, 4).length == 2
    assert js.Array.isArray(JsList())
    assert js.Object.fromEntries(js.URLSearchParams.new("x=1&y=2")).to_py() == {"x": "1", "y": "2"}
    assert js.Object.fromEntries({"a": 1}.items()).a == 1
    assert js.Object.fromEntries(to_js([["a", 1]])) == {"a": 1}
    assert js.Object.keys(JsDict(a=1)).join() == "a"
    found = JsList([1, 2, 3])
    assert (found.length, found.at(-1), found.at(9), found.indexOf(2), found.indexOf(9)) == (3, 3, None, 1, -1)
    assert found.map(lambda x: x * 2).filter(lambda x: x > 2) == [4, 6]
    assert (found.push(4), found.includes(4), found.find(lambda x: x > 2), found.slice(1, 2)) == (4, True, 3, [2])
    assert found.some(lambda x: x == 3)
    assert not found.every(lambda x: x == 3)
    assert JsList([JsDict(a=1)]).to_py() == [{"a": 1}]


def test_json():
    parsed = js.JSON.parse('{"a": {"b": [1, {"c": 2}]}}')
    assert (parsed.a.b.length, parsed.a.b[1].c) == (2, 2)
    assert js.JSON.stringify(parsed) == '{"a":{"b":[1,{"c":2}]}}'
    assert js.JSON.stringify({"a": 1, "b": 2}, ["a"]) == '{"a":1}'
    assert js.JSON.stringify({"d": js.Date.new(0)}, None, 2) == '{\n  "d": "1970-01-01T00:00:00.000Z"\n}'
    with pytest.raises(JsException, match="SyntaxError"):
        js.JSON.parse("nope")


def test_dates():
    assert js.Date.new("2026-01-02T03:04:05Z").getTime() == 1_767_323_045_000
    assert js.Date.parse("2026-01-02") == js.Date.UTC(2026, 0, 2) == 1_767_312_000_000
    assert js.Date.parse("Fri, 02 Jan 2026 03:04:05 GMT") == 1_767_323_045_000
    assert math.isnan(js.Date.parse("nonsense"))
    date = js.Date.new(2026, 0, 31, 23, 59, 1, 5)
    assert date.toISOString() == str(date) == "2026-01-31T23:59:01.005Z"
    assert (date.getFullYear(), date.getMonth(), date.getDate(), date.getDay(), date.getHours()) == (2026, 0, 31, 6, 23)
    assert js.Date.new(2026, 13, 1).toISOString().startswith("2027-02-01")
    assert js.Date.new(5) - js.Date.new(2) == 3
    with pytest.raises(JsException, match="Invalid time value"):
        js.Date.new("nonsense").toISOString()
    seen = JsDate.fromtimestamp(1_767_323_045.5, UTC)
    assert (seen.getTime(), seen.toISOString()) == (1_767_323_045_500, "2026-01-02T03:04:05.500Z")
    assert seen == datetime(2026, 1, 2, 3, 4, 5, 500_000, UTC)


def test_functions():
    assert (js.btoa("ab\xff"), js.atob(" YWL/ ")) == ("YWL/", "ab\xff")
    for wrong in (lambda: js.btoa("ö☃"), lambda: js.atob("a*b")):
        with pytest.raises(JsException, match="InvalidCharacterError"):
            wrong()
    assert js.encodeURIComponent("a b/ö?&'") == "a%20b%2F%C3%B6%3F%26'"
    assert js.encodeURI("http://a/ö?x=1&y#z") == "http://a/%C3%B6?x=1&y#z"
    assert js.decodeURIComponent("a%20b%C3%B6") == "a bö"
    with pytest.raises(JsException, match="URIError"):
        js.decodeURIComponent("%ff")
    assert (js.parseInt("42px"), js.parseInt("0x1f"), js.parseInt("z", 36), js.parseFloat("1.5e3x")) == (42, 31, 35, 1500.0)
    assert js.isNaN(js.parseInt("x"))
    value = {"a": [1, {"b": b"x"}]}
    copied = js.structuredClone(value)
    assert (copied, copied is value, copied["a"] is value["a"]) == (value, False, False)
    with pytest.raises(DataCloneError):
        js.structuredClone(object())
    assert (js.Math.floor(1.9), js.Math.round(2.5), js.Math.round(-2.5), js.Math.max(1, 3), js.Math.sign(-2)) == (
        1,
        3,
        -2,
        3,
        -1,
    )
    assert 0 <= js.Math.random() < 1
    assert js.globalThis.Math is js.Math


def test_regular_expressions_maps_and_sets():
    found = js.RegExp.new(r"(?<year>\d{4})-(\d\d)", "i").exec("on 2026-12")
    assert (found.index, found[1], found[2], found.groups.year) == (3, "2026", "12", "2026")
    assert js.RegExp.new("x").exec("y") is None
    moving = js.RegExp.new("a", "g")
    assert [moving.test("aa"), moving.test("aa"), moving.test("aa")] == [True, True, False]
    with pytest.raises(JsException, match="SyntaxError"):
        js.RegExp.new("(")
    known = js.Map.new([["a", 1]])
    known.set("b", 2)
    assert (known.size, known.get("b"), known.has("x"), known.delete("a"), known.delete("a")) == (2, 2, False, True, False)
    some = js.Set.new([1, 1, 2])
    some.add(3)
    assert (some.size, some.has(3), some.delete(3), some.delete(3)) == (3, True, True, False)


def test_buffers():
    buffer = to_js(b"abc")
    assert (buffer.tobytes(), buffer.nbytes, buffer.byteLength, buffer.tolist()) == (b"abc", 3, 3, [97, 98, 99])
    assert (buffer.to_bytes(), bytes(buffer.to_py()), buffer.cast("B")[0], buffer.hex()) == (b"abc", b"abc", 97, "616263")
    assert type(buffer.tobytes()) is bytes
    buffer.release()


def test_proxies():
    def listener(a):
        """Its own."""
        return a + 1

    proxy = create_proxy(listener)
    assert (proxy(1), proxy.__name__, proxy.__doc__) == (2, "listener", "Its own.")
    proxy.destroy()
    assert create_once_callable(proxy) is proxy
    assert create_proxy({"a": 1}) == {"a": 1}


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="is not provided by Roost"):
        _ = js.Nothing
    assert json.loads(js.JSON.stringify(to_js([1]))) == [1]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("from js import NoSuchThing", "Roost's 'js' has no 'NoSuchThing': it is not supported"),
        ("from workers import NoSuchThing", "Roost's 'workers' has no 'NoSuchThing': it is not supported"),
        ("import workers.nothing", "Roost has no workers.nothing; it has asgi, js"),
        ("import micropip", "exists in Pyodide only"),
        ("import no_such_package", "install it there, or make a .venv"),
    ],
)
def test_what_a_worker_cannot_import_is_said_in_one_sentence(tmp_path, line, says):
    main = tmp_path / "worker_of_imports.py"
    main.write_text(line + "\n")
    with pytest.raises(WorkerError, match=re.escape(says)) as failed:
        load_worker(main, [], Compat())
    assert str(main) in str(failed.value)
    if "no_such_package" not in line:
        assert "install it there" not in str(failed.value)
