"""Forms: fields and files are their bytes, whatever they look like; what is damaged is refused."""

import pytest

from roost.api.buffers import File
from roost.api.forms import MAX_FIELDS, FormData, parse_form
from roost.errors import JsTypeError

CONTENTS = [
    b"",
    b"\r\n",
    b"x\r\n",
    b"\r",
    b"\n\n",
    b"\0\xff" * 50,
    b"--other--",
    bytes(range(256)),
    b"From: a\r\n\r\nan .eml",
]


@pytest.mark.parametrize(
    "kind", ["application/octet-stream", "message/rfc822", "multipart/mixed; boundary=y", "text/plain"]
)
def test_there_and_back(kind):
    form = FormData({"a": "1", "ü": "ß€"})
    form.append("a", "2")
    for number, content in enumerate(CONTENTS):
        form.append("file", File([content], f'n"{number}\n.bin', kind))
    body, content_type = form.encoded()
    again = parse_form(body, content_type)
    assert again.get_all("a") == ["1", "2"]
    assert again["ü"] == "ß€"
    files = again.get_all("file")
    assert [file.raw for file in files] == CONTENTS
    assert [file.name for file in files] == [f'n"{number}\n.bin' for number in range(len(CONTENTS))]
    assert {file.content_type for file in files} == {kind}


def test_the_empty_form_and_half_a_character():
    body, content_type = FormData().encoded()
    assert len(parse_form(body, content_type)) == 0
    FormData({"a\ud800": "b\ud800"}).encoded()


def test_names_as_clients_write_them():
    body = (
        b'preamble\r\n--x\r\nContent-Disposition: form-data; name="f"; filename="C:\\path\\x.txt"\r\n'
        b"Content-Transfer-Encoding: base64\r\n\r\nQUJD\r\n"
        b"--x\r\ncontent-disposition: form-data; name=\"g\"; filename*=UTF-8''%e2%82%ac.txt\r\n\r\nz\r\n--x--\r\nepilogue"
    )
    form = parse_form(body, 'multipart/form-data; boundary="x"')
    assert (form["f"].name, form["f"].raw) == ("C:\\path\\x.txt", b"QUJD")
    assert form["g"].name == "€.txt"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"x", "application/json"),
        (b"x", "multipart/form-data"),
        (b"x", "multipart/form-data; boundary=x"),
        (b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\ncut', "multipart/form-data; boundary=x"),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\nz\r\n--x--", "multipart/form-data; boundary=x"),
        (b"--x\r\nA: " + b"y" * 9000 + b"\r\n\r\nz\r\n--x--", "multipart/form-data; boundary=x"),
        (b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * (MAX_FIELDS + 1) + b"--x--",
         "multipart/form-data; boundary=x"),
        (b"a=1&" * (MAX_FIELDS + 1), "application/x-www-form-urlencoded"),
    ],
)  # fmt: skip
def test_what_is_refused(body, kind):
    with pytest.raises(JsTypeError):
        parse_form(body, kind)
