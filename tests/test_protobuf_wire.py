"""protobuf_wire.py: numbers and heads of fields, beside protobuf's own."""

from __future__ import annotations

import io

import onnx
import pytest

from pipeline.protobuf_wire import as_varint, head, read_varint


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, (1 << 31) - 1, (1 << 63) - 1])
def test_numbers_are_written_as_protobuf_writes_them_and_read_again(number: int) -> None:
    written = onnx.OperatorSetIdProto(version=number).SerializeToString()[1:]
    assert as_varint(number) == written
    assert read_varint(io.BytesIO(written + b"\1")) == number


def test_head_stands_before_the_content_of_a_field() -> None:
    assert head(1, 300) + b"a" * 300 == onnx.OperatorSetIdProto(domain="a" * 300).SerializeToString()


@pytest.mark.parametrize("damaged", [b"", b"\x80", b"\xff" * 1000])
def test_numbers_that_are_cut_short_or_do_not_end_are_refused(damaged: bytes) -> None:
    with pytest.raises(ValueError, match="does not end"):
        read_varint(io.BytesIO(damaged))
