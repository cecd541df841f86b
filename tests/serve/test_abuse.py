"""What clients may do on open ports, by intent or by mistake: others are answered, and nothing is kept of it."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from run_fixtures import NAME, TinyWorkspace
from serve_fixtures import Server, answer_of, connect, encoded, request, running

grpc = pytest.importorskip("grpc", reason="serve's packages are not installed: pip install '.[serve]'")
StatusCode = grpc.StatusCode
if importlib.util.find_spec("kserve") is None:
    pytest.skip("serve's packages are not installed: pip install '.[serve]'", allow_module_level=True)
service_pb2 = pytest.importorskip("tritonclient.grpc", reason="no tritonclient: pip install '.[ci]'").service_pb2

pytestmark = pytest.mark.slow
PATIENCE = 1.5  # s
CLASSIFY, INFER = f"/v2/models/{NAME}/classify", f"/v2/models/{NAME}/infer"
METHOD = "/inference.GRPCInferenceService/ModelInfer"
needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")


@pytest.fixture(scope="module")
def server(tiny_workspace_master: TinyWorkspace) -> Iterator[Server]:
    flags = ["-b", "1", "-i", "1", "--max_body", "4", "--max_queue", "64", "--client_timeout", str(PATIENCE)]
    with running(tiny_workspace_master.package, *flags) as server:
        yield server


def resident_mib(server: Server) -> int:
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * 4096 >> 20


def open_files(server: Server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def wait_until(what: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


def infer_message(content: bytes) -> bytes:
    asked = service_pb2.ModelInferRequest(model_name=NAME)
    asked.inputs.add(name="encoded_image", datatype="BYTES", shape=[1])
    asked.raw_input_contents.append(len(content).to_bytes(4, "little") + content)
    return bytes(asked.SerializeToString())


# HTTP


def test_pipelined_requests_are_answered_in_turn(server: Server) -> None:
    with connect(server) as connection:
        sent = [request(encoded(number % 3), path=f"{CLASSIFY}?topk={1 + number % 2}") for number in range(60)]
        threading.Thread(target=connection.sendall, args=(b"".join(sent),)).start()
        stream = connection.makefile("rb")
        for number in range(60):
            status, _, body = answer_of(stream)
            assert (status, len(json.loads(body)[0]["class_ids"])) == (200, 1 + number % 2)


def test_a_client_that_closes_its_half_gets_its_answer(server: Server) -> None:
    for sent in (request(encoded(0)), request(encoded(0)) * 3, b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n"):
        with connect(server) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            stream = connection.makefile("rb")
            assert [answer_of(stream)[0] for _ in range(max(1, sent.count(b"POST")))][-1] == 200
            assert stream.read() == b""


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_a_client_that_closes_its_half_too_early_is_let_go(server: Server, share: float) -> None:
    sent = request(encoded(0))
    with connect(server) as connection:
        connection.sendall(sent[: int(share * len(sent))])
        connection.shutdown(socket.SHUT_WR)
        begun = time.monotonic()
        while connection.recv(1 << 16):
            pass
        assert time.monotonic() - begun < PATIENCE + 5


@needs_proc
def test_clients_that_leave_leave_nothing_behind(server: Server) -> None:
    before = open_files(server)
    for _ in range(200):
        with connect(server) as connection:
            connection.sendall(request(encoded(0)))
            leave(connection)
    wait_until(lambda: open_files(server) <= before + 2)
    wait_until(lambda: server.post(CLASSIFY, encoded(0))[0] == 200)  # 503 while the queue is full of theirs
    assert server.metric(f'pipeline_waiting_images{{model="{NAME}"}}') == 0


def leave(connection: socket.socket) -> None:
    """Let the close of a connection be a reset, which is not mistaken for the end of its one half."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def test_nothing_is_decoded_for_clients_that_have_left(server: Server) -> None:
    decoded = f'pipeline_decode_seconds_count{{model="{NAME}"}}'
    before = server.metric(decoded)
    part = b'--XX\r\ncontent-disposition: form-data; name="a"; filename="a.png"\r\n\r\n' + slow_file() + b"\r\n"
    form = request(part * 50 + b"--XX--\r\n", "content-type: multipart/form-data; boundary=XX")
    with connect(server) as connection:
        connection.sendall(form)
        wait_until(lambda: server.metric(decoded) > before)
        leave(connection)
    wait_until(lambda: server.post(CLASSIFY, encoded(0))[0] == 200)
    assert server.metric(decoded) - before < 40


def slow_file() -> bytes:
    """Return a file of some KB that takes some tenths of a second to decode."""
    stream = io.BytesIO()
    Image.new("RGB", (4000, 4000)).save(stream, "PNG")
    return stream.getvalue()


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(server: Server) -> None:
    before = server.metric('pipeline_refused_requests_total{reason="body too large"}')
    sent = request(b"", "expect: 100-continue").replace(b"content-length: 0", b"content-length: 4194305")
    with connect(server) as connection:
        connection.sendall(sent)
        status, _, body = answer_of(connection)
        assert (status, json.loads(body)) == (413, {"error": "the body has more than 4194304 bytes"})
    assert server.metric('pipeline_refused_requests_total{reason="body too large"}') == before + 1


@needs_proc
def test_clients_that_take_no_answers_are_let_go(server: Server) -> None:
    memory, page = resident_mib(server), len(server.get("/")[1])
    host, port = server.http.split(":")
    with contextlib.ExitStack() as opened:
        connections = [opened.enter_context(socket.socket()) for _ in range(5)]
        for connection in connections:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(20)
            connection.connect((host, int(port)))
            connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 1000)  # 10 MB of answers: the kernel holds 4
        assert server.post(CLASSIFY, encoded(0))[0] == 200
        time.sleep(PATIENCE + 4)
        for connection in connections:
            taken = 0
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(1 << 20):
                    taken += len(part)
            assert taken < 900 * page
    assert resident_mib(server) - memory < 100


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 900 + b"]" * 900,
        b'{"inputs": [' + b"{}," * 100_000 + b"{}]}",
        b'{"id": "' + b"\\ud800" * 10 + b'", "inputs": []}',
        b'{"inputs": [], "inputs": [], "id": 1, "id": []}',
        b"1" * 100_000,
        b"-1e99999",
        b"NaN",
        b"\xff\xfe[\0]\0",
        b"\0" * 1000,
    ],
    ids=lambda each: repr(each[:12]),
)
def test_json_that_is_deep_or_odd_is_refused_in_a_line(server: Server, body: bytes) -> None:
    begun = time.monotonic()
    status, answer = server.post(INFER, body)
    assert (status, list(answer)) == (400, ["error"])
    assert len(answer["error"]) < 400
    assert time.monotonic() - begun < 10


def test_lists_and_objects_are_counted_before_they_are_read(server: Server) -> None:
    status, answer = server.post(INFER, b'{"inputs": [' + b"[]," * 1_200_000 + b"[]]}")
    assert (status, answer) == (400, {"error": "expected at most 1000000 lists and objects"})


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("1e39", "holds NaN or Inf"),
        ("-1e308", "holds NaN or Inf"),
        ("1e400", ""),
        ("1" + "0" * 400, ""),
        ("18446744073709551615", None),
        ("9" * 30, None),
        ("null", "expected numbers"),
        ('"1"', "expected numbers"),
        ("[1]", ""),
        ("{}", ""),
    ],
)
def test_numbers_that_are_huge_or_none_are_refused(server: Server, data: str, text: str | None) -> None:
    numbers = ",".join([data] + ["0"] * (3 * 32 * 32 - 1))
    tensor = f'{{"name": "image", "datatype": "FP32", "shape": [1, 3, 32, 32], "data": [{numbers}]}}'
    status, answer = server.post(INFER, f'{{"inputs": [{tensor}]}}'.encode())
    if text is None:  # float32 holds it
        assert status == 200, answer
    else:
        assert status == 400, answer
        assert text in answer["error"]


@pytest.mark.parametrize("shape", ["[-1]", "[1e30]", "[9223372036854775807, 9223372036854775807]", "[1,1,1,1,1]", "[]"])
def test_shapes_that_lie_are_refused(server: Server, shape: str) -> None:
    for name, datatype in (("image", "FP32"), ("encoded_image", "BYTES")):
        tensor = f'{{"name": "{name}", "datatype": "{datatype}", "shape": {shape}, "data": []}}'
        assert server.post(INFER, f'{{"inputs": [{tensor}]}}'.encode())[0] == 400
        head = tensor.replace('"data": []', '"parameters": {"binary_data_size": 4}')
        text = f'{{"inputs": [{head}]}}'.encode()
        found = server.post(INFER, text + b"\0" * 4, inference_header_content_length=str(len(text)))
        assert found[0] == 400, found


@pytest.mark.parametrize(("count", "text"), [(2, "asked for more than once"), (100_000, "at most 16, got 100000")])
def test_outputs_are_given_once(server: Server, count: int, text: str) -> None:
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 3, 32, 32], "data": [0] * 3072}
    status, answer = server.post(
        INFER, json.dumps({"inputs": [tensor], "outputs": [{"name": "logits"}] * count}).encode()
    )
    assert status == 400 and text in answer["error"]
    message = service_pb2.ModelInferRequest.FromString(infer_message(encoded(0)))
    message.outputs.extend([service_pb2.ModelInferRequest.InferRequestedOutputTensor(name="logits")] * count)
    assert refusal(server, message)[0] is StatusCode.INVALID_ARGUMENT
    assert text in refusal(server, message)[1]


def refusal(server: Server, message: Any) -> tuple[Any, str]:
    """Return the status and the text of a call that fails."""
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(METHOD)(message.SerializeToString(), timeout=20)
    return caught.value.code(), caught.value.details()


def test_of_keys_that_come_twice_the_last_counts(server: Server) -> None:
    body = b'{"id": "first", "id": "second", "inputs": [{"name": "image", "name": "other", "datatype": "FP32", '
    status, answer = server.post(INFER, body + b'"shape": [0], "data": []}]}')
    assert (status, answer["error"][:16]) == (400, "no input 'other'")


# gRPC


@needs_proc
@pytest.mark.parametrize("name", ["Gzip", "Deflate"])
def test_messages_that_unpack_to_more_than_the_limit_are_refused(server: Server, name: str) -> None:
    message = infer_message(b"\0" * (48 << 20))  # packed, 48 KiB
    before = resident_mib(server)
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary(METHOD, request_serializer=lambda content: content)
        with pytest.raises(grpc.RpcError) as caught:
            call(message, timeout=20, compression=getattr(grpc.Compression, name))
    assert caught.value.code() is StatusCode.RESOURCE_EXHAUSTED
    assert resident_mib(server) - before < 100


@pytest.mark.parametrize(
    "metadata",
    [[("x", "y" * 200_000)], [(f"x-{number}", "y" * 20) for number in range(5000)], [("x", "y")] * 5000],
    ids=["long", "many", "same"],
)
def test_metadata_without_end_is_refused(server: Server, metadata: list[tuple[str, str]]) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", metadata=metadata, timeout=20)
    assert caught.value.code() in (StatusCode.RESOURCE_EXHAUSTED, StatusCode.UNAVAILABLE, StatusCode.INTERNAL)
    with grpc.insecure_channel(server.grpc) as channel:
        channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=20)


def test_a_shape_that_leaves_an_axis_open_is_refused(server: Server) -> None:
    message = service_pb2.ModelInferRequest.FromString(infer_message(encoded(0)))
    message.inputs[0].shape[0] = -1
    text = "input 'encoded_image': shape: expected numbers of at least 0, got [-1]"
    assert refusal(server, message) == (StatusCode.INVALID_ARGUMENT, text)


def test_parameters_of_other_types_are_refused(server: Server) -> None:
    message = service_pb2.ModelInferRequest.FromString(infer_message(encoded(0)))
    message.outputs.add(name="logits").parameters["classification"].SetInParent()
    text = "'logits': parameter 'classification': expected a bool_param, int64_param or string_param"
    assert refusal(server, message) == (StatusCode.INVALID_ARGUMENT, text)


@needs_proc
def test_calls_that_are_cancelled_at_once_leave_nothing_behind(server: Server) -> None:
    message, before = infer_message(encoded(0)), resident_mib(server)
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary(METHOD)
        for _ in range(20):
            under_way: list[Any] = [call.future(message, timeout=20) for _ in range(100)]
            for each in under_way:
                each.cancel()
        for _ in range(3):
            wait_until(lambda: answers(call, message))
    assert server.post(CLASSIFY, encoded(0))[0] == 200
    wait_until(lambda: server.metric(f'pipeline_waiting_images{{model="{NAME}"}}') == 0)
    assert resident_mib(server) - before < 100


def answers(call: Any, message: bytes) -> bool:
    """Tell whether a call is answered; one that is refused for the load may come again."""
    try:
        call(message, timeout=20)
    except grpc.RpcError as err:
        assert err.code() in (StatusCode.RESOURCE_EXHAUSTED, StatusCode.UNAVAILABLE), err
        return False
    return True


def test_the_server_is_well_after_all_that(server: Server) -> None:
    assert server.post(CLASSIFY, encoded(0))[0] == 200
    assert server.get("/v2/health/ready")[0] == 200
    assert server.process.poll() is None
    _, out = server.stop()
    assert "Traceback" not in out, out
