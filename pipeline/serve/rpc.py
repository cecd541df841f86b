"""The gRPC side: KServe's service for the models that are served, and Triton's two methods beside it."""

from __future__ import annotations

from typing import Any

from pipeline.serve.kserve import InferenceServicer, InferRequest
from pipeline.serve.served import NoRepository, Plane


class Servicer(InferenceServicer):  # type: ignore[misc]  # KServe has no types
    """KServe's answers over gRPC, extended by versions."""

    def __init__(self, plane: Plane) -> None:
        super().__init__(plane, NoRepository())
        self._plane = plane

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        for given in request.inputs if request.raw_input_contents else ():
            # MLServer writes an empty message beside the bytes, which KServe takes for a second set of values.
            if given.HasField("contents") and not given.contents.ByteSize():
                given.ClearField("contents")
        self.validate_grpc_request(request)
        answer, _ = await self._plane.infer(request.model_name, InferRequest.from_grpc(request))
        return answer.to_grpc()

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._plane.find(request.name, request.version)
        return await super().ModelReady(request, context)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._plane.find(request.name, request.version)
        answer = await super().ModelMetadata(request, context)
        answer.versions.extend(self._plane.models[request.name].loaded)
        return answer
