"""gRPC's own health check, which Kubernetes' probes, grpc_health_probe and proxies ask.

Source: https://github.com/grpc/grpc/blob/master/doc/health-checking.md. `Watch`, a stream without end, is left out: the
clients of gRPC go on without it where it is not implemented.
"""

from __future__ import annotations

from typing import Any

import grpc

from pipeline.serve.kserve import NotFound
from pipeline.serve.messages import make_messages
from pipeline.serve.served import Plane

_SERVICE = "grpc.health.v1.Health"
CHECK = f"/{_SERVICE}/Check"
_MESSAGES = {"HealthCheckRequest": "service:string=1", "HealthCheckResponse": "status:ServingStatus=1"}
_STATUS = {"UNKNOWN": 0, "SERVING": 1, "NOT_SERVING": 2}


def check_method(plane: Plane, service: str) -> grpc.RpcMethodHandler:
    """Return the handler of `CHECK`: whether the server is ready, as `ServerReady` and `/v2/health/ready` say.

    Args:
        service: the full name of what is served; "" means the same, and others are NOT_FOUND.
    """
    classes = make_messages("grpc.health.v1", _MESSAGES, {"ServingStatus": _STATUS})
    asked, answered = classes["HealthCheckRequest"], classes["HealthCheckResponse"]

    async def check(request: Any, _: Any) -> Any:
        if request.service not in ("", service):
            raise NotFound(f"no service {request.service!r:.80}; expected {service!r} or none")
        return answered(status=_STATUS["SERVING" if await plane.ready() else "NOT_SERVING"])

    return grpc.unary_unary_rpc_method_handler(
        check, request_deserializer=asked.FromString, response_serializer=answered.SerializeToString
    )
