"""multipart.py: forms as clients write them, and as nobody should."""

from __future__ import annotations

import random
import time

import pytest

from pipeline.serve.multipart import FormError, read_files

FORM = "multipart/form-data; boundary=edge"


def form(*parts: tuple[str, bytes]) -> bytes:
    """Return a form of parts with these `content-disposition`s."""
    return (
        b"".join(
            b"--edge\r\ncontent-disposition: form-data%s\r\n\r\n%s\r\n" % (text.encode(), content)
            for text, content in parts
        )
        + b"--edge--\r\n"
    )


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('; name="f"; filename="cat.jpg"', "cat.jpg"),
        ("; name=f; filename=cat.jpg", "cat.jpg"),
        ('; filename="a; name=b.jpg"; name="f"', "a; name=b.jpg"),
        ('; name="f"; filename="say \\"hi\\".jpg"', 'say "hi".jpg'),
        ('; name="f"; filename="C:\\pictures\\cat.jpg"', "cat.jpg"),
        ('; name="f"; filename="猫.jpg"', "猫.jpg"),
        ('; name="f"; filename=""', "image"),
        ('; name="f"; FileName="cat.jpg"', "cat.jpg"),
    ],
)
def test_read_files_finds_the_name(disposition: str, name: str) -> None:
    assert read_files(form((disposition, b"\x00content\r\n--edg")), FORM) == [(name, b"\x00content\r\n--edg")]


def test_read_files_keeps_the_order_and_leaves_fields_out() -> None:
    parts = [('; name="a"; filename="1"', b"one"), ('; name="text"', b"no file"), ('; name="a"; filename="2"', b"")]
    assert read_files(form(*parts), FORM) == [("1", b"one"), ("2", b"")]
    assert read_files(b"--edge--", FORM) == []


@pytest.mark.parametrize(
    "content_type",
    [FORM, 'multipart/form-data; boundary="edge"', "multipart/form-data;charset=utf-8;BOUNDARY=edge; x=y"],
)
def test_read_files_takes_what_rfc_2046_allows(content_type: str) -> None:
    body = (
        b"--edge\r\nX-Other: 1\r\nCONTENT-DISPOSITION:form-data;filename=a\r\n"
        b"content-type: image/jpeg\r\n\r\none\r\n--edge\r\n\r\nno headers\r\n--edge--\r\n"
    )
    assert read_files(body, content_type) == [("a", b"one")]


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        (form(), "multipart/form-data", "without a boundary"),
        (b"", FORM, "is cut"),
        (form(("; filename=a", b"one"))[:-10], FORM, "is cut"),
        (b"--edge", FORM, "is cut"),
        (b"--edgeless\r\n\r\n\r\n--edge--", FORM, "cannot be read"),
        (b"--edge\r\ncontent-disposition: form-data\r\n--edge--", FORM, "is cut"),
        (b"--edge\r\n" + b"a: b\r\n" * 2000 + b"\r\n\r\n--edge--", FORM, "cannot be read: Maximum header count"),
        (form(*[("; name=a", b"")] * 257), FORM, "more than 256 parts"),
    ],
)
def test_read_files_refuses_what_is_no_form(body: bytes, content_type: str, text: str) -> None:
    with pytest.raises(FormError) as caught:
        read_files(body, content_type)
    assert text in str(caught.value)


def test_read_files_answers_anything_in_a_line_and_soon() -> None:
    random.seed(0)
    pieces = [b"--edge", b"\r\n", b"--", b"content-disposition: form-data", b'; filename="', b"\\", b'"', b"\x00", b":"]
    begun = time.process_time()
    for _ in range(3000):
        body = b"".join(random.choices(pieces, k=random.randrange(40)))
        try:
            assert isinstance(read_files(body, FORM), list)
        except FormError as err:
            assert "\n" not in str(err)
    for filler in (b'; filename="' + b"\\" * 8000, b"; a=" * 2000, b'"' * 8000, b"; name*=''" * 700):
        disposition = b"--edge\r\ncontent-disposition: form-data" + filler
        assert isinstance(read_files(disposition + b"\r\n\r\n\r\n--edge--", FORM), list)
    for body in (b"\r\n--edg" * 1_000_000, b"--edge\r\n" + b"a" * 8_000_000 + b"\r\n--edge--"):
        with pytest.raises(FormError):
            read_files(body, FORM)
    assert time.process_time() - begun < 5
