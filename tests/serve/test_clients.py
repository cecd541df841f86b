"""The clients that people have: each way in which they write requests gets the model's own answers."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_fixtures import NAME, REPOSITORY, SPEC, TinyWorkspace, draw
from serve_fixtures import Server, encoded, running

from pipeline.data import preprocess
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import choose, open_backend, place

if importlib.util.find_spec("kserve") is None:
    pytest.skip("serve's packages are not installed: pip install '.[serve]'", allow_module_level=True)

pytestmark = pytest.mark.slow
PROGRAMS = REPOSITORY / "tests" / "serve_clients.py"


@pytest.fixture(scope="module")
def server(tiny_workspace_master: TinyWorkspace) -> Iterator[Server]:
    with running(tiny_workspace_master.package, "-b", "2", "-i", "1") as server:
        yield server


@pytest.fixture(scope="module")
def tensor() -> np.ndarray:
    """Two prepared images, float32 [2, 3, 32, 32]."""
    return np.stack([preprocess.apply(SPEC, draw(index)) for index in range(2)])


@pytest.fixture(scope="module")
def wanted(server: Server, tensor: np.ndarray) -> dict[str, np.ndarray]:
    """The model's own answers, float32 [2, classes] each."""
    with open_backend(choose(Runtime.AUTO), server.package.model, batch=2, placement=place(1, 1)) as backend:
        logits = backend.infer(tensor)
    shares = np.exp(logits.astype(np.float64))
    return {"logits": logits, "probabilities": shares / shares.sum(axis=1, keepdims=True)}


def ask(program: str, server: Server, tensor: np.ndarray, folder: Path, python: str = sys.executable) -> dict[str, Any]:
    np.save(folder / "tensor.npy", tensor)
    files = [folder / f"{index}.png" for index in range(2)]
    for index, path in enumerate(files):
        path.write_bytes(encoded(index))
    addresses = [program, server.http, server.grpc, NAME]
    asked = [python, str(PROGRAMS), *addresses, str(folder / "tensor.npy"), *map(str, files)]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def assert_same(found: dict[str, Any], kinds: set[str], wanted: dict[str, np.ndarray]) -> None:
    """Compare every answer of some kinds with the model's own."""
    for kind in kinds:
        names = {"probabilities"} if kind.endswith("one output") else set(wanted)
        assert set(found[kind]) - {"id", "version"} == names, kind
        for name in names:
            np.testing.assert_allclose(np.array(found[kind][name]), wanted[name], rtol=1e-5, atol=1e-5, err_msg=kind)


def test_kserves_own_clients(server: Server, tensor: np.ndarray, wanted: dict[str, np.ndarray], tmp_path: Path) -> None:
    found = ask("kserve", server, tensor, tmp_path)
    assert found.pop("live") and found.pop("ready") and found.pop("grpc ready")
    assert "no input 'picture'; expected 'image' or 'encoded_image'" in found.pop("rest error")
    assert f"model '{NAME}' has no version '2'; it has version 1" in found.pop("grpc error")
    rest = {"rest numbers", "rest binary", "rest binary file", "rest one output"}
    rpc = {"grpc contents", "grpc raw", "grpc raw file", "grpc version"}
    assert set(found) == rest | rpc
    assert_same(found, rest | rpc, wanted)
    assert (found["rest numbers"]["id"], found["grpc contents"]["id"]) == ("7", "8")
    assert {found[kind]["version"] for kind in rpc} == {"1"}


@pytest.mark.skipif(
    importlib.util.find_spec("open_inference") is None,
    reason="open-inference-openapi is not installed: pip install '.[ci]'",
)
def test_the_client_that_is_generated_from_the_protocol(
    server: Server, tensor: np.ndarray, wanted: dict[str, np.ndarray], tmp_path: Path
) -> None:
    found = ask("openapi", server, tensor, tmp_path)
    assert (found.pop("ready"), found.pop("server")) == (True, "int8-classifier-pipeline")
    assert found.pop("inputs") == ["image", "encoded_image"]
    assert f"model '{NAME}' has no version '2'; it has version 1" in found.pop("rest error")
    assert set(found) == {"rest numbers", "rest one output", "rest base64"}
    assert_same(found, set(found), wanted)
    assert {(each["id"], each["version"]) for each in found.values()} == {("9", "1"), ("", "1")}


def column(files: list[bytes]) -> dict[str, Any]:
    """Return what MLServer 1.7.1 writes for files, by its codec for base64."""
    texts = [base64.b64encode(file).decode() for file in files]
    shape = [len(files), 1]
    parameters = {"content_type": "base64"}
    given = {"name": "encoded_image", "shape": shape, "datatype": "BYTES", "parameters": parameters, "data": texts}
    return {"id": "5", "inputs": [given]}


# It wants an older FastAPI than KServe, so it is in an environment of its own, whose Python this names.
_MLSERVER = os.environ.get("MLSERVER_PYTHON", sys.executable if importlib.util.find_spec("mlserver") else "")


@pytest.mark.skipif(not _MLSERVER, reason="MLServer is not installed, and MLSERVER_PYTHON names no Python that has it")
def test_mlservers_codecs(server: Server, tensor: np.ndarray, wanted: dict[str, np.ndarray], tmp_path: Path) -> None:
    found = ask("mlserver", server, tensor, tmp_path, _MLSERVER)
    assert found.pop("body") == column([encoded(0), encoded(1)])  # what the next test sends where it is not installed
    assert set(found) == {"rest numbers", "rest request codec", "rest base64", "grpc contents", "grpc raw"}
    assert_same(found, set(found), wanted)


def test_requests_as_mlservers_codecs_write_them(
    server: Server, tensor: np.ndarray, wanted: dict[str, np.ndarray]
) -> None:
    flat = {"name": "image", "shape": [2, 3, 32, 32], "datatype": "FP32", "data": tensor.ravel().tolist()}
    flat["parameters"] = {"content_type": "np", "headers": None}  # as its types are written by pydantic's own methods
    numbers = {"id": None, "parameters": {"content_type": "np", "headers": None}, "inputs": [flat], "outputs": None}
    for body in (column([encoded(0), encoded(1)]), numbers):
        status, answer = server.post(f"/v2/models/{NAME}/infer", json.dumps(body).encode())
        assert status == 200, answer
        found = {each["name"]: np.array(each["data"]).reshape(each["shape"]) for each in answer["outputs"]}
        for name, values in wanted.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5)


def test_empty_contents_beside_bytes_are_no_second_tensor(
    server: Server, tensor: np.ndarray, wanted: dict[str, np.ndarray]
) -> None:
    """MLServer's converter for raw tensors writes them so."""
    triton = pytest.importorskip("tritonclient.grpc", reason="no tritonclient: pip install '.[ci]'")
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    assert triton is not None
    request = service_pb2.ModelInferRequest(model_name=NAME)
    given = request.inputs.add(name="image", datatype="FP32", shape=[2, 3, 32, 32])
    given.contents.SetInParent()
    request.raw_input_contents.append(tensor.tobytes())
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(request, timeout=30)
        given.contents.fp32_contents.append(1.0)
        with pytest.raises(grpc.RpcError, match="contents field must not be specified"):
            stub.ModelInfer(request, timeout=30)
    logits = struct.unpack(f"<{wanted['logits'].size}f", answer.raw_output_contents[0])
    np.testing.assert_allclose(logits, wanted["logits"].ravel(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_compressed_messages_over_grpc(
    server: Server, tensor: np.ndarray, wanted: dict[str, np.ndarray], name: str
) -> None:
    triton = pytest.importorskip("tritonclient.grpc", reason="no tritonclient: pip install '.[ci]'")
    client = triton.InferenceServerClient(server.grpc)
    given = triton.InferInput("image", [2, 3, 32, 32], "FP32")
    given.set_data_from_numpy(tensor)
    answer = client.infer(NAME, [given], compression_algorithm=name, client_timeout=30, parameters={"tag": "a"})
    np.testing.assert_allclose(answer.as_numpy("logits"), wanted["logits"], rtol=1e-5, atol=1e-5)
    client.close()
