"""ONNX networks in torch, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from small_graphs import SIDE, Builder, between_convolutions, images, ranges_seen, run_exact

from pipeline.learn.network import Network
from pipeline.learn.operators import UnsupportedError
from pipeline.quant.assemble import Parts, assemble

Part = Callable[[Builder, str], str]


def uneven_pool(made: Builder, x: str) -> str:
    return made.op("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 0])


def split_and_joined(made: Builder, x: str) -> str:
    made.op("Split", x, made.constant([3, 5], np.int64), axis=1)
    made.rename_last("left", "right")
    return made.op("Concat", "right", made.op("Sigmoid", "left"), axis=1)


def sliced(made: Builder, x: str) -> str:
    bounds = [made.constant([value], np.int64) for value in (1, 100, 2, 2)]
    return made.op("Slice", x, *bounds)


def squeezed(made: Builder, x: str) -> str:
    means = made.op("ReduceMean", x, axes=[2, 3], keepdims=1)
    return made.op("Mul", x, made.op("HardSigmoid", made.conv(means, 8, 8, kernel=1), alpha=1 / 6, beta=0.5))


def normalised(made: Builder, x: str) -> str:
    last = made.op("Transpose", x, perm=[0, 2, 3, 1])
    scale, bias = made.constant(made.normal(8)), made.constant(made.normal(8))
    return made.op("Transpose", made.op("LayerNormalization", last, scale, bias, axis=-1), perm=[0, 3, 1, 2])


PARTS: dict[str, Part] = {
    "relu": lambda made, x: made.op("Relu", x),
    "clip": lambda made, x: made.clip(x, 0.1, 0.7),
    "clip above": lambda made, x: made.clip(x, None, 0.7),
    "leaky": lambda made, x: made.op("LeakyRelu", x, alpha=0.2),
    "sum": lambda made, x: made.op("Add", x, made.constant(made.normal(8, 1, 1))),
    "silu": lambda made, x: made.op("Mul", x, made.op("Sigmoid", x)),
    "depthwise": lambda made, x: made.conv(x, 1, 8, group=8, strides=[2, 2]),
    "dilated": lambda made, x: made.conv(x, 8, 8, dilations=[2, 2]),
    "max pool": lambda made, x: made.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
    "average pool": uneven_pool,
    "split": split_and_joined,
    "slice": sliced,
    "squeeze and excitation": squeezed,
    "layer norm": normalised,
    "reshape": lambda made, x: made.op("Reshape", x, made.constant([0, 8, SIDE // 2, SIDE * 2], np.int64)),
    "pad": lambda made, x: made.op("Pad", x, made.constant([0, 0, 1, 2, 0, 0, 0, 1], np.int64)),
}


def output_of(model: onnx.ModelProto, images_nchw: np.ndarray) -> np.ndarray:
    network = Network(model)
    with torch.no_grad():
        return network.run({network.input: torch.from_numpy(images_nchw)}, [network.output])[network.output].numpy()


@pytest.mark.parametrize("part", PARTS)
def test_network_computes_what_onnx_runtime_does(part: str) -> None:
    model, batch = between_convolutions(PARTS[part]), images(3)
    expected = run_exact(model, batch)
    np.testing.assert_allclose(output_of(model, batch), expected, rtol=1e-4, atol=1e-5)


def test_network_computes_a_qdq_model_to_single_levels() -> None:
    model, batch = between_convolutions(PARTS["relu"]), images(8)
    int8 = assemble(model, Parts(ranges=ranges_seen(model, batch), per_channel=True)).model
    expected = run_exact(int8, batch)
    found = output_of(int8, batch)
    of_float = run_exact(model, batch)
    assert np.square(found - expected).mean() < 1e-2 * np.square(of_float - expected).mean()


def test_network_gives_gradients_of_inner_activations() -> None:
    made = Builder()
    weights, bias = made.normal(5, 8), made.normal(5)
    x = made.op("Relu", made.conv("x", 3, 8))
    model = made.model(made.op("Gemm", made.pooled(x), made.constant(weights), made.constant(bias), transB=1))
    network, kept = Network(model), {}

    def keep(name: str, value: torch.Tensor) -> torch.Tensor:
        if name == x:
            kept[name] = value = value.requires_grad_()
        return value

    given = {network.input: torch.from_numpy(images(2))}
    output = network.run(given, [network.output], change=keep)[network.output]
    (gradient,) = torch.autograd.grad(output[:, 2].sum(), kept[x])
    expected = np.broadcast_to(weights[2][None, :, None, None] / SIDE**2, (2, 8, SIDE, SIDE))
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("operator", ["Cos", "Mish"])
def test_network_names_an_operator_that_it_lacks(operator: str) -> None:
    model = between_convolutions(lambda made, x: made.op("Relu", x))
    model.graph.node[1].op_type = operator
    with pytest.raises(UnsupportedError, match=operator):
        Network(model)


def test_network_names_the_node_that_torch_refuses() -> None:
    model = between_convolutions(lambda made, x: made.op("Reshape", x, made.constant([0, 7, -1, 4], np.int64)))
    with pytest.raises(UnsupportedError, match="Reshape reshape0"):
        output_of(model, images(1))
