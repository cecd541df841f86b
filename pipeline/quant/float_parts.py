"""Which operators compute in float32 between layers in int8: those of attention networks, told from the graph.

A residual stream that ends in a LayerNormalization holds a few values a hundred times larger than the others, and the
norm divides by what is left of them; scores of attention are read by exp. Eight bits are too few for either, and no
runtime computes the norm, the Softmax or a Gelu in int8, so that quantizers between them buy no speed. What costs time
there are products with constant weights: those stay in int8, each with one quantizer on its input. That is the
placement of NNCF's transformer mode and of I-BERT's predecessors (Bondarenko et al., "Understanding and Overcoming the
Challenges of Efficient Transformer Quantization", arXiv:2109.12948, on which activations lose what).

From the norms, the products of two activations, the Gelus and exponentials, float32 spreads over everything without
weights: sums, factors, moves, pools. Layers with constant weights end it.

A root, as of generalized-mean pooling (the mean of x^p, to the power 1/p: Radenovic et al., arXiv:1711.02512), enlarges
the steps of small values beyond bound: the cube root of one step of 255 is 0.16 of the largest value. What is computed
between the power and the root is float32 too. So are the scale and bias of a group norm, whose values would be rounded
three times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx
from onnx import numpy_helper

from pipeline.onnx_models.graphs import makers_of, readers_of
from pipeline.quant.classifier import SHAPE_READERS, find_classifier, tail_tensors
from pipeline.quant.graphs import MATRIX, WEIGHTED, constants, not_float32

# With Sqrt, by which exporters before opset 17 spell out the norm.
_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "Sqrt"})
_GELUS = frozenset({"Gelu", "Erf"})
# What is computed of and by these has no range that 8 bits divide well: softplus, mish, softmax in single operators.
_EXPONENTIALS = frozenset({"Exp", "Log"})
# Norms that no runtime computes in int8, and which scale and bias in operators of their own may follow, as those of a
# group norm do.
_INSTANCE_NORMS = frozenset({"InstanceNormalization", "MeanVarianceNormalization"})
_FACTORS = frozenset({"Mul", "Div", "Add", "Sub"})
_MOVES = frozenset({"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity"})
# What may stand between a power and its root, beside arithmetic with constants.
_POOLS_AND_MOVES = frozenset(
    {
        *("GlobalAveragePool", "AveragePool", "ReduceMean", "ReduceSum"),
        *_MOVES,
        *_FACTORS,
        *("Clip", "Relu", "Max"),
    }
)

# Activations that OpenVINO computes within the convolution before them, in float32, where no quantizer is between; and
# ONNX Runtime in int8, where there is one on either side. With Mul they are SiLU and squeeze-and-excitation.
_GATES = frozenset(
    {
        *("Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Mish", "Softplus", "Tanh"),
        *("LeakyRelu", "PRelu", "Elu", "Selu", "Celu"),
    }
)


@dataclass(frozen=True)
class FloatParts:
    """What computes in float32 beside the layers that a build file leaves out."""

    nodes: frozenset[str] = frozenset()  # names of operators without weights, and of products of two activations
    outputs: frozenset[str] = frozenset()  # what layers in int8 write for such nodes alone: without a quantizer


def float_parts(model: onnx.ModelProto, *, gates: bool = False) -> FloatParts:
    """Return the parts of a float32 model that stay float32; none of a network of convolutions, batch norms and ReLUs.

    Convolutions whose output goes into a norm or into attention as it is, with which a stream begins, write it in
    float32. Others keep their quantizer, without which ONNX Runtime computes them in float32.

    Args:
        gates: what is computed between convolutions and gates (SiLU, HardSwish, squeeze-and-excitation) is float32 too,
            with the outputs of those convolutions, and of those before a Gelu, which is float32 in any case.
    """
    known = constants(model)
    tail = tail_tensors(model, find_classifier(model))
    body = [node for node in model.graph.node if not tail.intersection(node.output)]
    attention = [node for node in body if node.op_type in _NORMS or is_product(node, known)]
    opened = [node for node in body if gates and node.op_type in _GATES]
    gelus = [node for node in body if node.op_type in _GELUS | _EXPONENTIALS]
    roots = [node for node in body if _is_root(node, known)]
    scaled = [node for node in body if node.op_type in _INSTANCE_NORMS]
    if not attention and not opened and not gelus and not roots and not scaled:
        return FloatParts()
    spread = _Spread(model, tail)
    nodes = spread.over(attention) | spread.over(gelus) | spread.before(roots) | spread.after(scaled)
    ends, of_gates = {node.name for node in attention}, spread.over([*opened, *(gelus if gates else ())])
    nodes |= of_gates
    outputs = {
        node.output[0]
        for node in body
        if node.op_type == "Conv"
        and _is_layer(node, known)
        and (spread.feeds(node.output[0], ends, nodes) or spread.is_read_by(node.output[0], of_gates))
    }
    return FloatParts(frozenset(nodes), frozenset(outputs))


def has_gates(model: onnx.ModelProto) -> bool:
    """Tell whether `gates` makes a difference to a model."""
    return float_parts(model, gates=True) != float_parts(model)


def is_product(node: onnx.NodeProto, known: Iterable[str]) -> bool:
    """Tell whether a node multiplies two activations."""
    return node.op_type in MATRIX and not set(node.input[:2]).intersection(known)


def _is_root(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> bool:
    """Tell whether a node raises an activation to a constant power between 0 and 1."""
    if node.op_type != "Pow" or node.input[0] in known or node.input[1] not in known:
        return False
    power = numpy_helper.to_array(known[node.input[1]])
    return bool(power.size and (power > 0).all() and (power < 1).all())


def _is_layer(node: onnx.NodeProto, known: Iterable[str]) -> bool:
    return node.op_type == "BatchNormalization" or (node.op_type in WEIGHTED and not is_product(node, known))


class _Spread:
    """Walks from nodes to their neighbours, over float32 tensors, as far as the next layers."""

    def __init__(self, model: onnx.ModelProto, tail: set[str]) -> None:
        known = constants(model)
        self._beyond = (
            not_float32(model.graph) | tail | known.keys() | {"", *(value.name for value in model.graph.input)}
        )
        self._readers = readers_of(model.graph)
        self._makers = makers_of(model.graph)
        self._ends = {node.name for node in model.graph.node if _is_layer(node, known)}

    def over(self, seeds: Iterable[onnx.NodeProto]) -> set[str]:
        """Return the names of the nodes that are reached, the seeds among them."""
        waiting = list(seeds)
        found: set[str] = set()
        while waiting:
            node = waiting.pop()
            if node.name in found or node.name in self._ends:
                continue
            found.add(node.name)
            for name in {*node.input, *node.output} - self._beyond:
                waiting.extend(self._readers.get(name, ()))
                if name in self._makers:
                    waiting.append(self._makers[name])
        return found

    def before(self, roots: Iterable[onnx.NodeProto]) -> set[str]:
        """Return the names of the pools, moves and constant factors whose values go into the roots and nowhere else.

        An activation right behind a layer is not among them: it stays with the layer, in int8.
        """
        found: set[str] = set()
        for root in roots:
            name, path = root.input[0], list[onnx.NodeProto]()
            while (node := self._passing(name)) is not None:
                path.append(node)
                name = next(each for each in node.input if each not in self._beyond)
            begins_at_layer = name not in self._makers or self._makers[name].name in self._ends
            while begins_at_layer and path and path[-1].op_type in ("Relu", "Clip", "Max"):
                path.pop()
            found.update(node.name for node in path)
        return found

    def after(self, norms: Iterable[onnx.NodeProto]) -> set[str]:
        """Return the names of the constant factors and sums, and moves before them, that norms' values go through."""
        found: set[str] = set()
        for norm in norms:
            path, reader = list[onnx.NodeProto](), self._only_reader(norm)
            while reader is not None:
                path.append(reader)
                reader = self._only_reader(reader)
            while path and path[-1].op_type in _MOVES:
                path.pop()
            found.update(node.name for node in path)
        return found

    def _only_reader(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return the factor, sum or move that alone reads what a node makes, with constants; None: there is none."""
        if node.output[0] in self._beyond:
            return None
        readers = [each for each in self._readers.get(node.output[0], ()) if each.op_type not in SHAPE_READERS]
        if len(readers) != 1 or readers[0].op_type not in _FACTORS | _MOVES:
            return None
        return readers[0] if len([name for name in readers[0].input if name not in self._beyond]) == 1 else None

    def _passing(self, name: str) -> onnx.NodeProto | None:
        """Return the pool, move or sum that makes a tensor of one reader from one activation; None: there is none."""
        node = self._makers.get(name)
        if node is None or node.op_type not in _POOLS_AND_MOVES or len(self._readers.get(name, ())) != 1:
            return None
        return node if len([each for each in node.input if each not in self._beyond]) == 1 else None

    def is_read_by(self, name: str, nodes: set[str]) -> bool:
        """Tell whether some nodes, and no others, read a tensor."""
        readers = self._readers.get(name, ())
        return bool(readers) and all(node.name in nodes for node in readers)

    def feeds(self, name: str, ends: set[str], through: set[str]) -> bool:
        """Tell whether a tensor goes into one of some nodes, and nowhere else than through the nodes of `through`.

        A node that joins two activations is as far as it goes: what comes of it is no longer the tensor.
        """
        waiting, seen, found = [name], set[str](), False
        while waiting:
            each = waiting.pop()
            for node in self._readers.get(each, ()):
                if node.name not in through:
                    return False
                if node.name in ends:
                    found = True
                elif node.name not in seen and (len(set(node.input) - self._beyond) < 2 or node.op_type == "Concat"):
                    seen.add(node.name)
                    waiting.extend(node.output)
        return found
