"""The server as a whole, asked by clients that others wrote: tritonclient over gRPC and REST, and plain HTTP."""

from __future__ import annotations

import base64
import gzip
import http.client
import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from run_fixtures import CLASS_IDS, NAME, REPOSITORY, TinyWorkspace, draw
from serve_fixtures import Server, answer_of, command, connect, encoded, request, running

from pipeline.artefacts import write_json, write_manifest
from pipeline.building import build
from pipeline.config.build_config import BuildConfig
from pipeline.data import preprocess
from pipeline.host.extras import install_command
from pipeline.packages.package import open_package
from pipeline.run.predict import Classifier
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import choose, open_backend, place

# Not imported: KServe and tritonclient define the same protocol, and a process takes only one definition.
if importlib.util.find_spec("kserve") is None:
    pytest.skip("serve's packages are not installed: pip install '.[serve]'", allow_module_level=True)
triton_grpc = pytest.importorskip("tritonclient.grpc", reason="no tritonclient: pip install '.[ci]'")
triton_http = pytest.importorskip("tritonclient.http", reason="no tritonclient: pip install '.[ci]'")
InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException

pytestmark = pytest.mark.slow

MakeConfig = Callable[..., BuildConfig]


@pytest.fixture(scope="module")
def server(tiny_workspace_master: TinyWorkspace) -> Iterator[Server]:
    """It has float32 tensors as input, whatever runtime is here."""
    with running(tiny_workspace_master.package, "-b", "4", "-i", "2", "--max_body", "1", "--max_queue", "16") as server:
        yield server


@pytest.fixture(scope="module")
def images(server: Server) -> list[np.ndarray]:
    """Prepared, float32 [3, 32, 32]."""
    spec = server.package.preprocess()
    return [preprocess.apply(spec, draw(index)) for index in range(6)]


@pytest.fixture(scope="module")
def wanted(server: Server, images: Sequence[np.ndarray]) -> np.ndarray:
    """The model's own scores."""
    runtime = choose(Runtime.AUTO)
    with open_backend(runtime, server.package.model, batch=1, placement=place(1, 1)) as backend:
        return np.concatenate([backend.infer(each[None]) for each in images])


_OPEN: list[Any] = []  # clients that the test's own thread made


def client_of(module: ModuleType, server: Server) -> Any:
    """Return a client. It is closed at the end of the test, or by the thread that made it."""
    client = module.InferenceServerClient(server.grpc if module is triton_grpc else server.http)
    if module is triton_http:
        # Its finalizer waits for gevent, which crashes in threads that did not make the client, where Python may happen
        # to collect garbage.
        client.__class__ = _WithoutFinalizer
        if threading.current_thread() is threading.main_thread():
            _OPEN.append(client)
    return client


class _WithoutFinalizer(triton_http.InferenceServerClient):  # type: ignore[misc, name-defined]
    def __del__(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _clients_are_closed() -> Iterator[None]:
    yield
    while _OPEN:
        _OPEN.pop().close()


def tensor(module: ModuleType, array: np.ndarray, name: str = "image", datatype: str = "FP32") -> Any:
    given = module.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array)
    return given


both = pytest.mark.parametrize("module", [triton_grpc, triton_http], ids=["grpc", "rest"])


@both
def test_health_and_metadata(server: Server, module: ModuleType) -> None:
    client = client_of(module, server)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(NAME)
    if module is triton_http:
        about, model = client.get_server_metadata(), client.get_model_metadata(NAME)
    else:
        about = client.get_server_metadata(as_json=True)
        model = client.get_model_metadata(NAME, as_json=True)
    assert about["name"] == "int8-classifier-pipeline"
    assert [each["name"] for each in model["inputs"]] == ["image", "encoded_image"]
    assert [int(axis) for axis in model["inputs"][0]["shape"]] == [-1, 3, 32, 32]
    assert [each["name"] for each in model["outputs"]] == ["logits", "probabilities"]
    assert [int(axis) for axis in model["outputs"][0]["shape"]] == [-1, len(CLASS_IDS)]


@both
@pytest.mark.parametrize("count", [1, 4, 6])
def test_tensors_get_the_models_scores(
    server: Server, images: list[np.ndarray], wanted: np.ndarray, module: ModuleType, count: int
) -> None:
    answer = client_of(module, server).infer(NAME, [tensor(module, np.stack(images[:count]))], request_id="a7")
    response = answer.get_response()
    assert (response["id"] if module is triton_http else response.id) == "a7"
    np.testing.assert_allclose(answer.as_numpy("logits"), wanted[:count], rtol=1e-5, atol=1e-5)
    shares = answer.as_numpy("probabilities")
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
    assert shares.argmax(axis=1).tolist() == wanted[:count].argmax(axis=1).tolist()


def test_numbers_in_json_get_the_same(server: Server, images: list[np.ndarray], wanted: np.ndarray) -> None:
    given = {"name": "image", "datatype": "FP32", "shape": [1, 3, 32, 32], "data": images[0].ravel().tolist()}
    body = json.dumps({"inputs": [given], "outputs": [{"name": "logits"}]}).encode()
    status, answer = server.post(f"/v2/models/{NAME}/infer", body)
    assert status == 200
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("logits", "FP32", [1, len(CLASS_IDS)])
    np.testing.assert_allclose(output["data"], wanted[0], rtol=1e-5, atol=1e-5)


@both
def test_files_are_decoded_and_prepared_as_predict_does(server: Server, wanted: np.ndarray, module: ModuleType) -> None:
    files = np.array([encoded(index) for index in range(3)], dtype=object)
    answer = client_of(module, server).infer(NAME, [tensor(module, files, "encoded_image", "BYTES")])
    np.testing.assert_allclose(answer.as_numpy("logits"), wanted[:3], rtol=1e-5, atol=1e-5)


@both
def test_the_classification_extension(server: Server, images: list[np.ndarray], module: ModuleType) -> None:
    client = client_of(module, server)
    asked = [module.InferRequestedOutput("probabilities", class_count=2)]
    rows = client.infer(NAME, [tensor(module, np.stack(images[:2]))], outputs=asked).as_numpy("probabilities")
    assert rows.shape == (2, 2)
    with Classifier(server.package.prefix) as classifier:
        arrays = [draw(index).transpose(1, 2, 0) for index in range(2)]
        for row, prediction in zip(rows, classifier.predict(arrays, topk=2), strict=True):
            for text, score, number, label in zip(
                row, prediction.scores, prediction.class_ids, prediction.labels, strict=True
            ):
                value, found, name = text.decode().split(":", 2)
                assert (int(found), name) == (number, label)
                assert float(value) == pytest.approx(score, abs=1e-5)


def test_uploads_get_what_predict_prints(server: Server, tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(2)]
    for index, path in enumerate(paths):
        path.write_bytes(encoded(index))
    with Classifier(server.package.prefix) as classifier:
        expected = [each.as_dict() for each in classifier.predict(paths, topk=3)]
    status, found = server.post(f"/v2/models/{NAME}/classify?topk=3", paths[0].read_bytes())
    assert status == 200
    assert found == [{**expected[0], "file_name": "image"}]
    parts = b"".join(
        b'--edge\r\nContent-Disposition: form-data; name="f"; filename="%s"\r\n\r\n%s\r\n'
        % (path.name.encode(), path.read_bytes())
        for path in paths
    )
    form = "multipart/form-data; boundary=edge"
    status, found = server.post(f"/v2/models/{NAME}/classify?topk=3", parts + b"--edge--\r\n", content_type=form)
    assert status == 200
    assert found == [{**each, "file_name": path.name} for each, path in zip(expected, paths, strict=True)]


NOT_AN_IMAGE = np.array([b"no image"], dtype=object)


@both
@pytest.mark.parametrize(
    ("name", "array", "datatype", "output", "text"),
    [
        ("pixels", np.zeros((1, 3, 32, 32), np.float32), "FP32", "logits", "no input 'pixels'; expected 'image'"),
        ("image", np.zeros((1, 3, 32, 32), np.uint8), "UINT8", "logits", "expected FP32 [N, 3, 32, 32], got UINT8"),
        ("image", np.zeros((1, 3, 33, 32), np.float32), "FP32", "logits", "got FP32 [1, 3, 33, 32]"),
        ("image", np.zeros((3, 32, 32), np.float32), "FP32", "logits", "got FP32 [3, 32, 32]"),
        ("image", np.zeros((0, 3, 32, 32), np.float32), "FP32", "logits", "at least one image"),
        ("image", np.zeros((1, 3, 32, 32), np.float32), "FP32", "scores", "no output 'scores'; expected 'logits'"),
        ("image", np.full((1, 3, 32, 32), np.nan, np.float32), "FP32", "logits", "NaN"),
        ("encoded_image", NOT_AN_IMAGE, "BYTES", "logits", "encoded_image[0]: image of 8 bytes: cannot be decoded"),
        ("encoded_image", NOT_AN_IMAGE.repeat(2)[None], "BYTES", "logits", "expected BYTES [N], got BYTES [1, 2]"),
    ],
)
def test_a_wrong_request_is_answered_in_a_line(
    server: Server, module: ModuleType, name: str, array: np.ndarray, datatype: str, output: str, text: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        asked = [module.InferRequestedOutput(output)]
        client_of(module, server).infer(NAME, [tensor(module, array, name, datatype)], outputs=asked)
    assert text in caught.value.message()
    assert "\n" not in caught.value.message()
    assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")


@pytest.mark.parametrize("name", ["a" * 20_000, "猫" * 3000, "%" * 6000])
def test_an_error_over_grpc_quotes_what_a_client_can_receive(server: Server, name: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client_of(triton_grpc, server).infer(NAME, [tensor(triton_grpc, np.zeros((1, 3, 32, 32), np.float32), name)])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    text = caught.value.message()
    assert text.startswith(f"no input '{name[:400]}") and text.endswith(name[0] + "...")
    assert len(urllib.parse.quote(text)) <= 4200


def body(*tensors: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": tensors, **more}).encode()


def in_json(**changes: Any) -> dict[str, Any]:
    """Return a tensor that fits, but for the changes; None leaves a key out."""
    made = {"name": "image", "datatype": "FP32", "shape": [1, 3, 32, 32], "data": [0.5] * 3072, **changes}
    return {key: value for key, value in made.items() if value is not None}


FILE = {"name": "encoded_image", "datatype": "BYTES", "shape": [1], "data": ["%"]}
FITS = body(in_json())
SHARED = {"shared_memory_region": "region", "shared_memory_byte_size": 40}


@pytest.mark.parametrize(
    ("content", "length", "text"),
    [
        (b"{", None, "no JSON"),
        (b"[]", None, "'inputs', a list of one tensor"),
        (b'{"inputs": 3}', None, "a list of one tensor"),
        (b'{"inputs": [1]}', None, "a list of one tensor"),
        (body(), None, "a list of one tensor"),
        (body(in_json(), in_json()), None, "a list of one tensor"),
        (body(in_json(name=None)), None, "name: expected text"),
        (body(in_json(shape=[1, -3])), None, "shape: expected a list of numbers"),
        (body(in_json(shape=[True])), None, "shape: expected a list of numbers"),
        (body(in_json(shape=[1, 3, 2, 3])), None, "are not FP32 [1, 3, 2, 3]"),
        (body(in_json(datatype="UINT8", data=[256] * 3072)), None, "expected 0 to 255, got 256 to 256"),
        (body(in_json(datatype="UINT8", data=[-1] * 3072)), None, "expected 0 to 255"),
        (body(in_json(datatype="UINT8")), None, "expected numbers of UINT8"),
        (body(in_json(data=["1"] * 3072)), None, "expected numbers of FP32"),
        (body(in_json(data=[0.5] * 3071 + [True])), None, "expected numbers or texts, got true or false"),
        (body(in_json(data=[[1, 2], [3]])), None, "are not FP32"),
        (body(in_json(data=None)), None, "data: expected a list, got NoneType"),
        (body(in_json(datatype="INT64")), None, "expected UINT8, FP32 or BYTES, got 'INT64'"),
        (body(FILE), None, "are not BYTES [1]"),
        (body(in_json(data=None, parameters={"binary_data_size": 12})), None, "0 bytes follow the JSON, got 12"),
        (body(in_json(data=None, parameters={"binary_data_size": "12"})), None, "0 bytes follow the JSON"),
        (body(in_json(parameters=[])), None, "parameters: expected an object"),
        (FITS + b"more", str(len(FITS)), "4 bytes follow the JSON, got None"),
        (FITS, "1e3", "inference-header-content-length: expected 0 to"),
        (FITS, "99999", "inference-header-content-length: expected 0 to"),
        (FITS, "-1", "inference-header-content-length: expected 0 to"),
        (body(in_json(), outputs={"name": "logits"}), None, "outputs: expected a list of objects"),
        (body(in_json(), outputs=[{"name": 3}]), None, "name: expected text, got 3"),
        (body(in_json(), outputs=[{"name": "logits", "parameters": {"classification": "2"}}]), None, "a number of"),
        (body(in_json(), outputs=[{"name": "logits", "parameters": {"classification": True}}]), None, "a number of"),
        (body(in_json(), outputs=[{"name": "logits", "parameters": {"classification": 1.5}}]), None, "a number of"),
        (body(in_json(), outputs=[{"name": "logits", "parameters": SHARED}]), None, "shared memory is not supported"),
        (
            body(in_json(data=None, parameters=SHARED)),
            None,
            "input 'image': shared_memory_region: shared memory is not",
        ),
        (body(in_json(shape=[1.5, 3, 32, 32])), None, "shape: expected a list of numbers"),
        (body(in_json(datatype="UINT8", data=[0.5] * 3072)), None, "expected numbers of UINT8"),
        (body(in_json(), id=3), None, "id: expected text, got 3"),
        (b'{"inputs": [{}, {}]}', None, "a list of one tensor, got 2"),
        (body(in_json(), parameters={"binary_data_output": "yes"}), None, "binary_data_output: expected true or false"),
        (
            body(in_json(), outputs=[{"name": "logits", "parameters": {"binary_data": []}}]),
            None,
            "binary_data: expected",
        ),
    ],
)
def test_what_is_no_request_is_said_in_a_line(server: Server, content: bytes, length: str | None, text: str) -> None:
    headers = {} if length is None else {"inference_header_content_length": length}
    status, answer = server.post(f"/v2/models/{NAME}/infer", content, **headers)
    assert (status, list(answer)) == (400, ["error"])
    assert text in answer["error"]
    assert "\n" not in answer["error"]


def test_a_form_without_files_is_told_what_a_file_is(server: Server) -> None:
    form = b'--XX\r\ncontent-disposition: form-data; name="a"\r\n\r\n' + encoded(0) + b"\r\n--XX--\r\n"
    found = server.post(f"/v2/models/{NAME}/classify", form, content_type="multipart/form-data; boundary=XX")
    text = "the form has no files; a file is a part with a file name, as curl -F a=@cat.jpg sends it"
    assert found == (400, {"error": text})


def test_a_fault_of_the_data_is_said_once(server: Server) -> None:
    given = body(in_json(datatype="UINT8", data=[300] * 3072))
    status, answer = server.post(f"/v2/models/{NAME}/infer", given)
    assert (status, answer) == (400, {"error": "input 'image': data: expected 0 to 255, got 300 to 300"})


def test_calls_are_answered_with_a_last_slash_too(server: Server) -> None:
    infer = f"/v2/models/{NAME}/infer"
    assert server.post(f"{infer}/", body(in_json()))[1]["outputs"] == server.post(infer, body(in_json()))[1]["outputs"]
    assert server.post(f"/v2/models/{NAME}/versions/1/infer/", body(in_json()))[0] == 200


@pytest.mark.parametrize(
    "changed",
    [
        body(in_json(shape=[1.0, 3.0, 32.0, 32.0]), outputs=[{"name": "logits"}]),  # as the generated client writes
        body(in_json(), outputs=[{"name": "logits"}], id=None),
        body(in_json(), outputs=[{"name": "logits", "parameters": {"classification": 0.0}}]),
    ],
)
def test_what_clients_write_otherwise_gets_the_same_answer(server: Server, changed: bytes) -> None:
    infer = f"/v2/models/{NAME}/infer"
    wanted = server.post(infer, body(in_json(), outputs=[{"name": "logits"}]))[1]["outputs"]
    status, answer = server.post(infer, changed)
    assert (status, answer["outputs"], answer["model_version"]) == (200, wanted, "1")


@both
def test_the_version_that_there_is_answers_and_no_other(
    server: Server, images: list[np.ndarray], wanted: np.ndarray, module: ModuleType
) -> None:
    client = client_of(module, server)
    assert client.is_model_ready(NAME, "1")
    given = [tensor(module, images[0][None])]
    answer = client.infer(NAME, given, model_version="1")
    np.testing.assert_allclose(answer.as_numpy("logits"), wanted[:1], rtol=1e-5, atol=1e-5)
    about = client.get_model_metadata(NAME, "1", **({} if module is triton_http else {"as_json": True}))
    assert about["versions"] == ["1"]
    text = f"model '{NAME}' has no version '2'; it has version 1"
    requests: tuple[Callable[[], Any], ...] = (
        lambda: client.infer(NAME, given, model_version="2"),
        lambda: client.get_model_metadata(NAME, "2"),
    )
    for ask in requests:
        with pytest.raises(InferenceServerException) as caught:
            ask()
        assert caught.value.message() == text
        assert caught.value.status() in ("StatusCode.NOT_FOUND", "404")
    if module is triton_http:
        assert not client.is_model_ready(NAME, "2")
        assert server.post(f"/v2/models/{NAME}/versions/2/infer", FITS) == (404, {"error": text})
        assert json.loads(server.get(f"/v2/models/{NAME}/versions/2/ready")[1]) == {"error": text}
    else:
        with pytest.raises(InferenceServerException, match="has no version '2'"):
            client.is_model_ready(NAME, "2")


def test_uploads_to_a_version(server: Server) -> None:
    assert server.post(f"/v2/models/{NAME}/versions/1/classify", encoded(0))[0] == 200
    assert server.post(f"/v2/models/{NAME}/versions/3/classify", encoded(0))[0] == 404


@both
def test_files_in_a_column_are_taken(server: Server, wanted: np.ndarray, module: ModuleType) -> None:
    files = np.array([[encoded(index)] for index in range(3)], dtype=object)
    answer = client_of(module, server).infer(NAME, [tensor(module, files, "encoded_image", "BYTES")])
    np.testing.assert_allclose(answer.as_numpy("logits"), wanted[:3], rtol=1e-5, atol=1e-5)


@both
def test_an_output_asked_for_in_shared_memory_is_refused(
    server: Server, images: list[np.ndarray], module: ModuleType
) -> None:
    asked = module.InferRequestedOutput("logits")
    asked.set_shared_memory("region", 40)
    with pytest.raises(InferenceServerException, match="output 'logits': shared_memory_region: shared memory is not"):
        client_of(module, server).infer(NAME, [tensor(module, images[0][None])], outputs=[asked])


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_get_the_same_answer(
    server: Server, images: list[np.ndarray], wanted: np.ndarray, algorithm: str
) -> None:
    given = [tensor(triton_http, np.stack(images[:2]))]
    client = client_of(triton_http, server)
    answer = client.infer(NAME, given, request_compression_algorithm=algorithm)
    np.testing.assert_allclose(answer.as_numpy("logits"), wanted[:2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("content", "encoding", "status", "text"),
    [
        (gzip.compress(b" " * (2 << 20)), "gzip", 413, "the unpacked body has more than 1048576 bytes"),
        (gzip.compress(FITS)[:-9], "gzip", 400, "the body is not whole gzip data"),
        (FITS, "gzip", 400, "the body is no gzip data"),
        (FITS, "br", 415, "content-encoding: expected gzip, deflate or none, got 'br'"),
        (random.Random(1).randbytes((1 << 20) + 1), "gzip", 413, "the body has more than 1048576 bytes"),
    ],
)
def test_a_compressed_body_that_cannot_be_taken_is_refused(
    server: Server, content: bytes, encoding: str, status: int, text: str
) -> None:
    found, answer = server.post(f"/v2/models/{NAME}/infer", content, content_encoding=encoding)
    assert (found, list(answer)) == (status, ["error"])
    assert text in answer["error"]


def test_unpack_reads_every_form_of_the_two_encodings() -> None:
    from pipeline.serve.unpacking import unpack

    text = bytes(range(256)) * 50
    raw = zlib.compressobj(wbits=-15)
    assert unpack(gzip.compress(text), "gzip", len(text)) == text
    assert unpack(gzip.compress(text[:99]) + gzip.compress(text[99:]), "x-gzip", len(text)) == text
    assert unpack(zlib.compress(text), "deflate", len(text)) == text
    assert unpack(raw.compress(text) + raw.flush(), "deflate", len(text)) == text
    assert unpack(b"", "gzip", 5) == b""
    noise = random.Random(0).randbytes(300_000)  # longer than what zlib gets at once
    assert unpack(gzip.compress(noise), "gzip", len(noise)) == noise
    assert (
        unpack(b"".join(gzip.compress(noise[at : at + 99]) for at in range(0, 99_000, 99)), "gzip", 99_000)
        == (noise[:99_000])
    )


def test_unpack_takes_no_time_for_streams_of_nothing() -> None:
    from starlette.exceptions import HTTPException

    from pipeline.serve.unpacking import unpack

    nothing, begun = gzip.compress(b""), time.process_time()
    assert unpack(nothing * 10_000, "gzip", 5) == b""
    with pytest.raises(HTTPException, match="more than 10000 streams"):
        unpack(nothing * 400_000, "gzip", 5)
    assert time.process_time() - begun < 2


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models", "/metrics", ""])
def test_probes_may_ask_for_the_head_alone(server: Server, path: str) -> None:
    connection = http.client.HTTPConnection(server.http, timeout=30)
    for each in [path] if path else [f"/v2/models/{NAME}", f"/v2/models/{NAME}/versions/1/ready"]:
        connection.request("HEAD", each)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"")
    connection.close()


@pytest.mark.parametrize(
    ("accept", "kind", "end"),
    [
        ("", "text/plain; version=0.0.4", ""),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=1.0.0", "# EOF\n"),
    ],
)
def test_metrics_come_in_the_form_that_is_asked_for(server: Server, accept: str, kind: str, end: str) -> None:
    connection = http.client.HTTPConnection(server.http, timeout=30)
    connection.request("GET", "/metrics", headers={"accept": accept} if accept else {})
    answer = connection.getresponse()
    assert (answer.headers["content-type"].startswith(kind), answer.read().decode().endswith(end)) == (True, True)
    connection.close()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 300) | st.floats(allow_nan=False) | st.sampled_from(["FP32", "image"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["inputs", "name", "datatype", "shape", "data", "parameters"]), inner)
    ),
)


@given(_JSON, st.binary(max_size=20), st.none() | st.integers(0, 60))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_body_is_a_request_or_a_fault(server: Server, document: object, behind: bytes, length: int | None) -> None:
    headers = {} if length is None else {"inference_header_content_length": str(length)}
    status, answer = server.post(f"/v2/models/{NAME}/infer", json.dumps(document).encode() + behind, **headers)
    assert status == 400
    assert "\n" not in answer["error"]


def test_files_in_base64(server: Server, wanted: np.ndarray) -> None:
    files = [base64.b64encode(encoded(index)).decode() for index in range(2)]
    given = {"name": "encoded_image", "datatype": "BYTES", "shape": [2], "data": files}
    status, answer = server.post(f"/v2/models/{NAME}/infer", body(given, outputs=[{"name": "logits"}]))
    assert status == 200
    np.testing.assert_allclose(np.reshape(answer["outputs"][0]["data"], (2, -1)), wanted[:2], rtol=1e-5, atol=1e-5)


@both
def test_an_unknown_model_is_not_found(server: Server, images: list[np.ndarray], module: ModuleType) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client_of(module, server).infer("other", [tensor(module, images[0][None])])
    assert caught.value.status() in ("StatusCode.NOT_FOUND", "404")
    assert server.post("/v2/models/other/classify", encoded(0))[0] == 404


def test_bodies_that_are_cut_or_lie_are_refused(server: Server) -> None:
    infer = f"/v2/models/{NAME}/infer"
    assert server.post(infer, b"{")[0] == 400
    assert server.post(infer, b"{}", inference_header_content_length="99")[0] == 400
    assert server.post(f"/v2/models/{NAME}/classify?topk=0", encoded(0)) == (
        400,
        {"error": "topk: expected 1 or more, got 0"},
    )
    status, answer = server.post(f"/v2/models/{NAME}/classify", b"")
    assert status == 400
    assert answer["error"].endswith(
        "image of 0 bytes: cannot be decoded as an image: it is empty; copy or download it again"
    )
    status, answer = server.post(f"/v2/models/{NAME}/classify?topk=many", encoded(0))
    assert status == 400
    assert answer["error"].startswith("topk: ")
    assert server.post("/v3", b"") == (404, {"error": "Not Found"})
    status, answer = server.post(f"/v2/models/{NAME}/classify", b"--x", content_type="multipart/form-data; boundary=y")
    assert (status, list(answer)) == (400, ["error"])
    head = json.dumps({"inputs": [{"name": "encoded_image", "datatype": "BYTES", "shape": [1], "parameters": {}}]})
    cut = head.replace("{}", '{"binary_data_size": 6}').encode()
    status, answer = server.post(infer, cut + b"\xff\0\0\0ab", inference_header_content_length=str(len(cut)))
    assert status == 400
    assert "are not BYTES [1]" in answer["error"]


def test_limits(server: Server, images: list[np.ndarray]) -> None:
    before = server.metric('pipeline_refused_requests_total{reason="body too large"}')
    infer = f"/v2/models/{NAME}/infer"
    assert server.post(infer, b" " * (1 << 20) + b"{")[0] == 413
    with pytest.raises(InferenceServerException, match="larger than max"):
        client_of(triton_grpc, server).infer(NAME, [tensor(triton_grpc, np.stack(images * 20))])
    for module in (triton_grpc, triton_http):
        with pytest.raises(InferenceServerException, match="17 images; expected at most 16 a request"):
            client_of(module, server).infer(NAME, [tensor(module, np.stack([images[0]] * 17))])
    assert server.metric('pipeline_refused_requests_total{reason="body too large"}') == before + 1


def test_what_does_not_fit_in_the_queue_is_refused_and_counted(server: Server, images: list[np.ndarray]) -> None:
    refusals: list[str] = []

    def ask(number: int) -> None:
        module = (triton_grpc, triton_http)[number % 2]
        client = client_of(module, server)
        for _ in range(20):
            try:
                client.infer(NAME, [tensor(module, np.stack([images[0]] * 16))])  # as many as may wait
            except InferenceServerException as err:
                assert "the queue is full; try again later" in err.message()
                refusals.append(err.status())
        client.close()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(16)))
    assert set(refusals) == {"StatusCode.UNAVAILABLE", "503"}
    assert server.metric('pipeline_refused_requests_total{reason="queue full"}') == len(refusals)


def test_a_damaged_file_frees_the_room_of_its_request(server: Server, wanted: np.ndarray) -> None:
    client = client_of(triton_grpc, server)

    def infer(contents: list[bytes]) -> Any:
        given = triton_grpc.InferInput("encoded_image", [len(contents)], "BYTES")
        given.set_data_from_numpy(np.array(contents, dtype=object))
        return client.infer(NAME, [given]).as_numpy("logits")

    for number in range(3):
        files = [encoded(0)] * 16  # as many as may wait
        files[5 * number] = b"damaged"
        with pytest.raises(InferenceServerException, match=rf"encoded_image\[{5 * number}\]: .*cannot be decoded"):
            infer(files)
    deadline = time.monotonic() + 30
    while True:  # the other files of those requests may still be decoded
        try:
            found = infer([encoded(index % 3) for index in range(16)])
            break
        except InferenceServerException as err:
            assert "the queue is full" in err.message() and time.monotonic() < deadline
            time.sleep(0.05)
    np.testing.assert_allclose(found, [wanted[index % 3] for index in range(16)], rtol=1e-5, atol=1e-5)


def test_a_client_cannot_take_the_model_away(server: Server) -> None:
    with pytest.raises(InferenceServerException, match="neither loaded nor unloaded by clients"):
        client_of(triton_grpc, server).unload_model(NAME)
    assert server.post(f"/v2/repository/models/{NAME}/unload", b"{}")[0] == 404
    assert server.get(f"/v2/models/{NAME}/ready")[0] == 200


def test_many_clients_share_batches_and_metrics_count_them(
    server: Server, images: list[np.ndarray], wanted: np.ndarray
) -> None:
    before = (
        server.metric(f'pipeline_images_total{{model="{NAME}"}}'),
        server.metric(f'pipeline_batch_images_count{{model="{NAME}"}}'),
    )

    def ask(number: int) -> bool:
        module = (triton_grpc, triton_http)[number % 2]
        client = client_of(module, server)
        for index in range(len(images)):
            found = client.infer(NAME, [tensor(module, images[index][None])]).as_numpy("logits")
            np.testing.assert_allclose(found[0], wanted[index], rtol=1e-5, atol=1e-5)
        client.close()
        return True

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(ask, range(12)))
    assert server.metric(f'pipeline_images_total{{model="{NAME}"}}') - before[0] == 12 * len(images)
    assert server.metric(f'pipeline_batch_images_count{{model="{NAME}"}}') - before[1] <= 12 * len(images)
    assert server.metric(f'pipeline_waiting_images{{model="{NAME}"}}') == 0
    assert f'request_predict_seconds_count{{model_name="{NAME}"}}' in server.get("/metrics")[1]


@pytest.mark.parametrize("runtime", [pytest.param("openvino", marks=pytest.mark.openvino), "onnxruntime"])
def test_pixels_for_a_model_that_takes_them(make_config: MakeConfig, runtime: str) -> None:
    ops = (
        "dataset.process_ops=[{type: DecodeImage}, {type: Resize, size: 36, interpolation: BILINEAR_PILLOW}, "
        "{type: CenterCrop, crop_size: 32}, {type: Normalize, mean: [0.485, 0.456, 0.406], "
        "std: [0.229, 0.224, 0.225]}, {type: ToTensor}]"
    )
    package = open_package(build(make_config(ops), lambda line: None).prefix)
    assert package.takes_pixels
    pixels = np.stack([preprocess.prepare(package.preprocess(), draw(index), raw=True) for index in range(9)])
    with open_backend(Runtime(runtime), package.model, batch=1, placement=place(1, 1)) as backend:
        scores = np.concatenate([backend.infer(each[None]) for each in pixels])
        name = backend.input.name, backend.output.name
    with running(package, "--runtime", runtime, "-b", "4") as server:
        platform = {"openvino": "OpenVINO", "onnxruntime": "onnxruntime_onnx"}[runtime]
        assert client_of(triton_http, server).get_model_metadata(NAME)["platform"] == platform
        assert client_of(triton_grpc, server).get_model_metadata(NAME).platform == platform
        for module in (triton_grpc, triton_http):
            pixel_tensor = tensor(module, pixels, name[0], "UINT8")
            found = client_of(module, server).infer(package.name, [pixel_tensor]).as_numpy(name[1])
            np.testing.assert_allclose(found, scores, rtol=1e-5, atol=1e-5)
        # As the client writes that is generated from the protocol: 217.0 for 217.
        numbers = {"name": name[0], "datatype": "UINT8", "shape": [1.0, 3.0, 32.0, 32.0]}
        asked = body({**numbers, "data": [float(value) for value in pixels[3].ravel()]}, outputs=[{"name": name[1]}])
        status, answer = server.post(f"/v2/models/{package.name}/infer", asked)
        assert status == 200
        np.testing.assert_allclose(answer["outputs"][0]["data"], scores[3], rtol=1e-5, atol=1e-5)
        assert server.stop() == (0, "stopping: clients have 2 s to leave\nstopped\n")


def test_a_model_that_fails_is_the_servers_fault(tiny: TinyWorkspace, images: list[np.ndarray]) -> None:
    model = onnx.load(tiny.package.model)
    model.graph.node[-1].output[0] = "sound"
    model.graph.initializer.append(numpy_helper.from_array(np.full(1, np.nan, np.float32), "nothing"))
    model.graph.node.append(helper.make_node("Add", ["sound", "nothing"], ["logits"], "spoil"))
    onnx.save(model, tiny.package.model)
    write_manifest(tiny.folder, "package")
    with running(tiny.package) as server:
        for module in (triton_grpc, triton_http):
            with pytest.raises(InferenceServerException, match="the model's output holds NaN or Inf") as caught:
                client_of(module, server).infer(NAME, [tensor(module, images[0][None])])
            assert caught.value.status() in ("StatusCode.INTERNAL", "500")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_request_is_lost_while_it_stops(
    tiny_workspace_master: TinyWorkspace, images: list[np.ndarray], number: signal.Signals
) -> None:
    outcomes: Counter[str] = Counter()

    def ask(server: Server, client_number: int) -> None:
        module = (triton_grpc, triton_http)[client_number % 2]
        client = client_of(module, server)
        while True:
            try:
                client.infer(NAME, [tensor(module, images[0][None])])
            except (InferenceServerException, ConnectionRefusedError) as err:
                refused = "stopping" in str(err) or "refused" in str(err)
                outcomes["refused" if refused else f"lost: {err}"] += 1
                break
            outcomes["answered"] += 1
        client.close()

    with running(tiny_workspace_master.package, "-b", "4", "--drain", "0.5") as server:
        clients = [threading.Thread(target=ask, args=(server, each)) for each in range(8)]
        for client in clients:
            client.start()
        time.sleep(1)
        code, out = server.stop(number)
        for client in clients:
            client.join()
    assert (code, out) == (0, "stopping: clients have 0.5 s to leave\nstopped\n")
    assert set(outcomes) == {"answered", "refused"}, outcomes
    assert outcomes["refused"] == len(clients)


def test_a_body_that_does_not_come_while_it_stops_is_refused_in_a_line(tiny_workspace_master: TinyWorkspace) -> None:
    with running(tiny_workspace_master.package, "--drain", "0", "--grace", "1") as server:
        with connect(server) as connection:
            connection.sendall(request(encoded(0))[:-10])
            assert server.get("/v2/health/live")[0] == 200
            server.process.send_signal(signal.SIGTERM)
            status, _, text = answer_of(connection)
        assert (status, json.loads(text)) == (503, {"error": "the server is stopping"})
        code, out = server.process.wait(30), server.process.stdout
        assert out is not None
        assert (code, "Traceback" in out.read()) == (0, False)


def test_it_is_not_ready_while_it_stops(tiny_workspace_master: TinyWorkspace) -> None:
    with running(tiny_workspace_master.package, "--drain", "3") as server:
        server.process.send_signal(signal.SIGTERM)
        for _ in range(100):
            status, _ = server.get("/v2/health/ready")
            if status != 200:
                break
            time.sleep(0.02)
        assert status == 503
        assert server.get("/v2/health/live")[0] == 200
        begun = time.perf_counter()
        assert server.stop()[0] == 0  # the second signal
        assert time.perf_counter() - begun < 2.5


def test_faults_at_the_start_are_a_line(tiny_workspace_master: TinyWorkspace, tmp_path: Path) -> None:
    package = tiny_workspace_master.package

    def fault(*flags: str, **more: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **more}
        done = subprocess.run([*command(package), *flags], capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == 2
        (line,) = [line for line in done.stderr.splitlines() if not line.startswith("sample weights")]
        return line

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port}: cannot be listened on" in fault("--http_port", str(port))
        assert f"port {port}: cannot be listened on" in fault("--grpc_port", str(port))
    assert "is that of HTTP" in fault("--http_port", "8001", "--grpc_port", "8001")
    assert "expected 0 to 65535" in fault("--http_port", "70000")
    assert "expected 0 to 3600 seconds" in fault("--drain", "-1")
    assert "fewer than the 8 images of a batch" in fault("--max_queue", "4", "-b", "8")
    assert "cannot be listened on" in fault("--host", "203.0.113.7", "--insecure")
    (tmp_path / "kserve.py").write_text("raise ModuleNotFoundError('hidden', name='kserve')")
    text = fault(PYTHONPATH=f"{tmp_path}:{REPOSITORY}")
    assert text == f"error: serve needs kserve, which is not installed; run: {install_command('serve')}"


def test_scores_of_sigmoids_are_given_as_they_are(tiny: TinyWorkspace, images: list[np.ndarray]) -> None:
    model = onnx.load(tiny.package.model)
    model.graph.node.append(helper.make_node("Sigmoid", ["logits"], ["each"], "each"))
    model.graph.output[0].name = "each"
    onnx.save(model, tiny.package.model)
    facts = json.loads((tiny.folder / "package.json").read_text(encoding="utf-8"))
    write_json(tiny.folder / "package.json", {**facts, "scores": "sigmoid"})
    write_manifest(tiny.folder, "package")
    with running(tiny.package) as server:
        answer = client_of(triton_grpc, server).infer(NAME, [tensor(triton_grpc, np.stack(images))])
        status, found = server.post(f"/v2/models/{NAME}/classify?topk=6", encoded(0))
    scores = answer.as_numpy("each")
    assert np.ptp(scores.sum(axis=1)) > 0
    np.testing.assert_array_equal(answer.as_numpy("probabilities"), scores)
    assert status == 200
    np.testing.assert_allclose(found[0]["scores"], np.sort(scores[0])[::-1], atol=1e-5)


@both
def test_load_tools_get_the_configuration_and_statistics(
    server: Server, images: list[np.ndarray], module: ModuleType
) -> None:
    client = client_of(module, server)
    as_json = {} if module is triton_http else {"as_json": True}
    config = client.get_model_config(NAME, "1", **as_json)
    config = config if module is triton_http else config["config"]
    assert (config["name"], config["max_batch_size"]) == (NAME, 16)
    assert [(each["name"], each["data_type"], [int(axis) for axis in each["dims"]]) for each in config["input"]] == [
        ("image", "TYPE_FP32", [3, 32, 32]),
        ("encoded_image", "TYPE_STRING", [1]),
    ]
    assert [bool(each.get("optional")) for each in config["input"]] == [False, True]
    assert [(each["name"], each["data_type"]) for each in config["output"]] == [
        ("logits", "TYPE_FP32"),
        ("probabilities", "TYPE_FP32"),
    ]
    assert config["dynamic_batching"]["preferred_batch_size"] == [4]

    def counts() -> tuple[list[int], int]:
        (found,) = client.get_inference_statistics(NAME, **as_json)["model_stats"]
        assert (found["name"], found["version"]) == (NAME, "1")
        stats = found["inference_stats"]
        computed = sum(
            int(each["batch_size"]) * int(each["compute_infer"]["count"]) for each in found.get("batch_stats", [])
        )
        keys = ("success", "fail", "queue", "compute_input")
        counted = [int(stats[key].get("count", 0)) for key in keys]
        return [int(found.get("inference_count", 0)), *counted], computed

    before, computed = counts()
    client.infer(NAME, [tensor(module, np.stack(images[:3]))])
    files = np.array([encoded(index) for index in range(2)], dtype=object)
    client.infer(NAME, [tensor(module, files, "encoded_image", "BYTES")])
    with pytest.raises(InferenceServerException):
        client.infer(NAME, [tensor(module, NOT_AN_IMAGE, "encoded_image", "BYTES")])
    after, computed_after = counts()
    assert np.subtract(after, before).tolist() == [5, 2, 1, 5, 3]
    assert computed_after - computed == 5
    every = client.get_inference_statistics(**as_json)["model_stats"]
    assert [each["name"] for each in every] == [NAME]
    requests: tuple[Callable[[], Any], ...] = (
        lambda: client.get_model_config(NAME, "7"),
        lambda: client.get_inference_statistics("other"),
    )
    for ask in requests:
        with pytest.raises(InferenceServerException) as caught:
            ask()
        assert caught.value.status() in ("StatusCode.NOT_FOUND", "404")


def test_histograms_are_by_model_and_batch(server: Server, images: list[np.ndarray]) -> None:
    def count(name: str, labels: str) -> float:
        return server.metric(f"{name}_count{{{labels}}}")

    wanted = {
        "pipeline_wait_seconds": (f'model="{NAME}"', 6),
        "pipeline_decode_seconds": (f'model="{NAME}"', 2),
        "pipeline_batch_images": (f'model="{NAME}"', None),
    }
    before = {name: count(name, labels) for name, (labels, _) in wanted.items()}
    sizes = [f'batch="{size}",model="{NAME}"' for size in (1, 2, 3, 4)]
    batches = [count("pipeline_compute_seconds", labels) for labels in sizes]
    client = client_of(triton_http, server)
    client.infer(NAME, [tensor(triton_http, np.stack(images[:4]))])
    files = np.array([encoded(index) for index in range(2)], dtype=object)
    client.infer(NAME, [tensor(triton_http, files, "encoded_image", "BYTES")])
    for name, (labels, more) in wanted.items():
        assert more is None or count(name, labels) - before[name] == more
    computed = np.subtract([count("pipeline_compute_seconds", labels) for labels in sizes], batches)
    assert (computed * [1, 2, 3, 4]).sum() == 6
    assert (
        computed.sum()
        == count("pipeline_batch_images", wanted["pipeline_batch_images"][0]) - before["pipeline_batch_images"]
    )
