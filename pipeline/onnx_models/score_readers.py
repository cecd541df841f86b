"""Traces a classifier's output back to the operator that determines what its scores are; see `scores.find_scores`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx

from pipeline.onnx_models.score_graph import COPIES, Graph
from pipeline.onnx_models.score_values import LOGITS, OTHER, SHARES, SIGMOID, Values
from pipeline.onnx_models.scores import Scores

_DEEPEST = 100  # length of the longest chain of operators that is traced


class Reader:
    """Reads tensors of a graph, each once. `axis` is the axis of the classes, from the end; None: not known."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._seen: dict[tuple[str, int | None], Values] = {}
        self._depth = 0

    def output(self) -> Scores:
        return self.read(self.graph.output, -1).settled()

    def read(self, name: str, axis: int | None) -> Values:
        node = self.graph.makers.get(name)
        if node is None or node.op_type not in _READERS or self._depth > _DEEPEST:
            return LOGITS
        if (name, axis) not in self._seen:
            self._depth += 1
            self._seen[name, axis] = _READERS[node.op_type](self, node, axis)
            self._depth -= 1
        return self._seen[name, axis]


def _copy(reader: Reader, node: onnx.NodeProto, axis: int | None) -> Values:
    return reader.read(node.input[0], axis)


def _move(reader: Reader, node: onnx.NodeProto, axis: int | None) -> Values:
    return reader.read(node.input[0], reader.graph.axis_before(node, axis))


def _cast(reader: Reader, node: onnx.NodeProto, axis: int | None) -> Values:
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
    return reader.read(node.input[0], axis) if reader.graph.attribute(node, "to") in floats else OTHER


def _clip(reader: Reader, node: onnx.NodeProto, axis: int | None) -> Values:
    """Probabilities clipped near 0 and 1 stay probabilities. Anything else clipped there is a score from 0 to 1."""
    found = reader.read(node.input[0], axis)
    return found if found.kind is not Scores.LOGITS else OTHER if reader.graph.bounds(node) == (0, 1) else LOGITS


def _larger(reader: Reader, node: onnx.NodeProto, axis: int | None) -> Values:
    """Max and Min with a constant, either way round, or of several heads: of probabilities they need not sum to 1."""
    given = [name for name in node.input if reader.graph.constant(name) is None]
    if len(given) == 1:
        return reader.read(given[0], axis)
    return SIGMOID if given and all(reader.read(name, axis).settled() in SHARES for name in given) else LOGITS


def _rectify(reader: Reader, node: onnx.NodeProto, axis: int | None) -> Values:
    found = reader.read(node.input[0], axis)
    return found if found.are_shares else LOGITS


def _softmax(reader: Reader, node: onnx.NodeProto, axis: int | None) -> Values:
    return Values(Scores.SOFTMAX) if reader.graph.goes_along(node, axis) else OTHER


def _log_softmax(reader: Reader, node: onnx.NodeProto, axis: int | None) -> Values:
    return Values(Scores.LOG_SOFTMAX) if reader.graph.goes_along(node, axis) else LOGITS


def _log(reader: Reader, node: onnx.NodeProto, axis: int | None) -> Values:
    found = reader.read(node.input[0], axis).settled()
    return {Scores.SOFTMAX: Values(Scores.LOG_SOFTMAX), Scores.SIGMOID: OTHER, Scores.OTHER: OTHER}.get(found, LOGITS)


def _exp(reader: Reader, node: onnx.NodeProto, axis: int | None) -> Values:
    found = reader.read(node.input[0], axis).settled()
    return Values(Scores.SOFTMAX) if found is Scores.LOG_SOFTMAX else OTHER


def _add(reader: Reader, node: onnx.NodeProto, axis: int | None) -> Values:
    graph = reader.graph
    for one, other in (node.input, tuple(node.input)[::-1]):
        if graph.constant(one) is not None:
            offset, found = graph.number(one), reader.read(other, axis)
            return found.moved(1, offset) if offset is not None else OTHER if found.are_shares else LOGITS
    return _mixed([reader.read(name, axis) for name in node.input])


def _subtract(reader: Reader, node: onnx.NodeProto, axis: int | None) -> Values:
    graph = reader.graph
    first, second = node.input
    constants = graph.number(first), graph.number(second)
    if constants[1] is not None:
        return reader.read(first, axis).moved(1, -constants[1])
    if constants[0] is not None:
        found = reader.read(second, axis)
        return found.moved(-1, constants[0]) if found.are_shares else LOGITS
    return Values(Scores.LOG_SOFTMAX) if _is_log_sum(graph, second, first, axis) else LOGITS


def _is_log_sum(graph: Graph, name: str, of: str, axis: int | None) -> bool:
    """Tell whether a tensor is log(sum(exp(of)))."""
    whole = graph.maker(name, "ReduceLogSumExp")
    if whole is not None:
        return graph.origin(whole.input[0]) == graph.origin(of) and graph.axes(whole) == [axis]
    logarithm = graph.maker(name, "Log")
    summed = None if logarithm is None else graph.summed_over(logarithm.input[0], axis)
    raised = None if summed is None else graph.maker(summed, "Exp")
    return raised is not None and graph.origin(raised.input[0]) == graph.origin(of)


def _multiply(reader: Reader, node: onnx.NodeProto, axis: int | None) -> Values:
    graph = reader.graph
    for one, other in (node.input, tuple(node.input)[::-1]):
        inverse = graph.maker(one, "Reciprocal")
        if inverse is not None and _normalises(graph, other, inverse.input[0], axis):
            return Values(Scores.SOFTMAX)
        if graph.constant(one) is not None:
            factor, found = graph.number(one), reader.read(other, axis)
            return found.moved(factor, 0) if factor is not None else OTHER if found.are_shares else LOGITS
    # A product of probabilities (an object is there, times its class) lies in 0..1; such scores need not sum to 1.
    return SIGMOID if all(reader.read(name, axis).settled() in SHARES for name in node.input) else LOGITS


def _divide(reader: Reader, node: onnx.NodeProto, axis: int | None) -> Values:
    graph = reader.graph
    above, below = node.input
    number = graph.number(below)
    if number:
        return reader.read(above, axis).moved(1 / number, 0)
    if _normalises(graph, above, below, axis):
        return Values(Scores.SOFTMAX)
    raised = _raised_plus_one(graph, below)
    if raised is not None and (graph.number(above) == 1 or graph.origin(above) == raised):
        return SIGMOID  # 1 / (1 + exp(-x)), exp(x) / (1 + exp(x))
    return LOGITS if graph.maker(above, "Exp") is None else OTHER  # a softmax over another axis


def _reciprocal(reader: Reader, node: onnx.NodeProto, axis: int | None) -> Values:
    return LOGITS if _raised_plus_one(reader.graph, node.input[0]) is None else SIGMOID


def _normalises(graph: Graph, above: str, below: str, axis: int | None) -> bool:
    """Tell whether values that are never negative are divided by their sum over the classes, as softmax divides."""
    return graph.summed_over(below, axis) == graph.origin(above) and graph.is_never_negative(above)


def _raised_plus_one(graph: Graph, name: str) -> str | None:
    """Return the tensor exp(x) where another is 1 + exp(x)."""
    addition = graph.maker(name, "Add")
    for one, other in () if addition is None else (addition.input, tuple(addition.input)[::-1]):
        if graph.number(one) == 1 and graph.maker(other, "Exp") is not None:
            return graph.origin(other)
    return None


def _sum(reader: Reader, node: onnx.NodeProto, axis: int | None) -> Values:
    return _mixed([reader.read(name, axis) for name in node.input])


def _mean(reader: Reader, node: onnx.NodeProto, axis: int | None) -> Values:
    return _sum(reader, node, axis).moved(1 / len(node.input), 0)


def _mixed(parts: Sequence[Values]) -> Values:
    """Return the sum of several tensors. A sum of probabilities, as of an ensemble, is probabilities times a number."""
    if not all(part.are_shares and part.factor > 0 for part in parts):
        return LOGITS
    alike = all(part.kind is Scores.SOFTMAX for part in parts)
    factor, offset = sum(part.factor for part in parts), sum(part.offset for part in parts)
    return Values(Scores.SOFTMAX if alike else Scores.SIGMOID, factor, offset)


def _average(reader: Reader, node: onnx.NodeProto, axis: int | None) -> Values:
    """ReduceMean and pooling over other axes than the classes: a map of scores, or several networks."""
    graph = reader.graph
    before = graph.shape(node.input[0])
    if axis is None or before is None:
        return LOGITS
    pools = node.op_type == "GlobalAveragePool"
    gone = range(2 - len(before), 0) if pools else graph.axes(node)
    kept = [place for place in range(-len(before), 0) if place not in gone]
    if pools or graph.attribute(node, "keepdims", 1):
        found = reader.read(node.input[0], axis) if axis in kept else LOGITS
    else:
        found = reader.read(node.input[0], kept[axis]) if -axis <= len(kept) else LOGITS
    return found if found.are_shares else LOGITS


def _gather(reader: Reader, node: onnx.NodeProto, axis: int | None) -> Values:
    """Some of the classes, or one of several outputs."""
    graph = reader.graph
    indices, before = graph.constant(node.input[1]), graph.shape(node.input[0])
    if indices is None or indices.ndim > 1:
        return LOGITS
    if indices.ndim == 1:
        return reader.read(node.input[0], axis)
    gone = graph.from_end(int(graph.attribute(node, "axis", 0)), node.input[0])
    kept = [place for place in range(-len(before or ()), 0) if place != gone]
    return reader.read(node.input[0], kept[axis]) if axis is not None and -axis <= len(kept) else LOGITS


def _where(reader: Reader, node: onnx.NodeProto, axis: int | None) -> Values:
    """Scores of which some are replaced by a number, such as those below a threshold."""
    given = [name for name in node.input[1:] if reader.graph.constant(name) is None]
    found = {reader.read(name, axis) for name in given}
    return found.pop() if len(found) == 1 else LOGITS


def _power(reader: Reader, node: onnx.NodeProto, axis: int | None) -> Values:
    """Powers of probabilities lie from 0 to 1 too, and do not sum to 1."""
    return OTHER if reader.read(node.input[0], axis).are_shares else LOGITS


def _concatenate(reader: Reader, node: onnx.NodeProto, axis: int | None) -> Values:
    found = [reader.read(name, axis) for name in node.input]
    along = reader.graph.from_end(int(reader.graph.attribute(node, "axis", 1)), node.output[0])
    if along != axis:
        return found[0] if len(set(found)) == 1 else LOGITS
    if len(found) == 2 and _are_complements(reader.graph, *node.input):
        return Values(Scores.SOFTMAX)
    kinds = {each.settled() for each in found}
    return SIGMOID if kinds == {Scores.SIGMOID} else LOGITS if Scores.LOGITS in kinds else OTHER


def _are_complements(graph: Graph, one: str, other: str) -> bool:
    """Tell whether two tensors are p and 1 - p, of a sigmoid: two classes."""
    for share, rest in ((one, other), (other, one)):
        node = graph.maker(rest, "Sub")
        if node is not None and graph.number(node.input[0]) == 1 and graph.origin(node.input[1]) == graph.origin(share):
            return graph.maker(share, "Sigmoid") is not None
    return False


Read = Callable[[Reader, onnx.NodeProto, "int | None"], Values]


def _always(values: Values) -> Read:
    return lambda reader, node, axis: values


_READERS: dict[str, Read] = {
    **dict.fromkeys(COPIES, _copy),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"), _move),
    **dict.fromkeys(("Slice", "Split"), _copy),  # some of the classes: their probabilities sum to less than 1
    **dict.fromkeys(("Max", "Min"), _larger),
    **dict.fromkeys(("Round", "Floor", "Ceil"), _copy),
    **dict.fromkeys(("Sqrt", "Pow"), _power),
    **dict.fromkeys(("Relu", "Abs"), _rectify),
    **dict.fromkeys(("Sigmoid", "HardSigmoid"), _always(SIGMOID)),
    **dict.fromkeys(("ReduceMean", "GlobalAveragePool"), _average),
    "Cast": _cast,
    "Clip": _clip,
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
    "Tanh": _always(Values(Scores.SIGMOID, 2, -1)),  # tanh(x) = 2 sigmoid(2x) - 1
    "Hardmax": _always(OTHER),
    "Log": _log,
    "Exp": _exp,
    "Add": _add,
    "Sub": _subtract,
    "Mul": _multiply,
    "Div": _divide,
    "Reciprocal": _reciprocal,
    "Sum": _sum,
    "Mean": _mean,
    "Concat": _concatenate,
    "Gather": _gather,
    "Where": _where,
}
