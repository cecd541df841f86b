"""The parts of KServe, an implementation of the Open Inference Protocol, that are used here.

Its `ModelServer` is not used: it listens on every address, lets any client unload the model, and removes the model as
soon as it is told to stop, while requests still arrive. Its REST decoder makes a Python list of every binary tensor,
0.1 s for an image of 224 pixels, so `requests` reads bodies instead.
"""

from __future__ import annotations

import logging
import sys

# KServe parses the arguments of the program that imports it.
_arguments, sys.argv = sys.argv, sys.argv[:1]
try:
    from grpc_interceptor.exceptions import GrpcException, Internal, NotFound, Unavailable, Unimplemented
    from kserve import InferInput, InferRequest, Model, ModelRepository
    from kserve.errors import InvalidInput, ModelNotFound, ServerNotReady
    from kserve.metrics import PREDICT_HIST_TIME
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
    from kserve.protocol.grpc.interceptors import ExceptionToStatusInterceptor
    from kserve.protocol.grpc.servicer import InferenceServicer
    from kserve.protocol.infer_type import RequestedOutput, to_http_parameters
    from kserve.protocol.rest.v2_datamodels import ModelMetadataResponse
    from kserve.protocol.rest.v2_endpoints import V2Endpoints
finally:
    sys.argv = _arguments


def _is_a_bug(record: logging.LogRecord) -> bool:
    fault = record.exc_info[1] if record.exc_info else None
    return fault is not None and not isinstance(fault, InvalidInput | ModelNotFound | ServerNotReady | GrpcException)


# It logs each client error with a traceback. The client gets one line; only our own bugs belong in the log.
_log = logging.StreamHandler()
_log.addFilter(_is_a_bug)
logging.getLogger("kserve").addHandler(_log)
logging.getLogger("kserve").propagate = False

__all__ = [
    "PREDICT_HIST_TIME",
    "DataPlane",
    "ExceptionToStatusInterceptor",
    "InferInput",
    "InferRequest",
    "InferenceServicer",
    "Internal",
    "InvalidInput",
    "Model",
    "ModelMetadataResponse",
    "ModelNotFound",
    "ModelRepository",
    "NotFound",
    "RequestedOutput",
    "ServerNotReady",
    "Unavailable",
    "Unimplemented",
    "V2Endpoints",
    "add_GRPCInferenceServiceServicer_to_server",
    "pb",
    "to_http_parameters",
]
