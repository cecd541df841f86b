"""What computing with a network takes, in multiply-accumulates: for progress and for the time that is left."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx

from pipeline.onnx_models.graphs import integer
from pipeline.quant.graphs import activation_shapes, constants, weighted_nodes
from pipeline.quant.rounding import BLOCK, WIDEST

# Of a multiply-accumulate of rounding: what one takes when a runtime infers, activations are counted and covariances
# are summed. Measured on resnet18.
COLLECTING = 2.0


@dataclass(frozen=True)
class NetworkWork:
    """What a network costs, in multiply-accumulates."""

    macs: float  # of an image
    params: float
    rounding: float  # of rounding all layers once; see `rounding_work`

    @staticmethod
    def guess(macs: float, params: float) -> NetworkWork:
        """Return the cost of a network whose layers are not known: 60,000 a weight to round, as in ResNets."""
        return NetworkWork(macs, params, 60_000 * params)


def rounding_work(outputs: int, inputs: int, groups: int = 1) -> float:
    """Return about what rounding a layer takes, in multiply-accumulates: its time is in proportion.

    Factoring a covariance takes inputs^3 of them and telling later columns of errors outputs * inputs^2. Each column is
    rounded in a dozen calls of numpy, as long as 9e6 multiply-accumulates; measured on layers of 256 to 4608 inputs.
    """
    if inputs > WIDEST:
        return inputs / BLOCK * rounding_work(outputs, BLOCK)
    return float(groups * inputs * (inputs**2 + 1.2 * inputs * outputs / groups + 9e6))


def measure_network(model: onnx.ModelProto) -> NetworkWork:
    """Return the cost of a model, whether or not its tensors are loaded: of the products with constant weights.

    Sizes that shape inference does not find count as 1.
    """
    known, shapes = constants(model), activation_shapes(model)
    macs = params = rounding = 0.0
    for node in weighted_nodes(model):
        weights = known.get(node.input[1])
        if weights is None:
            continue
        values = math.prod(max(1, size) for size in shapes.get(node.output[0], ())[1:])
        count = math.prod(weights.dims)
        outputs = _outputs_of(node, weights)
        inputs = max(1, count // outputs)
        groups = integer(node, "group", 1)
        macs += values * inputs
        params += count
        rounding += rounding_work(outputs, inputs, groups)
    return NetworkWork(macs, params, rounding)


def _outputs_of(node: onnx.NodeProto, weights: onnx.TensorProto) -> int:
    """Return how many values a layer computes at each place; 1 where its weights are no matrix."""
    first = node.op_type == "Conv" or integer(node, "transB", 0)
    return max(1, int(weights.dims[0 if first else -1])) if len(weights.dims) > 1 else 1
