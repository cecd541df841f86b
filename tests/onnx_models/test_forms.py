"""Operators in forms that quantization does not know come in with their meaning unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_fixtures import CHW, IMAGES, RNG, WEIGHT, flat, load_and_compare, node, operators, save
from small_graphs import SIDE, Builder, images, run_exact, run_in

from pipeline.errors import DataError
from pipeline.onnx_models import classifier
from pipeline.onnx_models.graphs import constants_of, rename
from pipeline.onnx_models.raw_file import RawFile
from pipeline.runtimes.base import Runtime

FC = RNG.normal(size=(192, 5)).astype(np.float32)
ROW = RNG.normal(size=5).astype(np.float32)
BIASES = {
    "one a column": ROW,
    "of shape [1, 5]": ROW[None],
    "of shape [1]": ROW[:1],
    "of shape [1, 1]": ROW[None, :1],
    "scalar": ROW[0],
}


def the_gemm(model: onnx.ModelProto) -> onnx.NodeProto:
    found: onnx.NodeProto
    (found,) = [each for each in model.graph.node if each.op_type == "Gemm"]
    return found


@pytest.mark.parametrize("bias", list(BIASES))
@pytest.mark.parametrize(
    "attributes", [{}, {"alpha": 0.5}, {"beta": 2.0}, {"alpha": -1.5, "beta": 0.25}, {"beta": 0.0}], ids=str
)
def test_load_folds_factors_and_biases_of_a_gemm(tmp_path: Path, attributes: dict[str, float], bias: str) -> None:
    nodes = [node("Flatten", "x", "f"), node("Gemm", "f w b", "y", **attributes)]
    model = load_and_compare(save(tmp_path / "m.onnx", nodes, constants={"w": FC, "b": BIASES[bias]}))
    gemm, constants = the_gemm(model), constants_of(model.graph)
    assert not {"alpha", "beta"} & {attribute.name for attribute in gemm.attribute}
    assert len(gemm.input) == 3
    assert all(list(constants[name].dims) == [5] for name in gemm.input[2:])


def test_load_keeps_a_shared_weight_when_one_gemm_scales_it(tmp_path: Path) -> None:
    square = RNG.normal(size=(192, 192)).astype(np.float32) / 14
    nodes = [
        *(node("Flatten", "x", "f"), node("Gemm", "f w", "g", alpha=3.0, transB=1), node("Relu", "g", "r")),
        node("Gemm", "r w b", "y"),
    ]
    load_and_compare(save(tmp_path / "m.onnx", nodes, constants={"w": square, "b": np.float32(1)}), atol=1e-4)


@pytest.mark.parametrize("attributes", [{"transA": 1}, {"transA": 1, "alpha": 2.0, "beta": 3.0}])
def test_load_keeps_a_transposed_input_of_a_gemm(tmp_path: Path, attributes: dict[str, Any]) -> None:
    nodes = [
        node("Flatten", "x", "f"),
        node("Transpose", "f", "t", perm=[1, 0]),
        node("Gemm", "t w b", "y", **attributes),
    ]
    model = load_and_compare(save(tmp_path / "m.onnx", nodes, constants={"w": FC, "b": ROW}))
    assert "Transpose" not in operators(model)


def test_load_keeps_factors_of_a_gemm_whose_weight_is_computed(tmp_path: Path) -> None:
    nodes = [
        *(node("Flatten", "x", "f"), node("Gemm", "f w", "q"), node("ReduceMax", "f", "m", keepdims=0)),
        *(node("Mul", "v m", "k"), node("Gemm", "q k b", "y", alpha=0.5, beta=3.0)),
    ]
    constants = {"w": FC, "v": RNG.normal(size=(5, 5)).astype(np.float32), "b": ROW}
    path = save(tmp_path / "m.onnx", nodes, constants=constants)
    model = classifier.load(path, CHW)
    np.testing.assert_allclose(
        classifier.run(model, IMAGES[:1]), RawFile(path, None).answers(IMAGES[:1]), rtol=1e-5, atol=1e-5
    )


FILLS = {"least": -3.4028235e38, "infinite": -np.inf, "least half": -65504.0, "large": -1e9}


def pool(fill: float, begin: int = 0, end: int = 1, **attributes: Any) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    pads = np.array([0, 0, begin, begin, 0, 0, end, end])
    attributes = {"kernel_shape": [3, 3], "strides": [2, 2], **attributes}
    nodes = flat(node("Conv", "x w", "c"), node("Pad", "c pads fill", "p"), node("MaxPool", "p", "a", **attributes))
    return nodes, {"w": WEIGHT, "pads": pads, "fill": np.float32(fill)}


ATTRIBUTES: list[dict[str, Any]] = [
    {},
    {"pads": [1, 0, 0, 1]},
    {"auto_pad": "VALID"},
    {"auto_pad": "SAME_UPPER"},
    {"auto_pad": "SAME_LOWER", "kernel_shape": [2, 4], "strides": [1, 3]},
    {"ceil_mode": 1},
    {"ceil_mode": 1, "strides": [3, 1], "pads": [1, 1, 0, 0]},
    {"ceil_mode": 1, "kernel_shape": [3, 4], "strides": [2, 2]},
    {"dilations": [2, 1], "strides": [1, 2]},
]


def test_load_gives_a_gemm_with_a_factor_a_bias_of_zeros_when_it_has_none(tmp_path: Path) -> None:
    nodes = [node("Flatten", "x", "f"), node("Gemm", "f w", "y", alpha=0.5)]
    model = load_and_compare(save(tmp_path / "m.onnx", nodes, constants={"w": FC}), atol=1e-4)
    gemm = model.graph.node[-1]
    np.testing.assert_array_equal(numpy_helper.to_array(constants_of(model.graph)[gemm.input[2]]), np.zeros(5))


def test_load_adds_the_computed_bias_of_a_gemm_behind_it(tmp_path: Path) -> None:
    """A residual as a Gemm: onnxruntime's quantizer printed a line of its own about its bias."""
    nodes = [node("Flatten", "x", "f"), node("Gemm", "f w v", "l"), node("Gemm", "l u l", "y", alpha=0.5, beta=2.0)]
    rng = np.random.default_rng(2)
    constants = {"w": FC, "u": rng.normal(size=(FC.shape[1],) * 2).astype(np.float32), "v": FC[0]}
    model = load_and_compare(save(tmp_path / "m.onnx", nodes, constants=constants), atol=1e-3)
    made = {name for each in model.graph.node for name in each.output}
    assert operators(model)[-1] == "Add"
    assert not [each for each in model.graph.node if each.op_type == "Gemm" and made.intersection(each.input[2:])]


@pytest.mark.parametrize("attributes", ATTRIBUTES, ids=str)
@pytest.mark.parametrize("fill", list(FILLS))
def test_load_folds_a_pad_of_no_value_into_its_max_pool(tmp_path: Path, fill: str, attributes: dict[str, Any]) -> None:
    nodes, constants = pool(FILLS[fill], **attributes)
    model = load_and_compare(save(tmp_path / "m.onnx", nodes, constants=constants))
    assert operators(model) == ["Conv", "MaxPool", "Flatten"]


@pytest.mark.parametrize("opset", [9, 11, 18])
def test_load_folds_a_pad_whatever_its_form(tmp_path: Path, opset: int) -> None:
    constants: dict[str, npt.NDArray[np.generic]] = {"w": WEIGHT}
    if opset == 9:
        pad = node("Pad", "c", "p", pads=[0, 0, 1, 0, 0, 0, 1, 2], value=-1e30)
    elif opset == 11:
        pad = node("Pad", "c pads fill", "p")
        constants |= {"pads": np.array([0, 0, 1, 0, 0, 0, 1, 2]), "fill": np.array([-1e30], np.float32)}
    else:
        pad = node("Pad", "c pads fill axes", "p")
        constants |= {"pads": np.array([0, 1, 2, 1]), "fill": np.float32(-1e30), "axes": np.array([3, -2])}
    nodes = flat(node("Conv", "x w", "c"), pad, node("MaxPool", "p", "a", kernel_shape=[3, 3]))
    assert "Pad" not in operators(load_and_compare(save(tmp_path / "m.onnx", nodes, opset, constants)))


def test_load_folds_a_pad_of_zero_after_a_relu(tmp_path: Path) -> None:
    nodes = flat(
        *(node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Pad", "r pads", "p")),
        node("MaxPool", "p", "a", kernel_shape=[3, 3], strides=[2, 2]),
    )
    constants = {"w": WEIGHT, "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    assert "Pad" not in operators(load_and_compare(save(tmp_path / "m.onnx", nodes, constants=constants)))


@pytest.mark.parametrize("fill", list(FILLS))
@pytest.mark.parametrize("bounds", [None, (-0.5, 2.0), (-0.5, None)], ids=["Relu", "Clip", "Clip from below"])
def test_load_puts_a_pad_of_no_value_behind_an_activation(
    tmp_path: Path, bounds: tuple[float, float | None] | None, fill: str
) -> None:
    kind, names = ("Relu", "p") if bounds is None else ("Clip", "p low" if bounds[1] is None else "p low high")
    nodes = flat(
        *(node("Conv", "x w", "c"), node("Pad", "c pads fill", "p"), node(kind, names, "r")),
        node("MaxPool", "r", "a", kernel_shape=[3, 3], strides=[2, 2]),
    )
    constants = {"w": WEIGHT, "pads": np.array([0, 0, 0, 0, 0, 0, 1, 1]), "fill": np.float32(FILLS[fill])}
    for name, value in zip(("low", "high"), bounds or (), strict=False):
        constants |= {} if value is None else {name: np.float32(value)}
    model = load_and_compare(save(tmp_path / "m.onnx", nodes, constants=constants))
    fills = [constants_of(model.graph)[each.input[2]] for each in model.graph.node if each.op_type == "Pad"]
    assert [float(numpy_helper.to_array(value).reshape(())) for value in fills] == ([] if bounds is None else [-0.5])


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("pads", [[0, 0, 1, 1], [1, 0, 1, 1], [0, 1, 1, 0]])
def test_load_writes_a_pool_that_leaves_out_its_last_window_alike_for_every_runtime(
    tmp_path: Path, kind: str, pads: list[int]
) -> None:
    """Of 6 rows with 1 after them, windows of 2 begin at 0, 2, 4, and not at 6."""
    pool = node(kind, "c", "a", kernel_shape=[2, 2], strides=[2, 2], pads=pads, ceil_mode=1)
    path = save(tmp_path / "m.onnx", flat(node("Conv", "x w", "c"), pool), constants={"w": WEIGHT})
    model = load_and_compare(path)
    onnx.save(model, tmp_path / "loaded.onnx")
    for runtime in Runtime:
        found = run_in(runtime, tmp_path / "loaded.onnx", IMAGES)
        np.testing.assert_allclose(found, RawFile(path, None).answers(IMAGES), atol=1e-4)


@pytest.mark.parametrize("fill", [0.0, -0.5, 1.0])
def test_load_keeps_a_pad_that_can_be_the_largest_of_a_window(tmp_path: Path, fill: float) -> None:
    nodes, constants = pool(fill)
    assert "Pad" in operators(load_and_compare(save(tmp_path / "m.onnx", nodes, constants=constants)))


def test_load_keeps_a_pad_that_a_max_pool_cannot_do(tmp_path: Path) -> None:
    nodes, constants = pool(-1e9, begin=3)
    assert "Pad" in operators(load_and_compare(save(tmp_path / "m.onnx", nodes, constants=constants)))


def test_load_keeps_a_pad_as_wide_as_the_kernel_of_a_max_pool_with_gaps(tmp_path: Path) -> None:
    """ONNX Runtime takes no such padding of a pool, though every window holds a value."""
    pool = node("MaxPool", "p", "a", kernel_shape=[2, 2], dilations=[2, 2])
    nodes = flat(node("Conv", "x w", "c"), node("Pad", "c wide low", "p"), pool)
    constants = {"w": WEIGHT, "wide": np.array([0, 0, 2, 2, 0, 0, 2, 2]), "low": np.float32(-1e9)}
    assert "Pad" in operators(load_and_compare(save(tmp_path / "m.onnx", nodes, constants=constants)))


def test_load_keeps_a_pad_of_edges_before_a_max_pool(tmp_path: Path) -> None:
    nodes, constants = pool(-np.inf)
    nodes[1].attribute.append(helper.make_attribute("mode", "edge"))
    load_and_compare(save(tmp_path / "m.onnx", nodes, constants=constants))


def test_load_keeps_a_pad_that_others_read_too(tmp_path: Path) -> None:
    nodes, constants = pool(-1e9)
    nodes[-1:] = [
        *(node("GlobalMaxPool", "p", "m"), node("GlobalMaxPool", "a", "n"), node("Add", "m n", "s")),
        node("Flatten", "s", "y"),
    ]
    load_and_compare(save(tmp_path / "m.onnx", nodes, constants=constants))


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_load_makes_parts_of_another_float_type_float32(tmp_path: Path, kind: type[np.floating[Any]]) -> None:
    number = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    nodes = [
        *(node("Flatten", "x", "f"), node("Cast", "f", "d", to=number), node("MatMul", "d w", "m")),
        *(node("Add", "m b", "s"), node("Cast", "s", "y", to=TensorProto.FLOAT)),
    ]
    path = save(tmp_path / "m.onnx", nodes, constants={"w": FC.astype(kind) / 8, "b": ROW.astype(kind)})
    model = load_and_compare(path, atol=2e-2 if kind is np.float16 else 1e-5)
    assert operators(model) == ["Flatten", "Gemm"]
    assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.FLOAT}


def test_load_makes_weights_of_half_precision_float32_exactly(tmp_path: Path) -> None:
    nodes = [node("Flatten", "x", "f"), node("Cast", "w", "w32", to=TensorProto.FLOAT), node("MatMul", "f w32", "y")]
    half = FC.astype(np.float16)
    path = save(tmp_path / "m.onnx", nodes, constants={"w": half})
    expected = IMAGES.reshape(3, -1) @ half.astype(np.float32)
    np.testing.assert_allclose(classifier.run(classifier.load(path, CHW), IMAGES), expected, atol=1e-4)


@pytest.mark.parametrize(("opset", "mode", "more"), [(17, {"training_mode": 1}, []), (8, {}, ["m1", "v1", "m2", "v2"])])
def test_load_refuses_a_norm_in_training_mode(
    tmp_path: Path, opset: int, mode: dict[str, Any], more: list[str]
) -> None:
    """Before opset 14 it is the outputs of the statistics that say so."""
    nodes = flat(helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["a", *more], "bn", **mode))
    ones = {name: np.ones(3, np.float32) for name in "sbmv"}
    path = save(tmp_path / "m.onnx", nodes, opset, constants=ones)
    with pytest.raises(DataError) as caught:
        classifier.load(path, CHW)
    assert str(caught.value) == (
        f"{path}: node 'bn' (BatchNormalization) is in training mode; export it after model.eval()"
    )


@pytest.mark.parametrize("kind", ["Bernoulli", "RandomNormalLike"])
def test_load_refuses_a_node_that_draws_random_numbers(tmp_path: Path, kind: str) -> None:
    nodes = flat(node("Sigmoid", "x", "s"), node(kind, "s", "r"), node("Mul", "x r", "a"))
    path = save(tmp_path / "m.onnx", nodes)
    with pytest.raises(DataError) as caught:
        classifier.load(path, CHW)
    assert str(caught.value) == (
        f"{path}: node '{kind}_r' ({kind}) draws random numbers; export it after model.eval(), or without it"
    )


@pytest.mark.parametrize("ratio", [None, 0.3, 0.0])
@pytest.mark.parametrize("mode", [True, False])
def test_load_refuses_a_dropout_that_drops(tmp_path: Path, mode: bool, ratio: float | None) -> None:
    drop = helper.make_node("Dropout", ["x", "" if ratio is None else "ratio", "mode"], ["a"], "drop")
    constants = {"mode": np.bool_(mode), **({} if ratio is None else {"ratio": np.float32(ratio)})}
    path = save(tmp_path / "m.onnx", flat(drop), 13, constants)
    if not mode or ratio == 0:
        load_and_compare(path)
        return
    with pytest.raises(DataError, match=r"node 'drop' \(Dropout\) is in training mode; export it after model.eval\(\)"):
        classifier.load(path, CHW)


OUTPUTS: dict[str, list[onnx.NodeProto]] = {
    "[N, C, 1, 1]": [node("GlobalAveragePool", "c", "y")],
    "[N, 1, C]": [node("GlobalAveragePool", "c", "g"), node("Reshape", "g rows", "y")],
    "[N, C, 1, 1] of a softmax": [node("GlobalAveragePool", "c", "g"), node("Softmax", "g", "y", axis=1)],
    "[N, C, 1]": [node("GlobalAveragePool", "c", "g"), node("Squeeze", "g last", "y")],
}


@pytest.mark.parametrize("shape", list(OUTPUTS))
def test_load_flattens_an_output_of_more_axes(tmp_path: Path, shape: str) -> None:
    constants = {"w": WEIGHT, "rows": np.array([0, 1, 4]), "last": np.array([3])}
    path = save(tmp_path / "m.onnx", [node("Conv", "x w", "c"), *OUTPUTS[shape]], constants=constants)
    model = load_and_compare(path)
    assert classifier.check_batch(model, IMAGES, path) == 4
    assert [dim.dim_param or dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim] == ["N", 4]


@pytest.mark.parametrize("last", ["Reshape", "Squeeze"])
def test_load_takes_an_output_without_the_axis_of_the_images(tmp_path: Path, last: str) -> None:
    nodes = [
        *(node("Conv", "x w", "c"), node("GlobalAveragePool", "c", "g"), node("Flatten", "g", "f")),
        node(last, "f to", "y"),
    ]
    constants = {"w": WEIGHT, "to": np.array([4] if last == "Reshape" else [0])}
    path = save(tmp_path / "m.onnx", nodes, constants=constants, dims=(1, *CHW), outputs={"y": (4,)})
    model = load_and_compare(path)
    assert classifier.check_batch(model, IMAGES, path) == 4


@pytest.mark.parametrize(("perm", "shape"), [([1, 0], (4, "N")), ([1, 0], (4, 1))])
def test_load_takes_an_output_with_the_images_last(
    tmp_path: Path, perm: list[int], shape: tuple[int | str, ...]
) -> None:
    """Of as many classes as images are computed in one batch, so that nothing is square by chance alone."""
    nodes = [
        *(node("Conv", "x w", "c"), node("GlobalAveragePool", "c", "g"), node("Flatten", "g", "f")),
        node("Transpose", "f", "y", perm=perm),
    ]
    path = save(tmp_path / "m.onnx", nodes, constants={"w": WEIGHT}, dims=(shape[1], *CHW), outputs={"y": shape})
    model = load_and_compare(path)
    four = np.concatenate([IMAGES, IMAGES[:1] * 2])
    np.testing.assert_allclose(RawFile(path, None).answers(four), classifier.run(model, four), atol=1e-5)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_load_frees_the_batch_of_an_output_with_the_images_second(tmp_path: Path) -> None:
    nodes = [
        *(node("Conv", "x w", "c"), node("GlobalAveragePool", "c", "g"), node("Flatten", "g", "f")),
        node("Unsqueeze", "f first", "y"),
    ]
    path = save(tmp_path / "m.onnx", nodes, constants={"w": WEIGHT, "first": np.array([0])}, outputs={"y": (1, "N", 4)})
    assert load_and_compare(path).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


ENDINGS: dict[str, list[onnx.NodeProto]] = {
    "logits": [node("Gemm", "f w", "y")],
    "softmax": [node("Gemm", "f w", "l"), node("Softmax", "l", "y", axis=1)],
    "log softmax": [node("Gemm", "f w", "l"), node("LogSoftmax", "l", "y", axis=-1)],
}


@pytest.mark.parametrize(("index", "kept"), [(0, slice(1, None)), (-1, slice(None, -1))])
@pytest.mark.parametrize("ending", list(ENDINGS))
def test_cut_class_gives_the_scores_of_the_others(tmp_path: Path, ending: str, index: int, kept: slice) -> None:
    path = save(tmp_path / "m.onnx", [node("Flatten", "x", "f"), *ENDINGS[ending]], constants={"w": FC / 8})
    model = classifier.load(path, CHW)
    classifier.cut_class(model, index, 5)
    onnx.checker.check_model(model)
    logits = (IMAGES.reshape(3, -1) @ (FC / 8))[:, kept]
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    expected = {"logits": logits, "softmax": probabilities, "log softmax": np.log(probabilities)}[ending]
    np.testing.assert_allclose(classifier.run(model, IMAGES), expected, atol=1e-5)
    assert classifier.check_batch(model, IMAGES, path) == 4


@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
def test_load_gives_a_matrix_product_a_bias_of_zeros_when_it_has_none(tmp_path: Path, kind: str) -> None:
    matrix = RNG.normal(size=(3 * 8 * 8, 5)).astype(np.float32)
    nodes = [node("Flatten", "x", "f"), node(kind, "f m", "y")]
    model = load_and_compare(save(tmp_path / "m.onnx", nodes, constants={"m": matrix}))
    last = model.graph.node[-1]
    assert (last.op_type, len(last.input)) == ("Gemm", 3)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == last.input[2])
    np.testing.assert_array_equal(numpy_helper.to_array(bias), np.zeros(5, np.float32))


SLICES: dict[str, tuple[list[int], list[int], list[int] | None, list[int] | None]] = {
    "channels to their number": ([0], [4], [1], [1]),
    "channels to the end": ([0], [2**63 - 1], [1], None),
    "several axes": ([0, -6], [9, 6], [1, -1], [1, 1]),
    "a batch of any size": ([0, 0], [2**63 - 1, 4], None, None),
}


@pytest.mark.parametrize("name", SLICES)
def test_load_drops_a_slice_that_takes_everything(tmp_path: Path, name: str) -> None:
    nodes, constants = sliced(*SLICES[name])
    model = load_and_compare(save(tmp_path / "m.onnx", nodes, constants=constants))
    assert operators(model) == ["Conv", "Flatten"]


PARTS: dict[str, tuple[list[int], list[int], list[int] | None, list[int] | None]] = {
    "the first channels": ([0], [3], [1], None),
    "the last channels": ([1], [4], [1], None),
    "all but the last column": ([0, 0], [4, -1], [1, 3], None),
    "every other row": ([0], [6], [2], [2]),
    "backwards": ([-1], [-(2**63) + 1], [1], [-1]),
}


@pytest.mark.parametrize("name", PARTS)
def test_load_keeps_a_slice_that_takes_a_part(tmp_path: Path, name: str) -> None:
    nodes, constants = sliced(*PARTS[name])
    assert "Slice" in operators(load_and_compare(save(tmp_path / "m.onnx", nodes, constants=constants)))


def sliced(
    starts: list[int], ends: list[int], axes: list[int] | None, steps: list[int] | None
) -> tuple[list[onnx.NodeProto], dict[str, npt.NDArray[np.generic]]]:
    """Return a convolution of 4 channels of 6 x 6 px and a Slice of it."""
    given = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
    constants = {name: np.array(values) for name, values in given.items() if values is not None}
    inputs = [name if name in constants else "" for name in given]
    while not inputs[-1]:
        inputs.pop()
    slice_node = helper.make_node("Slice", ["c", *inputs], ["a"], name="slice")
    return flat(node("Conv", "x w", "c"), slice_node), {"w": WEIGHT, **constants}


def test_load_takes_a_file_that_has_a_shape_of_the_name_that_onnxruntime_gives_to_fused_ones(tmp_path: Path) -> None:
    """As in a file that was optimized before: swin_tiny, exported for one image, is optimized twice here."""
    made = Builder()
    x = made.op("Reshape", "x", made.constant([1, 8, 54], np.int64))
    for inputs in (54, 32):  # products with a bias become Gemms between reshapes, which are fused with those after them
        x = made.op("Add", made.op("MatMul", x, made.constant(made.normal(inputs, 64))), made.constant(made.normal(64)))
        x = made.op("Relu", made.op("Reshape", x, made.constant([1, 8, 2, 32], np.int64)))
        x = made.op("ReduceMax", x, axes=[2], keepdims=0)
    model = made.model(made.gemm(made.op("Flatten", x), 256, 5))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    shape = next(node.input[1] for node in model.graph.node if node.op_type == "Reshape")
    for tensor in model.graph.initializer:
        tensor.name = "gemm_output_reshape_new_shape" if tensor.name == shape else tensor.name
    rename(model.graph, shape, "gemm_output_reshape_new_shape")
    onnx.save(model, tmp_path / "model.onnx")
    expected = np.concatenate([run_exact(model, image[None]) for image in images(4)])
    loaded = classifier.load(tmp_path / "model.onnx", (3, SIDE, SIDE))
    found = np.concatenate([classifier.run(loaded, image[None]) for image in images(4)])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
