"""The gRPC side: KServe's service for the models that are served, and Triton's methods and health checks beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from pipeline.serve import health
from pipeline.serve.kserve import (
    InferenceServicer,
    InferInput,
    InferRequest,
    InvalidInput,
    RequestedOutput,
    add_GRPCInferenceServiceServicer_to_server,
    pb,
    to_http_parameters,
)
from pipeline.serve.outputs import check_asked
from pipeline.serve.served import NoRepository, Plane
from pipeline.serve.siblings import Siblings
from pipeline.serve.triton import rpc_methods
from pipeline.serve.wire import take_out

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
# Clients send the same message again and again, but for the tensors' bytes.
_KNOWN, _LONGEST_KNOWN = 64, 512  # messages without them that are kept as read, and bytes of each
_RAW = pb.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number


def make_methods(plane: Plane, siblings: Siblings) -> dict[str, grpc.RpcMethodHandler]:
    """Return the handlers of all methods, by their paths. ModelInfer's takes and gives messages as they are sent."""
    servicer, kserves = Servicer(plane), _Methods()
    add_GRPCInferenceServiceServicer_to_server(servicer, kserves)
    others = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(servicer.infer),
        **rpc_methods(plane, siblings),
    }
    return {
        **kserves.found,
        **{_path(name): handler for name, handler in others.items()},
        health.CHECK: health.check_method(plane, _SERVICE.full_name),
    }


class _Methods:
    """Takes the handlers of KServe's service, as a server does."""

    def __init__(self) -> None:
        self.found: dict[str, grpc.RpcMethodHandler] = {}

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        for path in (_path(method.name) for method in _SERVICE.methods):
            for handler in handlers:
                self.found[path] = handler.service(SimpleNamespace(method=path, invocation_metadata=()))

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler]) -> None:
        """Ignore what newer releases of gRPC add beside: the same handlers."""


def _path(method: str) -> str:
    return f"/{_SERVICE.full_name}/{method}"


class Servicer(InferenceServicer):  # type: ignore[misc]  # KServe has no types
    """KServe's answers over gRPC, extended by versions."""

    def __init__(self, plane: Plane) -> None:
        super().__init__(plane, NoRepository())
        self._plane = plane

    async def infer(self, message: bytes, _: Any) -> bytes:
        """Answer a ModelInferRequest, as it came, with a ModelInferResponse."""
        request = parse(message)
        answer = await self._plane.infer(request.model_name, request)
        return await asyncio.to_thread(answer.to_grpc) if answer.is_large else answer.to_grpc()

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._plane.find(request.name, request.version)
        return await super().ModelReady(request, context)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._plane.find(request.name, request.version)
        answer = await super().ModelMetadata(request, context)
        answer.versions.extend(self._plane.models[request.name].loaded)
        return answer


def parse(message: bytes) -> InferRequest:
    """Read a ModelInferRequest. The bytes of its tensors are not copied.

    Raises:
        InvalidInput: it is none.
    """
    rest, raw = take_out(_RAW, message)
    known = _read_known(rest) if len(rest) <= _LONGEST_KNOWN else _read_rest(rest)
    if len(raw) == 1 and known.without_values is not None:
        return _with_values(known.without_values, raw[0])
    request = _read(message) if raw else known.message
    for given in request.inputs if request.raw_input_contents else ():
        if not _has_values(given):
            given.ClearField("contents")
    Servicer.validate_grpc_request(request)
    return InferRequest.from_grpc(request)


@dataclass(frozen=True)
class _Rest:
    """A ModelInferRequest without its raw values. Requests share it, so nobody changes it."""

    message: Any
    without_values: InferRequest | None  # the request, where it has one tensor, whose values are raw


def _read_rest(content: bytes) -> _Rest:
    message = _read(content)
    check_asked(len(message.outputs))
    for each in (*message.inputs, *message.outputs):
        _check_parameters(each)
    is_usual = len(message.inputs) == 1 and not _has_values(message.inputs[0])
    return _Rest(message, _of_one_raw_tensor(message) if is_usual else None)


_read_known = lru_cache(_KNOWN)(_read_rest)


def _read(message: bytes) -> Any:
    try:
        return pb.ModelInferRequest.FromString(message)
    except DecodeError:
        raise InvalidInput("the message is no ModelInferRequest") from None


def _check_parameters(given: Any) -> None:
    """Raise InvalidInput for a parameter of a type that is not read here, which would count as absent.

    Triton's numbers without sign and with a fraction are not in the protocol.
    """
    for name, value in given.parameters.items() if given.parameters else ():
        if value.WhichOneof("parameter_choice") is None:
            raise InvalidInput(
                f"{given.name!r}: parameter {name!r}: expected a bool_param, int64_param or string_param"
            )


def _has_values(given: Any) -> bool:
    """Tell whether a tensor's values are in the message.

    MLServer writes an empty message beside raw bytes, which KServe takes for a second set of values.
    """
    return bool(given.HasField("contents") and given.contents.ByteSize())


def _of_one_raw_tensor(request: Any) -> InferRequest:
    """Return what KServe's `InferRequest.from_grpc` does, for what clients send all the time; still without values."""
    given = request.inputs[0]
    return InferRequest(
        request.model_name,
        [InferInput(given.name, list(given.shape), given.datatype, parameters=_parameters(given))],
        request_id=request.id,
        from_grpc=True,
        parameters=request.parameters,
        request_outputs=[RequestedOutput(each.name, _parameters(each)) for each in request.outputs] or None,
        model_version=request.model_version,
    )


def _with_values(request: InferRequest, raw: memoryview) -> InferRequest:
    """Return a copy of a request of one tensor, with its values."""
    given = request.inputs[0]
    return InferRequest(
        request.model_name,
        [InferInput(given.name, given.shape, given.datatype, parameters=given.parameters)],
        request_id=request.id,
        raw_inputs=[raw],
        from_grpc=True,
        parameters=request.parameters,
        request_outputs=request.request_outputs,
        model_version=request.model_version,
    )


def _parameters(given: Any) -> dict[str, Any] | None:
    return to_http_parameters(given.parameters) if given.parameters else None
