"""Triton's extensions of the protocol for load tools: a model's configuration, and statistics.

Source: model_config.proto and the model configuration and statistics extensions of Triton Inference Server.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf import json_format

from pipeline.serve.messages import make_messages
from pipeline.serve.model import ENCODED, PackageModel
from pipeline.serve.served import Plane
from pipeline.serve.siblings import Siblings

_TYPES = {"UINT8": "TYPE_UINT8", "FP32": "TYPE_FP32", "BYTES": "TYPE_STRING"}


def configuration(model: PackageModel) -> dict[str, Any]:
    """Return a model's configuration, which Triton's load tools ask for, in the names of model_config.proto."""
    inputs = [
        {
            "name": each["name"],
            "data_type": _TYPES[each["datatype"]],
            "dims": each["shape"][1:] or [1],  # [1] for a column of files: Triton's configurations require dims
            # A request has one of the two.
            "optional": each["name"] == ENCODED,
        }
        for each in model.get_input_types()
    ]
    outputs = [
        {"name": each["name"], "data_type": _TYPES[each["datatype"]], "dims": each["shape"][1:]}
        for each in model.get_output_types()
    ]
    return {
        "name": model.name,
        "platform": "",
        "backend": model.setup.runtime,
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": model.most_images,
        "input": inputs,
        "output": outputs,
        "instance_group": [{"name": f"{model.name}_0", "kind": "KIND_CPU", "count": model.setup.streams}],
        "dynamic_batching": {"preferred_batch_size": [model.setup.batch], "max_queue_delay_microseconds": 0},
    }


def statistics(models: list[PackageModel]) -> list[dict[str, Any]]:
    """Return the statistics of each model since it was loaded in this process."""
    return [{"name": each.name, "version": each.version, **each.meter.statistics()} for each in models]


async def asked_statistics(plane: Plane, siblings: Siblings, name: str, version: str | None) -> dict[str, Any]:
    """Return the statistics of one version of a model, all of it, or all of all, of all workers together.

    Raises:
        ModelNotFound, VersionNotFound: it is not served.
    """
    if name:
        plane.find(name, version)
    found = await siblings.statistics()
    return {
        "model_stats": [
            each for each in found if (not name or each["name"] == name) and (not version or each["version"] == version)
        ]
    }


# The messages that KServe's protocol lacks, with Triton's numbers: fields that are not written here are not sent.
_ENUMS = {
    "DataType": {"TYPE_INVALID": 0, "TYPE_UINT8": 2, "TYPE_FP32": 11, "TYPE_STRING": 13},
    "Kind": {"KIND_AUTO": 0, "KIND_CPU": 2},
}
_MESSAGES = {
    "ModelConfigRequest": "name:string=1 version:string=2",
    "ModelConfigResponse": "config:ModelConfig=1",
    "ModelInput": "name:string=1 data_type:DataType=2 dims:int64*=4 optional:bool=8",
    "ModelOutput": "name:string=1 data_type:DataType=2 dims:int64*=3",
    "ModelInstanceGroup": "name:string=1 count:int32=2 kind:Kind=4",
    "Latest": "num_versions:uint32=1",
    "ModelVersionPolicy": "latest:Latest=1",
    "ModelDynamicBatching": "preferred_batch_size:int32*=1 max_queue_delay_microseconds:uint64=2",
    "ModelConfig": "name:string=1 platform:string=2 version_policy:ModelVersionPolicy=3 max_batch_size:int32=4 "
    "input:ModelInput*=5 output:ModelOutput*=6 instance_group:ModelInstanceGroup*=7 "
    "dynamic_batching:ModelDynamicBatching=11 backend:string=17",
    "ModelStatisticsRequest": "name:string=1 version:string=2",
    "ModelStatisticsResponse": "model_stats:ModelStatistics*=1",
    "StatisticDuration": "count:uint64=1 ns:uint64=2",
    "InferStatistics": "success:StatisticDuration=1 fail:StatisticDuration=2 queue:StatisticDuration=3 "
    "compute_input:StatisticDuration=4 compute_infer:StatisticDuration=5 compute_output:StatisticDuration=6 "
    "cache_hit:StatisticDuration=7 cache_miss:StatisticDuration=8",
    "InferBatchStatistics": "batch_size:uint64=1 compute_input:StatisticDuration=2 compute_infer:StatisticDuration=3 "
    "compute_output:StatisticDuration=4",
    "ModelStatistics": "name:string=1 version:string=2 last_inference:uint64=3 inference_count:uint64=4 "
    "execution_count:uint64=5 inference_stats:InferStatistics=6 batch_stats:InferBatchStatistics*=7",
}


def rpc_methods(plane: Plane, siblings: Siblings) -> dict[str, grpc.RpcMethodHandler]:
    """Return the two methods that KServe's service lacks, by their names."""
    classes = make_messages("inference", _MESSAGES, _ENUMS)

    def method(name: str, answer: Callable[[Any], Awaitable[dict[str, Any]]]) -> grpc.RpcMethodHandler:
        asked, answered = classes[f"{name}Request"], classes[f"{name}Response"]

        async def behaviour(request: Any, _: Any) -> Any:
            return json_format.ParseDict(await answer(request), answered())

        return grpc.unary_unary_rpc_method_handler(
            behaviour, request_deserializer=asked.FromString, response_serializer=answered.SerializeToString
        )

    async def configured(request: Any) -> dict[str, Any]:
        return {"config": configuration(plane.find(request.name, request.version))}

    async def counted(request: Any) -> dict[str, Any]:
        return await asked_statistics(plane, siblings, request.name, request.version)

    return {"ModelConfig": method("ModelConfig", configured), "ModelStatistics": method("ModelStatistics", counted)}
