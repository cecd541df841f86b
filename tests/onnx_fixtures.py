"""Small ONNX files as exporters of every age write them, for the tests of what loads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.onnx_models import classifier
from pipeline.onnx_models.raw_file import RawFile

Float32 = npt.NDArray[np.float32]
Constants = Mapping[str, npt.NDArray[np.generic]]
Dims = Sequence[int | str]
CHW = (3, 8, 8)
RNG = np.random.default_rng(5)
IMAGES: Float32 = RNG.normal(size=(3, *CHW)).astype(np.float32)
WEIGHT: Float32 = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), output.split(), name=f"{kind}_{output}", **attributes)


def flat(*nodes: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return nodes from x to a, then all of a flattened: nothing is averaged away."""
    return [*nodes, node("Flatten", "a", "y")]


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    opset: int = 17,
    constants: Constants | None = None,
    *,
    ir: int | None = None,
    dims: Dims = ("N", *CHW),
    kind: int = TensorProto.FLOAT,
    outputs: Mapping[str, Dims | None] | None = None,
    output_kind: int = TensorProto.FLOAT,
    inputs_too: bool = False,
    edit: Callable[[onnx.ModelProto], object] | None = None,
) -> Path:
    """Save a graph from x to y, in the file version of the opset's time.

    Args:
        inputs_too: the constants are listed among the inputs, as IR version 3 has to; IR version 3 always does.
        edit: changes the model before it is saved.
    """
    graph = helper.make_graph(
        list(nodes),
        "made by hand",
        [helper.make_tensor_value_info("x", kind, dims)],
        [helper.make_tensor_value_info(name, output_kind, shape) for name, shape in (outputs or {"y": None}).items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    ir = ir or (3 if opset < 9 else 6 if opset < 13 else 8 if opset < 19 else 10)
    if ir == 3 or inputs_too:
        graph.input.extend(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            for tensor in graph.initializer
        )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    if edit is not None:
        edit(model)
    onnx.save(model, path)
    return path


def load_and_compare(path: Path, output: str | None = None, atol: float = 1e-5) -> onnx.ModelProto:
    """Load a file, check that images in a batch get what the file as it is gives them alone, return the model."""
    model = classifier.load(path, CHW, output)
    onnx.checker.check_model(model, full_check=True)
    file = RawFile(path, output)
    if file.batch and file.batch > 1:
        expected = file.answers(IMAGES)
    else:
        expected = np.concatenate([file.answers(image[None]) for image in IMAGES])
    found = classifier.run(model, IMAGES)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=atol)
    return model


def operators(model: onnx.ModelProto) -> list[str]:
    return [each.op_type for each in model.graph.node]
