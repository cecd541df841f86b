"""Gives ONNX Runtime in plain float32 what it computes in float32 of an int8 model anyway.

A convolution whose output goes into a gate or a norm without a quantizer is computed in float32 there. As the file has
it, its weights are dequantized in every call, and kernels in blocked layout, which want constant weights, are not used:
depthwise ones then take several times as long. So such convolutions get their dequantized weights and biases as
constants, of the same values. A quantizer that no operator in int8 writes to or reads from buys nothing but a pass over
the data, and goes; one that stands for a ReLU or Clip becomes a Clip. Factors that scaled channels for such a quantizer
go into the weights of the convolutions that read them.

A convolution in int8 whose input is quantized for it alone, of a value in float32, is computed in float32 too where it
makes little of each value (`_LEAST_USES`): the quantizer then costs more than int8 saves.

Measured on an AMD EPYC with AVX-512 VNNI, one thread, over float32: efficientnet_b0 .41x before and 1.10x so,
mobilenet_v3_large .46x and 1.05x, convnext_atto .60x and 1.10x. Done in memory when ONNX Runtime opens a package, since
OpenVINO computes the file's form in int8, and faster.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

CLIPPING = "int8_classifier_pipeline.clipping"  # metadata: JSON list of the quantized tensors that stand for a Clip
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_CLIPS = frozenset({"Relu", "Clip"})
_MATRIX = frozenset({"Gemm", "MatMul"})  # ONNX Runtime has int8 kernels that write float32
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
# Products with a value that pay for quantizing it. mobilenet_v3_large, whose first depthwise convolution reads a
# HardSwish, over float32: 1.08x where all stay in int8, 1.20x with the bound at 20, 1.17x at 50, 1.09x at 70;
# efficientnet_b0 1.12x, 1.10x at 20, 1.14x at 45, 1.13x at 100; mobilenet_v3_small 1.15x, 1.10x, 1.14x, 1.07x.
_LEAST_USES = 48


def mark_clipping(model: onnx.ModelProto, names: list[str]) -> None:
    """Note in a model, in place, which of its quantized tensors stand for the output of a ReLU or Clip."""
    model.metadata_props.add(key=CLIPPING, value=json.dumps(names))


def use_float_form(model: onnx.ModelProto) -> bool:
    """Change a model for ONNX Runtime, in place; return whether anything changed. Models without the mark stay."""
    marks = [each.value for each in model.metadata_props if each.key == CLIPPING]
    return bool(marks) and _FloatForm(model.graph, frozenset(json.loads(marks[0]))).apply()


class _FloatForm:
    """A graph, what makes and reads its tensors, and which of its layers compute in float32."""

    def __init__(self, graph: onnx.GraphProto, clipping: frozenset[str]) -> None:
        self._graph, self._clipping = graph, clipping
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}
        self._outputs = {value.name for value in graph.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._given_up: set[str] = set()  # what layers write that could compute in int8, but are faster in float32

    def apply(self) -> bool:
        """Change the graph; return whether anything changed."""
        convolutions = [node for node in self._graph.node if node.op_type in _CONVOLUTIONS]
        self._given_up = {node.output[0] for node in convolutions if self._is_int8(node) and not self._pays(node)}
        layers = [node for node in convolutions if not self._is_int8(node)]
        pairs = list(self._idle_quantizers())  # before anything changes
        changed = [self._dequantize_constants(node) for node in layers]
        for quantizer in pairs:
            self._bypass(quantizer)
        self._remove_unread()
        for node in [node for node in self._graph.node if node.op_type == "Mul"]:
            self._fold_factors(node)
        self._remove_unread()
        return bool(pairs) or any(changed)

    def _is_int8(self, node: onnx.NodeProto) -> bool:
        """Tell whether ONNX Runtime may compute a node in int8: it reads dequantized values, and writes quantized."""
        inputs = [name for name in node.input if name and name not in self._tensors]
        if not self._given_up.isdisjoint(node.output):
            return False
        if not inputs or not all(self._is_dequantized(name) for name in inputs):
            return False
        if node.op_type in _CONVOLUTIONS | _MATRIX and not all(map(self._is_dequantized, node.input[:2])):
            return False
        return node.op_type in _MATRIX or all(self._is_quantized(name) for name in node.output)

    def _pays(self, convolution: onnx.NodeProto) -> bool:
        """Tell whether a convolution in int8 makes up for the quantizer of its input, if that is there for it alone."""
        if convolution.op_type != "Conv":
            return True
        quantizer = self._makers.get(self._makers[convolution.input[0]].input[0])
        maker = self._makers.get(quantizer.input[0]) if quantizer is not None else None
        while maker is not None and maker.op_type in _CLIPS:
            maker = self._makers.get(maker.input[0])
        if quantizer is None or maker is None or self._is_int8(maker):
            return True
        after = self._readers[quantizer.output[0]]
        around = [reader for each in after for reader in self._readers.get(each.output[0], [])]
        if any(reader is not convolution and self._is_int8(reader) for reader in around):
            return True
        filters, _, *kernel = self._tensors[self._makers[convolution.input[1]].input[0]].dims
        attributes = {each.name: each for each in convolution.attribute}
        groups = attributes["group"].i if "group" in attributes else 1
        strides = list(attributes["strides"].ints) if "strides" in attributes else [1]
        return bool(filters * np.prod(kernel) >= _LEAST_USES * groups * np.prod(strides))

    def _is_dequantized(self, name: str) -> bool:
        return name in self._makers and self._makers[name].op_type == _DEQUANTIZE

    def _is_quantized(self, name: str) -> bool:
        """Tell whether only quantizers read a tensor, through ReLUs and Clips."""
        readers = self._readers.get(name, [])
        return (
            bool(readers)
            and name not in self._outputs
            and all(
                node.op_type == _QUANTIZE or (node.op_type in _CLIPS and self._is_quantized(node.output[0]))
                for node in readers
            )
        )

    def _idle_quantizers(self) -> Iterator[onnx.NodeProto]:
        """Yield the quantizers of activations that are between operators in float32 alone."""
        for node in self._graph.node:
            after = self._readers.get(node.output[0], []) if node.op_type == _QUANTIZE else []
            if not after or any(each.op_type != _DEQUANTIZE or each.output[0] in self._outputs for each in after):
                continue
            maker = self._makers.get(node.input[0])
            around = [reader for each in after for reader in self._readers.get(each.output[0], [])]
            if maker is not None and not any(map(self._is_int8, (maker, *around))):
                yield node

    def _dequantize_constants(self, layer: onnx.NodeProto) -> bool:
        """Give a layer its weights and its bias as float32 constants; return whether they were not."""
        changed = False
        for position in range(1, len(layer.input)):
            maker = self._makers.get(layer.input[position])
            if maker is None or maker.op_type != _DEQUANTIZE or maker.input[0] not in self._tensors:
                continue
            name = f"{layer.input[position]}.float32"
            if name not in self._tensors:
                self._tensors[name] = numpy_helper.from_array(self._values(maker), name)
                self._graph.initializer.append(self._tensors[name])
            layer.input[position] = name
            changed = True
        return changed

    def _values(self, dequantizer: onnx.NodeProto) -> npt.NDArray[np.float32]:
        """Return what a DequantizeLinear of constants computes, to the bit."""
        steps, scale, *zero = (numpy_helper.to_array(self._tensors[name]) for name in dequantizer.input)
        axis = next((each.i for each in dequantizer.attribute if each.name == "axis"), 1)
        shape = [-1 if scale.ndim and each == axis % steps.ndim else 1 for each in range(steps.ndim)]
        offset = zero[0].astype(np.int64).reshape(shape if scale.ndim else ()) if zero else np.int64(0)
        whole = (steps.astype(np.int64) - offset).astype(np.float32)
        values: npt.NDArray[np.float32] = whole * scale.reshape(shape if scale.ndim else ())
        return values

    def _bypass(self, quantizer: onnx.NodeProto) -> None:
        """Let what reads a quantized activation read it as it was, or clipped where that is what it stands for."""
        source = quantizer.input[0]
        dequantizers = [node for node in self._readers[quantizer.output[0]] if node.op_type == _DEQUANTIZE]
        if source in self._clipping:
            source = self._clip(quantizer)
        for dequantizer in dequantizers:
            for node in self._readers.get(dequantizer.output[0], []):
                for position, name in enumerate(node.input):
                    if name == dequantizer.output[0]:
                        node.input[position] = source

    def _fold_factors(self, product: onnx.NodeProto) -> None:
        """Let the convolutions that alone read an activation times a factor per channel have it in their weights.

        Such factors bring channels behind gates to ranges that one quantizer can hold (`quant/gate_scaling.py`).
        """
        known = [name for name in product.input if name in self._tensors]
        readers = [node for node in self._graph.node if product.output[0] in node.input]
        if len(known) != 1 or list(self._tensors[known[0]].dims[1:]) != [1, 1] or product.output[0] in self._outputs:
            return
        if not readers or not all(map(self._has_constant_weights, readers)):
            return
        factors = numpy_helper.to_array(self._tensors[known[0]]).reshape(-1)
        for node in readers:
            weights = numpy_helper.to_array(self._tensors[node.input[1]])
            groups = next((each.i for each in node.attribute if each.name == "group"), 1)
            factors = np.broadcast_to(factors, groups * weights.shape[1])
            by_group = weights.reshape(groups, -1, *weights.shape[1:]) * factors.reshape(groups, 1, -1, 1, 1)
            name = f"{node.name}.scaled_weights"
            self._tensors[name] = numpy_helper.from_array(by_group.reshape(weights.shape), name)
            self._graph.initializer.append(self._tensors[name])
            node.input[1] = name
            node.input[0] = next(each for each in product.input if each != known[0])

    def _has_constant_weights(self, node: onnx.NodeProto) -> bool:
        """Tell whether a node is a convolution over two axes by constants in float32."""
        weights = self._tensors.get(node.input[1]) if node.op_type == "Conv" else None
        return weights is not None and weights.data_type == onnx.TensorProto.FLOAT and len(weights.dims) == 4

    def _clip(self, quantizer: onnx.NodeProto) -> str:
        """Make a Clip to a quantizer's range in its place in the graph; return what it writes."""
        scale, zero = (numpy_helper.to_array(self._tensors[name]) for name in quantizer.input[1:3])
        limits, name = np.iinfo(zero.dtype), f"{quantizer.input[0]}.clipped"
        bounds = [np.float32((limit - int(zero)) * np.float64(scale)) for limit in (limits.min, limits.max)]
        names = [f"{name}.low", f"{name}.high"]
        self._graph.initializer.extend(
            numpy_helper.from_array(np.asarray(bound), each) for bound, each in zip(bounds, names, strict=True)
        )
        node = onnx.helper.make_node("Clip", [quantizer.input[0], *names], [name], name)
        self._graph.node.insert(list(self._graph.node).index(quantizer), node)
        return name

    def _remove_unread(self) -> None:
        """Remove the nodes that nothing reads any more, from the end, and constants that nothing reads."""
        read = set(self._outputs)
        for node in reversed(list(self._graph.node)):
            if read.isdisjoint(node.output):
                self._graph.node.remove(node)
            else:
                read.update(node.input)
        for tensor in [tensor for tensor in self._graph.initializer if tensor.name not in read]:
            self._graph.initializer.remove(tensor)
