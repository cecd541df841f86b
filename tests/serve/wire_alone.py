"""Requests over gRPC: read without copies of their tensors, as KServe reads them.

test_calls.py runs these tests in a process of their own, since they import KServe.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.onnx_models.scores import Scores
from pipeline.serve.kserve import InferRequest, InvalidInput, RequestedOutput, pb
from pipeline.serve.outputs import Answer, Outputs, Tensor
from pipeline.serve.rpc import Servicer, parse
from pipeline.serve.wire import before, take_out

RAW = 7  # raw_input_contents


def message(raw: list[bytes], tensors: int = 1, **more: Any) -> Any:
    made = pb.ModelInferRequest(model_name="net", id="a", **more)
    for number in range(tensors):
        tensor = made.inputs.add(name=f"image{number}", datatype="UINT8", shape=[1, 2])
        tensor.parameters["key"].int64_param = 2**40
    made.outputs.add(name="scores").parameters["classification"].int64_param = 3
    made.parameters["priority"].bool_param = True
    made.raw_input_contents.extend(raw)
    return made


@given(st.lists(st.binary(max_size=300), max_size=4), st.text(max_size=50), st.randoms())
def test_large_fields_are_taken_out_wherever_they_are(raw: list[bytes], name: str, order: Any) -> None:
    whole = message(raw, model_version=name)
    fields = [pb.ModelInferRequest(raw_input_contents=[each]).SerializeToString() for each in raw]
    whole.ClearField("raw_input_contents")
    other = whole.SerializeToString()
    parts = [*fields, other]
    at = order.randrange(len(parts))
    parts.insert(at, parts.pop())  # the other fields before, between or behind
    rest, found = take_out(RAW, b"".join(parts))
    assert [bytes(each) for each in found] == raw
    assert pb.ModelInferRequest.FromString(rest) == whole


@given(st.binary(max_size=200))
def test_what_is_no_message_is_left_to_the_parser(content: bytes) -> None:
    rest, found = take_out(RAW, content)
    if found:  # a message by chance
        whole = pb.ModelInferRequest.FromString(content)
        assert list(whole.raw_input_contents) == [bytes(each) for each in found]
    else:
        assert rest == content


@pytest.mark.parametrize("cut", [1, 100, 152])
def test_a_message_that_is_cut_is_left_as_it_is(cut: int) -> None:
    content = message([bytes(200)]).SerializeToString()[:-cut]
    assert take_out(RAW, content) == (content, [])
    with pytest.raises(InvalidInput, match="no ModelInferRequest"):
        parse(content)


def test_very_many_fields_are_left_to_the_parser() -> None:
    content = message([b""] * 1000).SerializeToString()
    assert take_out(RAW, content) == (content, [])


@given(st.integers(1, 2**29 - 1).filter(lambda number: not 19000 <= number < 20000), st.binary(max_size=70_000))
def test_a_field_that_is_written_is_found_again(number: int, content: bytes) -> None:
    rest, found = take_out(number, before(number, content) + content)
    assert (rest, [bytes(each) for each in found]) == (b"", [content])


@pytest.mark.parametrize("size", [0, 127, 128, 70_000])
def test_a_field_is_written_as_protobuf_writes_it(size: int) -> None:
    content = bytes(size)
    written = pb.ModelInferRequest(raw_input_contents=[content]).SerializeToString()
    assert before(RAW, content) + content == written


def read_by_kserve(content: bytes) -> InferRequest:
    request = pb.ModelInferRequest.FromString(content)
    Servicer.validate_grpc_request(request)
    return InferRequest.from_grpc(request)


@pytest.mark.parametrize("version", ["", "7"])
def test_a_request_of_one_raw_tensor_is_read_as_kserve_reads_it(version: str) -> None:
    content = message([b"\x03\x04"], model_version=version).SerializeToString()
    ours, theirs = parse(content), read_by_kserve(content)
    for name in ("id", "model_name", "model_version", "from_grpc", "use_binary_outputs", "request_outputs"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert dict(ours.parameters) == dict(theirs.parameters)
    (one,), (other,) = ours.inputs, theirs.inputs
    assert (one.name, one.shape, one.datatype, one.parameters) == (
        other.name,
        other.shape,
        other.datatype,
        other.parameters,
    )
    np.testing.assert_array_equal(one.as_numpy(), other.as_numpy())
    assert one.as_numpy().tolist() == [[3, 4]]


def test_the_bytes_of_a_tensor_are_not_copied() -> None:
    content = message([bytes(150_000)]).SerializeToString()
    assert parse(content).inputs[0]._raw_data.obj is content


def test_requests_that_differ_in_their_values_alone_do_not_share_them() -> None:
    parsed = [parse(message([bytes([number, 7])]).SerializeToString()) for number in range(3)]
    assert [each.inputs[0].as_numpy().tolist() for each in parsed] == [[[number, 7]] for number in range(3)]


def test_a_request_is_refused_each_time_it_comes() -> None:
    made = message([b"\x03\x04"])
    made.inputs[0].parameters["other"].SetInParent()
    for _ in range(2):
        with pytest.raises(InvalidInput, match="parameter 'other': expected a bool_param"):
            parse(made.SerializeToString())


def test_a_request_is_read_afresh_where_its_values_are_of_another_kind_the_second_time() -> None:
    empty = message([b"\x03\x04", b"\x05"])
    for _ in range(2):
        with pytest.raises(InvalidInput, match="does not match the expected number"):
            parse(empty.SerializeToString())
        made = message([b"\x03\x04"])
        assert parse(made.SerializeToString()).inputs[0].as_numpy().tolist() == [[3, 4]]


def test_values_beside_raw_ones_are_refused_unless_there_are_none() -> None:
    made = message([b"\x03\x04"])
    made.inputs[0].contents.SetInParent()  # as MLServer does
    assert parse(made.SerializeToString()).inputs[0].as_numpy().tolist() == [[3, 4]]
    made.inputs[0].contents.uint_contents.extend([3, 4])
    with pytest.raises(InvalidInput, match="contents field must not be specified"):
        parse(made.SerializeToString())


@pytest.mark.parametrize(("raw", "tensors"), [([b"\x03\x04"], 2), ([b"\x03\x04"] * 2, 1), ([b""] * 200, 1)])
def test_as_many_raw_values_as_tensors_are_wanted(raw: list[bytes], tensors: int) -> None:
    with pytest.raises(InvalidInput, match="does not match the expected number"):
        parse(message(raw, tensors).SerializeToString())


def test_values_in_the_message_are_read() -> None:
    made = message([])
    made.inputs[0].contents.uint_contents.extend([3, 4])
    assert parse(made.SerializeToString()).inputs[0].as_numpy().tolist() == [[3, 4]]


SCORES = np.array([[0.5, -2.25, 1e-30]], np.float32)
TEXTS = np.array([[b"0.5:1:cat", "0.25:0:Hündin".encode()]], object)


def test_an_answer_over_grpc_has_raw_values_that_numpy_reads() -> None:
    answer = Answer("a", "net", "3", [Tensor("scores", SCORES), Tensor("best", TEXTS)])
    made = pb.ModelInferResponse.FromString(answer.to_grpc())
    assert (made.id, made.model_name, made.model_version) == ("a", "net", "3")
    assert [(each.name, each.datatype, list(each.shape)) for each in made.outputs] == [
        ("scores", "FP32", [1, 3]),
        ("best", "BYTES", [1, 2]),
    ]
    np.testing.assert_array_equal(np.frombuffer(made.raw_output_contents[0], "<f4").reshape(1, 3), SCORES)
    texts = made.raw_output_contents[1]
    assert texts == b"".join(struct.pack("<I", len(each)) + each for each in TEXTS[0])


def test_answers_that_differ_in_their_values_alone_do_not_share_them() -> None:
    for number in range(3):
        answer = Answer("ä" * number, "net", "3", [Tensor("scores", SCORES + number)])
        made = pb.ModelInferResponse.FromString(answer.to_grpc())
        assert made.id == "ä" * number
        assert made.raw_output_contents[0] == (SCORES + number).tobytes()
        assert made.outputs[0].parameters["binary_data_size"].int64_param == 12


@pytest.mark.parametrize("binary", [(True, False), (False, True), (True, True), (False, False)])
def test_an_answer_over_rest_has_values_in_the_json_or_behind_it(binary: tuple[bool, bool]) -> None:
    answer = Answer("", "net", "3", [Tensor("scores", SCORES), Tensor("best", TEXTS)])
    body, length = answer.to_rest(binary)
    assert (length is None) == (binary == (False, False))
    document, behind = json.loads(body[:length]), body[length:] if length is not None else b""
    assert {**document, "outputs": None} == {"id": "", "model_name": "net", "model_version": "3", "outputs": None}
    for tensor, shown, is_binary in zip(answer.tensors, document["outputs"], binary, strict=True):
        assert (shown["name"], shown["shape"]) == (tensor.name, list(tensor.values.shape))
        if is_binary:
            size = shown["parameters"]["binary_data_size"]
            assert behind[:size] == tensor.content()
            behind = behind[size:]
        else:
            assert shown["data"] == tensor.data()
    assert behind == b""
    assert Tensor("scores", SCORES).data() == [float(each) for each in SCORES[0]]
    assert Tensor("best", TEXTS).data() == ["0.5:1:cat", "0.25:0:Hündin"]


@pytest.mark.parametrize(
    ("images", "classes", "takes_long", "is_large"),
    [(1, 1000, False, False), (100, 5, False, False), (100, 1000, True, True), (100, 10**12, True, True)],
)
def test_answers_of_very_many_texts_are_made_beside_the_event_loop(
    images: int, classes: int, takes_long: bool, is_large: bool
) -> None:
    outputs = Outputs("scores", Scores.LOGITS, [f"class {number}" for number in range(1000)])
    wanted = [RequestedOutput("scores", {"classification": classes})]
    scores = np.random.default_rng(0).normal(size=(images, 1000)).astype(np.float32)
    assert outputs.takes_long(wanted, scores) is takes_long
    assert not outputs.takes_long([RequestedOutput("scores")], scores)
    made = outputs.make(wanted[0], scores)
    assert made.values.shape == (images, min(classes, 1000))
    assert Answer("", "net", "1", [made]).is_large is is_large
