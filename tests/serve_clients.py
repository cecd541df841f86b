"""Programs of clients, each run in a process of its own: KServe and tritonclient define the same messages twice.

    python serve_clients.py NAME HTTP GRPC MODEL TENSOR.npy FILE...

prints what each kind of call got, as JSON: {kind: {"logits": [[...]], ...}}; other facts beside.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np

Answers = dict[str, Any]


def kserve(http: str, grpc: str, model: str, tensor: np.ndarray, files: list[bytes]) -> Answers:
    """KServe's InferenceRESTClient and InferenceGRPCClient."""
    return asyncio.run(_kserve(http, grpc, model, tensor, files))


async def _kserve(http: str, grpc: str, model: str, tensor: np.ndarray, files: list[bytes]) -> Answers:
    arguments, sys.argv = sys.argv, sys.argv[:1]  # it parses them
    from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
    from kserve.protocol.infer_type import RequestedOutput

    sys.argv = arguments
    encoded = np.array(files, dtype=object)

    def request(name: str, array: np.ndarray, datatype: str, binary: bool, **more: Any) -> Any:
        given = InferInput(name, list(array.shape), datatype)
        given.set_data_from_numpy(array, binary_data=binary)
        return InferRequest(model, [given], **more)

    def outputs(answer: Any) -> dict[str, Any]:
        found = {each.name: each.as_numpy().tolist() for each in answer.outputs}
        return {**found, "id": answer.id, "version": answer.model_version}

    found: Answers = {}
    base = f"http://{http}"
    only = {"request_outputs": [RequestedOutput("probabilities", {"binary_data": True})]}
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as rest:
        found["live"] = await rest.is_server_live(base)
        found["ready"] = await rest.is_server_ready(base) and await rest.is_model_ready(base, model)
        for kind, given in {
            "rest numbers": request("image", tensor, "FP32", False, request_id="7"),
            "rest binary": request("image", tensor, "FP32", True),
            "rest binary file": request("encoded_image", encoded, "BYTES", True),
            "rest one output": request("image", tensor, "FP32", True, **only),
        }.items():
            found[kind] = outputs(await rest.infer(base, given, model_name=model))
        try:
            await rest.infer(base, request("picture", tensor, "FP32", True), model_name=model)
        except Exception as err:
            found["rest error"] = str(err)
    async with InferenceGRPCClient(grpc) as rpc:
        found["grpc ready"] = await rpc.is_server_ready() and await rpc.is_model_ready(model)
        for kind, given in {
            "grpc contents": request("image", tensor, "FP32", False, request_id="8"),
            "grpc raw": request("image", tensor, "FP32", True),
            "grpc raw file": request("encoded_image", encoded, "BYTES", True),
            "grpc version": request("image", tensor, "FP32", True, model_version="1"),
        }.items():
            found[kind] = outputs(await rpc.infer(given))
        try:
            await rpc.infer(request("image", tensor, "FP32", True, model_version="2"))
        except Exception as err:
            found["grpc error"] = str(err)
    return found


def openapi(http: str, grpc: str, model: str, tensor: np.ndarray, files: list[bytes]) -> Answers:
    """The client that is generated from the protocol's OpenAPI document (open-inference-openapi)."""
    import base64

    from open_inference.openapi.client import OpenInferenceClient
    from open_inference.openapi.types import InferenceRequest

    client = OpenInferenceClient(base_url=f"http://{http}")
    client.check_server_liveness()
    client.check_server_readiness()
    client.check_model_readiness(model)
    client.check_model_version_readiness(model, "1")
    about = client.read_model_version_metadata(model, "1")
    texts = [base64.b64encode(file).decode() for file in files]

    def request(name: str, shape: list[int], datatype: str, data: object, **more: Any) -> Any:
        tensor = {"name": name, "shape": shape, "datatype": datatype, "data": data}
        return InferenceRequest(inputs=[tensor], **more)

    def outputs(answer: Any) -> dict[str, Any]:
        found = {
            each.name: np.array(json.loads(each.json())["data"]).reshape(each.shape).tolist() for each in answer.outputs
        }
        return {**found, "id": answer.id, "version": answer.model_version}

    numbers = request("image", list(tensor.shape), "FP32", tensor.tolist(), id="9", parameters={"priority": 1})
    flat = request("image", list(tensor.shape), "FP32", tensor.ravel().tolist(), outputs=[{"name": "probabilities"}])
    found = {
        "ready": True,
        "inputs": [each.name for each in about.inputs],
        "server": client.read_server_metadata().name,
        "rest numbers": outputs(client.model_infer(model, request=numbers)),
        "rest one output": outputs(client.model_version_infer(model, "1", request=flat)),
        "rest base64": outputs(
            client.model_infer(model, request=request("encoded_image", [len(files)], "BYTES", texts))
        ),
    }
    try:
        client.model_version_infer(model, "2", request=flat)
    except Exception as err:
        found["rest error"] = f"{type(err).__name__}: {err}"
    return found


def mlserver(http: str, grpc: str, model: str, tensor: np.ndarray, files: list[bytes]) -> Answers:
    """Requests as MLServer's codecs write them, over both protocols, and answers as they read them."""
    import grpc as channels
    from mlserver import types
    from mlserver.codecs import Base64Codec, NumpyCodec, NumpyRequestCodec
    from mlserver.grpc.converters import ModelInferRequestConverter, ModelInferResponseConverter
    from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

    def over_rest(request: Any) -> Any:
        body = request.model_dump_json().encode()
        url = f"http://{http}/v2/models/{model}/infer"
        with urlopen(Request(url, body, {"content-type": "application/json"})) as answer:
            return types.InferenceResponse.model_validate_json(answer.read())

    def over_grpc(request: Any, raw: bool) -> Any:
        with channels.insecure_channel(grpc) as channel:
            message = ModelInferRequestConverter.from_types(request, model, "", use_raw=raw)
            return ModelInferResponseConverter.to_types(GRPCInferenceServiceStub(channel).ModelInfer(message))

    def outputs(answer: Any) -> dict[str, Any]:
        return {each.name: NumpyCodec.decode_output(each).tolist() for each in answer.outputs}

    encoded = types.InferenceRequest(id="5", inputs=[Base64Codec.encode_input("encoded_image", files, use_bytes=False)])
    numbers = types.InferenceRequest(inputs=[NumpyCodec.encode_input("image", tensor)])
    whole = NumpyRequestCodec.encode_request(tensor)
    whole.inputs[0].name = "image"  # it calls every input `input-0`
    return {
        "rest numbers": outputs(over_rest(numbers)),
        "rest request codec": outputs(over_rest(whole)),
        "rest base64": outputs(over_rest(encoded)),
        "grpc contents": outputs(over_grpc(numbers, raw=False)),
        "grpc raw": outputs(over_grpc(numbers, raw=True)),
        "body": encoded.model_dump(),
    }


if __name__ == "__main__":
    program, http_address, grpc_address, name, array, *paths = sys.argv[1:]
    run = {"kserve": kserve, "mlserver": mlserver, "openapi": openapi}[program]
    contents = [Path(path).read_bytes() for path in paths]
    print(json.dumps(run(http_address, grpc_address, name, np.load(array), contents)))
