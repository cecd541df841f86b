"""What a runtime executes in int8, counted in the graph that it runs on this CPU, not in the file.

A layer with quantizers on all sides may still be computed in float: a runtime fuses the patterns it knows, on the CPUs
it has kernels for, and computes the rest in float without a warning.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from pipeline.runtimes.base import Placement, Runtime

# Multiply-accumulate operators of ONNX Runtime, float and int8, and of OpenVINO.
_LAYERS = frozenset(
    {
        *("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "ConvInteger", "QLinearConv"),
        *("Gemm", "FusedGemm", "QGemm", "MatMul", "FusedMatMul", "TransposeMatMul"),
        *("MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul"),
        *("Convolution", "GroupConvolution", "Deconvolution", "FullyConnected"),
    }
)
# Operators that change the type, the layout or the shape of a tensor, and compute nothing.
_NO_ARITHMETIC = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "FakeQuantize", "Cast", "Convert"),
        *("Reorder", "ReorderInput", "ReorderOutput", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"),
        *("Input", "Output", "Const", "Constant", "Result", "Parameter"),
    }
)
_SUBGRAPH = "Subgraph"  # of OpenVINO: operators that it compiles together, matrix products among them
_FILE_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# What ONNX Runtime, and `float_form`, add to the name of a node, or of the tensor that a node was renamed after.
_ADDED = re.compile(r"^fused |(_nchwc|_token_\d+|\.clipped)+$")


class Executed(TypedDict):
    """What a runtime does with a model; plain data, to be kept in reports."""

    weighted: int  # convolutions and matrix products that it executes
    int8: int  # of them those with an int8 kernel
    float_layers: list[str]  # names of the others, as in the file where that is known
    other_float: dict[str, int]  # by operator, in the runtime's words: arithmetic from float32 to float32


@dataclass(frozen=True)
class _Step:
    """One operation as the runtime executes it."""

    operator: str
    names: tuple[str, ...]  # of the file's nodes and tensors that were fused into it
    int8: bool
    is_float: bool  # reads and writes float32


def count_int8(runtime: Runtime, model: Path) -> Executed:
    """Return what a runtime executes in int8 on this CPU.

    The model is compiled, and in ONNX Runtime run once on a blank image: call this in a separate process
    where a crash of the runtime must not end the caller.

    Args:
        runtime: an installed one.
        model: ONNX file with one input, whose first axis is the batch.

    Raises:
        BackendError: the runtime refuses the model.
    """
    executed = list((_openvino if runtime is Runtime.OPENVINO else _onnxruntime)(model))
    file = _File(model)
    steps = [part for step in executed for part in file.split(step)]
    layers = [step for step in steps if step.operator in _LAYERS]
    others = (step for step in steps if step.operator not in _LAYERS | _NO_ARITHMETIC and step.is_float)
    return Executed(
        weighted=len(layers),
        int8=sum(step.int8 for step in layers),
        float_layers=[file.name(step) for step in layers if not step.int8],
        other_float=dict(sorted(Counter(step.operator for step in others).items())),
    )


class _File:
    """The layers of a model's file, and what runtimes call them."""

    def __init__(self, model: Path) -> None:
        self._layers: dict[str, bool] = {}  # by name, whether it reads quantized tensors
        self._names: dict[str, str] = {}  # of each layer by everything that was fused into it
        try:
            import onnx
        except ImportError:  # a machine that only runs packages may lack onnx; the runtime's names are used there
            return
        dequantized: set[str] = set()
        for node in onnx.load(model, load_external_data=False).graph.node:
            if node.op_type == "DequantizeLinear":
                dequantized.update(node.output)
            if node.op_type in _FILE_LAYERS:
                self._layers[node.name] = dequantized.issuperset(node.input[:2])
                self._names.update(dict.fromkeys((*node.output, node.name), node.name))
            elif node.input and node.input[0] in self._names:
                self._names[node.output[0]] = self._names[node.input[0]]

    def name(self, step: _Step) -> str:
        return next((self._names[name] for name in step.names if name in self._names), step.names[0])

    def split(self, step: _Step) -> Iterator[_Step]:
        """Yield the layers of an operation that OpenVINO fused from several.

        OpenVINO reports the precision of the first only; that of the others is taken from the file.
        """
        names = dict.fromkeys(step.names) if step.operator == _SUBGRAPH else ()
        inside = [name for name in names if name in self._layers]
        for position, name in enumerate(inside):
            int8 = self._layers[name] and (step.int8 or position > 0)
            yield _Step("MatMul", (name,), int8, not int8)
        if not inside:
            yield step


def _onnxruntime(model: Path) -> Iterator[_Step]:
    from pipeline.runtimes.ort import open_profiled

    with tempfile.TemporaryDirectory() as folder:
        session = open_profiled(model, 1, Path(folder) / "profile")
        given = session.get_inputs()[0]
        shape = [axis if isinstance(axis, int) else 1 for axis in given.shape]
        session.run(None, {given.name: np.zeros(shape, np.uint8 if given.type == "tensor(uint8)" else np.float32)})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            facts = event["args"]
            reads, writes = (_first_type(facts[key]) for key in ("input_type_shape", "output_type_shape"))
            name = _ADDED.sub("", event["name"].removesuffix("_kernel_time"))
            names = (name, name.removesuffix("/MatMulAddFusion"))  # of a MatMul fused with an addition
            yield _Step(facts["op_name"], names, reads in ("uint8", "int8"), reads == writes == "float")


def _first_type(tensors: list[dict[str, list[int]]]) -> str:
    return next(iter(tensors[0])) if tensors else ""


def _openvino(model: Path) -> Iterator[_Step]:
    from pipeline.runtimes.ov import compile_model

    compiled = compile_model(model, 1, Placement(1, 1))
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        layer, kernel, reads, writes, made_of = (
            str(facts[key].astype(str)) if key in facts else ""
            for key in ("layerType", "primitiveType", "runtimePrecision", "outputPrecisions", "originalLayersNames")
        )
        names = [name.strip() for name in made_of.split(",") if name.strip()] or [node.get_friendly_name()]
        # Of `fc/WithoutBiases/DequantizationMultiply` only the first part is a name of the file.
        names += [name.partition("/WithoutBiases")[0] for name in names]
        int8 = kernel.upper().endswith(("_I8", "_U8"))
        yield _Step(layer, tuple(names), int8, reads == "f32" and writes.startswith("f32"))
