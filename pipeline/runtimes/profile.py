"""The time of each operation of a model, as the engine's profiler measures it."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from pipeline.errors import BackendError
from pipeline.runtimes.base import Batch, Runtime, parts_of


class Work(Enum):
    """Kinds of work, by what could be done about it."""

    INT8 = "int8 kernels"
    FLOAT = "layers in float"
    QUANTIZE = "quantizers by themselves"  # those that no kernel absorbed
    COPY = "copies"  # into another layout, or of parts of a tensor
    OTHER = "everything else"


@dataclass(frozen=True)
class LayerTime:
    """One operation of the model as the engine runs it; several nodes of the file may have become one."""

    name: str
    operator: str
    kernel: str  # what the engine calls it
    work: Work
    seconds: float  # of a request, mean over the runs


_COPIES = ("Reorder", "ReorderInput", "ReorderOutput", "Transpose", "Convert", "Cast", "Pad", "Split", "Concat")
_INT8 = ("QLinear", "MatMulInteger", "ConvInteger")  # of ONNX Runtime; OpenVINO's kernel names show it
_QUANTIZERS = ("FakeQuantize", "QuantizeLinear", "DequantizeLinear")
_LAYERS = ("Conv", "Convolution", "GroupConvolution", "FullyConnected", "MatMul", "Gemm", "FusedConv", "FusedGemm")


def profile(
    runtime: Runtime, model: Path, images: Batch, *, threads: int, runs: int, wide_weights: bool = False
) -> list[LayerTime]:
    """Return the times of a model's operations on one batch, the longest first; the first run is not counted.

    Args:
        wide_weights: as of `open_backend`.

    Raises:
        BackendError: the runtime refuses the model.
    """
    if runtime is Runtime.OPENVINO:
        found = _openvino(model, images, threads, runs)
    else:
        found = _onnxruntime(model, images, threads, runs, wide_weights)
    return sorted(found, key=lambda time: -time.seconds)


def _openvino(model: Path, images: Batch, threads: int, runs: int) -> list[LayerTime]:
    from pipeline.runtimes.base import Placement
    from pipeline.runtimes.ov import compile_model

    compiled = compile_model(model, len(images), Placement(1, threads), {"PERF_COUNT": True})
    request = compiled.create_infer_request()
    parts = parts_of(images, int(compiled.inputs[0].shape[0]))
    totals: dict[str, float] = defaultdict(float)
    kinds: dict[str, tuple[str, str]] = {}
    for run in range(runs + 1):
        for part in parts:
            request.infer([part], share_inputs=True)
            for node in request.profiling_info if run else []:
                if node.status == node.Status.EXECUTED:
                    totals[node.node_name] += node.real_time.total_seconds()
                    kinds[node.node_name] = (node.node_type, node.exec_type)
    return [
        LayerTime(name, *kinds[name], work=_work(*kinds[name]), seconds=seconds / runs)
        for name, seconds in totals.items()
    ]


def _onnxruntime(model: Path, images: Batch, threads: int, runs: int, wide_weights: bool) -> list[LayerTime]:
    from pipeline.runtimes.ort import open_profiled

    with tempfile.TemporaryDirectory() as folder:
        session = open_profiled(model, threads, Path(folder) / "profile", wide_weights=wide_weights)
        given = session.get_inputs()[0]
        parts = parts_of(images, 1 if given.shape[0] == 1 else len(images))
        for part in parts * (runs + 1):
            session.run(None, {given.name: part})
        text = Path(session.end_profiling()).read_text(encoding="utf-8")
    try:
        events: list[dict[str, Any]] = json.loads(text)
    except ValueError as err:
        raise BackendError(f"ONNX Runtime wrote a profile that cannot be read ({err})") from None
    by_node: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            by_node[event["name"].removesuffix("_kernel_time")].append(event)
    found = []
    for name, runs_of_it in by_node.items():
        operator = str(runs_of_it[0]["args"]["op_name"])
        kernel = str(runs_of_it[0]["args"].get("provider", ""))
        seconds = sum(event["dur"] for event in runs_of_it[len(parts) :]) * 1e-6 / runs
        found.append(LayerTime(name, operator, kernel, _work(operator, kernel), seconds))
    return found


def _work(operator: str, kernel: str) -> Work:
    if operator in _COPIES:
        return Work.COPY
    if operator.startswith(_INT8) or kernel.endswith(("_I8", "_U8")):
        return Work.INT8
    if operator in _LAYERS:
        return Work.FLOAT
    return Work.QUANTIZE if operator in _QUANTIZERS else Work.OTHER
