"""Which two weights of a filter this CPU's int8 kernels sum in 16 bits, found by trying every pair.

    python benchmarks/pairs.py onnxruntime
    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/pairs.py openvino
    qemu-x86_64-static -cpu Haswell "$(which python)" benchmarks/pairs.py onnxruntime

Each model is one layer, with a filter for every pair of weights: those two are 127, or -127, the others 0. Inputs are
255 and the bias takes the exact sum to 128, so that any other answer is a sum that was cut off.
`pipeline.quant.neighbours.weight_pairs` has to name every pair that is found on any CPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.quant.neighbours import weight_pairs

WEIGHT, INPUT, ANSWER = 127, 255, 128
# What reads the image first: the layer, uint8 as it comes; the layer, through a quantizer; a pooling before the layer.
Entry = Literal["uint8", "quantized", "inner"]
Pair = tuple[int, int]
Infer = Callable[[onnx.ModelProto, npt.NDArray[Any]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Layer:
    """A layer whose pairs are tried."""

    operator: str  # Conv, Gemm or MatMul
    channels: int  # that a filter reads; of Gemm and MatMul the inputs
    kernel: tuple[int, ...] = ()
    groups: int = 1
    multiplier: int = 0  # filters of each group of a depthwise convolution, where every group tries other pairs
    stride: int = 1
    dilation: int = 1
    pad: int = 0

    def __str__(self) -> str:
        size = f"{self.channels} channels" if self.kernel else f"{self.channels} inputs"
        kernel = " " + "x".join(map(str, self.kernel)) if self.kernel else ""
        more = f", {self.groups} groups" if self.groups > 1 else ""
        more += f", depthwise, {self.multiplier} filters a channel" if self.multiplier else ""
        more += "".join(
            f", {name} {value}"
            for name, value, usual in (
                ("stride", self.stride, 1),
                ("dilation", self.dilation, 1),
                ("padded by", self.pad, 0),
            )
            if value != usual
        )
        return f"{self.operator}{kernel}, {size}{more}"

    @property
    def weights(self) -> int:
        """Of one filter."""
        return self.channels * math.prod(self.kernel)


def layers() -> Iterator[Layer]:
    """Yield the kinds of layers that kernels were seen to treat differently."""
    for channels in (2, 3, 5, 8, 16, 33):
        yield Layer("Conv", channels, (1, 1))
    for channels in (1, 2, 3, 4, 5, 8):
        yield Layer("Conv", channels, (3, 3))
    for channels in (3, 4):
        yield Layer("Conv", channels, (3, 3), stride=2)
        yield Layer("Conv", channels, (3, 3), dilation=2)
        yield Layer("Conv", channels, (3, 3), pad=1)
    for kernel in ((1, 7), (7, 1), (2, 3), (4, 4)):
        yield Layer("Conv", 3, kernel)
    for channels in (1, 2, 3):
        yield Layer("Conv", channels, (7, 7), stride=2)
    for side, multiplier in itertools.product((3, 5), (1, 2, 3)):
        yield Layer("Conv", 1, (side, side), multiplier=multiplier)
    yield Layer("Conv", 1, (3, 3), multiplier=1, stride=2)
    yield Layer("Conv", 1, (3, 3), multiplier=2, stride=2)
    for channels, groups, side in itertools.product((2, 3, 4, 8), (2, 8), (1, 3)):
        yield Layer("Conv", channels, (side, side), groups=groups)
    for operator, inputs in itertools.product(("Gemm", "MatMul"), (2, 3, 8, 17, 64, 257, 258, 300)):
        yield Layer(operator, inputs)


def tried_pairs(layer: Layer) -> list[Pair]:
    """Return the pairs to try: all, or of more than a hundred weights those that are one or two apart."""
    if layer.weights <= 100:
        return list(itertools.combinations(range(layer.weights), 2))
    places = np.arange(layer.weights).reshape(layer.channels, -1)
    orders = (places.reshape(-1), places.T.reshape(-1))
    near = {
        (min(a, b), max(a, b))
        for order in orders
        for step in (1, 2)
        for a, b in zip(order.tolist(), order[step:].tolist(), strict=False)
    }
    return sorted(near)


def cut_pairs(layer: Layer, infer: Infer, entry: Entry, batch: int, sign: int) -> set[Pair]:
    """Return the pairs whose sum is cut off, as places in a filter.

    Args:
        layer: to be tried.
        infer: runs a model on an image.
        entry: what reads the image first.
        batch: images, or rows of a matrix.
        sign: of the weights, 1 or -1.
    """
    pairs = tried_pairs(layer)
    owners = [pair for at in range(len(pairs)) for pair in _filters_of_group(layer, pairs, at)]
    weights = np.zeros((len(owners), layer.weights), np.int8)
    for row, pair in enumerate(owners):
        weights[row, list(pair)] = sign * WEIGHT
    groups = len(pairs) if layer.multiplier else layer.groups
    if not layer.multiplier:
        weights, owners = np.tile(weights, (groups, 1)), owners * groups
    side = [(size - 1) * layer.dilation + 1 + 3 * layer.stride for size in layer.kernel]
    shape = [batch, layer.channels * (groups if layer.kernel else 1), *side]
    image = np.full(shape, INPUT, np.uint8 if entry == "uint8" else np.float32)
    answers = infer(_model(layer, weights, groups, shape, entry, sign), image)
    if layer.pad:  # at the border a filter reads zeros as well
        answers = answers[:, :, layer.pad : -layer.pad, layer.pad : -layer.pad]
    off = np.abs(answers - _exact_answer(layer, sign)) > _step(layer) / 2
    wrong = off.reshape(batch, len(owners), -1).any(axis=(0, 2))
    return {owner for owner, is_wrong in zip(owners, wrong.tolist(), strict=True) if is_wrong}


def _exact_answer(layer: Layer, sign: int) -> np.float32:
    """A matrix product without a bias has a coarse step instead, which 16 bits are 65 of and the exact sum 128."""
    return np.float32(sign * ANSWER) * _step(layer) if layer.operator == "MatMul" else np.float32(ANSWER)


def _step(layer: Layer) -> np.float32:
    """Of the quantizer of the result."""
    return np.float32(2 * INPUT * WEIGHT / ANSWER if layer.operator == "MatMul" else 1)


def _filters_of_group(layer: Layer, pairs: list[Pair], at: int) -> Iterator[Pair]:
    """Yield the pairs of a depthwise group's filters, the first of them `pairs[at]`; else that pair alone."""
    for filter_ in range(max(1, layer.multiplier)):
        yield pairs[(at + 7 * filter_) % len(pairs)]


def _model(
    layer: Layer, weights: npt.NDArray[np.int8], groups: int, shape: list[int], entry: Entry, sign: int
) -> onnx.ModelProto:
    """Return the QDQ model of one layer, whose input is `image` and whose output is `out`."""
    nodes, last = _input_nodes(layer, entry)
    nodes += _layer_nodes(layer, groups, last)
    used = {name for node in nodes for name in node.input}
    kind = TensorProto.UINT8 if entry == "uint8" else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "pairs",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["a", "b", "c", "d"][: len(shape)])],
        [
            numpy_helper.from_array(np.asarray(value), name)
            for name, value in _constants(layer, weights, sign).items()
            if name in used
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _constants(layer: Layer, weights: npt.NDArray[np.int8], sign: int) -> dict[str, Any]:
    """Return the layer's constants by name, some of which only some layers read."""
    outputs = len(weights)
    stored = weights.reshape(outputs, layer.channels, *layer.kernel)
    return {
        "one": np.float32(1),
        "zero": np.uint8(0),
        "weights": stored if layer.operator == "Conv" else np.ascontiguousarray(stored.T),
        "scales": np.ones(outputs, np.float32),
        "zeros": np.zeros(outputs, np.int8),
        "bias": np.full(outputs, ANSWER - sign * INPUT * 2 * WEIGHT, np.int32),
        "bias_zeros": np.zeros(outputs, np.int32),
        "step": _step(layer),
        "middle": np.uint8(ANSWER if layer.operator == "MatMul" and sign < 0 else 0),
    }


def _input_nodes(layer: Layer, entry: Entry) -> tuple[list[onnx.NodeProto], str]:
    """Return the nodes between `image` and the layer, and the name of the tensor that the layer reads."""
    nodes = []
    if entry != "uint8":
        nodes.append(helper.make_node("QuantizeLinear", ["image", "one", "zero"], ["q"]))
    nodes.append(helper.make_node("DequantizeLinear", [nodes[0].output[0] if nodes else "image", "one", "zero"], ["d"]))
    if entry != "inner":
        return nodes, "d"
    is_conv = layer.operator == "Conv"
    pool = {"kernel_shape": [1, 1]} if is_conv else {}
    nodes += [
        helper.make_node("MaxPool" if is_conv else "Relu", ["d"], ["m"], **pool),
        helper.make_node("QuantizeLinear", ["m", "one", "zero"], ["mq"]),
        helper.make_node("DequantizeLinear", ["mq", "one", "zero"], ["md"]),
    ]
    return nodes, "md"


def _layer_nodes(layer: Layer, groups: int, read: str) -> list[onnx.NodeProto]:
    """Return the nodes from the tensor that the layer reads to `out`."""
    attributes: dict[str, Any] = {}
    if layer.operator == "Conv":
        attributes = {
            "group": groups,
            "kernel_shape": list(layer.kernel),
            "strides": [layer.stride] * 2,
            "dilations": [layer.dilation] * 2,
            "pads": [layer.pad] * 4,
        }
    axis = 0 if layer.operator == "Conv" else 1
    nodes = [helper.make_node("DequantizeLinear", ["weights", "scales", "zeros"], ["w"], axis=axis)]
    operands = [read, "w"]
    if layer.operator != "MatMul":
        nodes.append(helper.make_node("DequantizeLinear", ["bias", "scales", "bias_zeros"], ["b"], axis=0))
        operands.append("b")
    return [
        *nodes,
        helper.make_node(layer.operator, operands, ["y"], "layer", **attributes),
        helper.make_node("QuantizeLinear", ["y", "step", "middle"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "step", "middle"], ["out"]),
    ]


def in_onnxruntime(model: onnx.ModelProto, image: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": image})[0], np.float32)


def in_openvino(model: onnx.ModelProto, image: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it reports imports over the network
    import openvino

    core = openvino.Core()
    settings = {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
    return np.asarray(compiled([image])[0], np.float32)


RUNTIMES: dict[str, Infer] = {"onnxruntime": in_onnxruntime, "openvino": in_openvino}


# How each layer is called: what reads the image, images or rows at once, sign of the weights.
CALLS: tuple[tuple[Entry, int, int], ...] = (("uint8", 1, 1), ("uint8", 3, -1), ("quantized", 3, 1), ("inner", 1, -1))


def found_in(layer: Layer, infer: Infer) -> set[Pair]:
    """Return the pairs that are cut off in any way of calling a layer."""
    return {pair for entry, batch, sign in CALLS for pair in cut_pairs(layer, infer, entry, batch, sign)}


def expected_pairs(layer: Layer) -> set[Pair]:
    """Return the pairs that packages bound."""
    filters = layer.multiplier or 2
    groups = 64 if layer.multiplier else layer.groups  # any number above 1 is depthwise
    shape = (filters * groups, layer.channels, *layer.kernel)
    return {(int(first), int(second)) for first, second in weight_pairs(shape, groups)}


def describe(layer: Layer, cut: set[Pair]) -> str:
    """Return which pairs those are, in words."""
    if not cut:
        return "none: exact"
    places = np.arange(layer.weights).reshape(layer.channels, *(layer.kernel or (1,)))
    lines = places.reshape(layer.channels, places.shape[1], -1)
    orders = {
        "channels (2c, 2c + 1) of a kernel position": places.reshape(layer.channels, -1).T,
        "in the order row, column, channel": np.moveaxis(places, 0, -1).reshape(1, -1),
        "columns of a kernel row": lines.reshape(-1, lines.shape[-1]),
    }
    for words, rows in orders.items():
        twos = {(min(a, b), max(a, b)) for row in rows.tolist() for a, b in zip(row[0::2], row[1::2], strict=False)}
        if twos == cut:
            return words
    return f"others, {len(cut)}: {sorted(cut)[:4]} ..."


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runtime", choices=RUNTIMES)
    parser.add_argument("--json", action="store_true", help="a line per layer: its name, the pairs, the unbounded ones")
    args = parser.parse_args()
    for layer in layers():
        cut = found_in(layer, RUNTIMES[args.runtime])
        unbounded = cut - expected_pairs(layer)
        if args.json:
            print(json.dumps({"layer": str(layer), "cut": sorted(cut), "unbounded": sorted(unbounded)}), flush=True)
        else:
            print(f"{layer!s:63} {describe(layer, cut)}{'  NOT BOUNDED' if unbounded else ''}", flush=True)


if __name__ == "__main__":
    main()
