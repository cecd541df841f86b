"""pixels.py: the model that reads pixels computes what the normalised one did, in float and in int8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graphs import ranges_seen

from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import preprocess
from pipeline.onnx_models import classifier
from pipeline.quant import pixels, qdq
from pipeline.quant.bias_correction import Dequantized
from pipeline.quant.qmath import Range
from pipeline.runtimes.opening import installed_runtimes, open_backend, place

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]

WHOLE_MEAN = (124 / 255, 116 / 255, 104 / 255)  # pixels: the border is then exactly the mean
STD = (0.229, 0.224, 0.225)


def images(count: int = 6, side: int = 32) -> UInt8:
    """Return uint8 [count, 3, side, side]: a colour each and noise."""
    rng = np.random.default_rng(3)
    drawn = rng.integers(20, 235, (count, 3, 1, 1)) + rng.normal(0, 40, (count, 3, side, side))
    return drawn.clip(0, 255).astype(np.uint8)


def normalised(batch: UInt8, mean: tuple[float, ...] = WHOLE_MEAN) -> Float32:
    scaled = (batch / 255.0 - np.reshape(mean, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    return np.asarray(scaled, np.float32)


def reading_pixels(model: onnx.ModelProto, mean: tuple[float, ...] = WHOLE_MEAN) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    assert pixels.obstacle(copied, mean) is None
    pixels.fold_normalisation(copied, mean, STD)
    onnx.checker.check_model(copied)
    return copied


def one_convolution(with_bias: bool = True, channels: int = 3, **attributes: Any) -> onnx.ModelProto:
    """A convolution and a classifier on [N, channels, 8, 9]."""
    rng = np.random.default_rng(0)
    shapes = {"w": (4, channels // int(attributes.get("group", 1)), 3, 3), "b": (4,), "fc": (4, 5)}
    weights = [numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), key) for key, shape in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"][: 2 + with_bias], ["c"], "conv", **attributes),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "fc"], ["out"], "classifier"),
    ]
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", channels, 8, 9])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 5])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def ranges_of(model: onnx.ModelProto, batch: npt.NDArray[np.float32 | np.uint8]) -> dict[str, Range]:
    return {**ranges_seen(model, batch), pixels.PIXELS: Range(0.0, pixels.LIMIT)}


@pytest.fixture(scope="module")
def of_pixels(tiny_model: onnx.ModelProto) -> onnx.ModelProto:
    return reading_pixels(tiny_model)


@pytest.fixture(scope="module")
def int8(of_pixels: onnx.ModelProto) -> onnx.ModelProto:
    return qdq.insert_qdq(of_pixels, ranges_of(of_pixels, images()), per_channel=True)


def test_folded_model_gives_the_same_answers_from_pixels(
    tiny_model: onnx.ModelProto, of_pixels: onnx.ModelProto
) -> None:
    expected = classifier.run(tiny_model, normalised(images()))
    found = classifier.run(of_pixels, images().astype(np.float32))
    assert classifier.relative_error(expected, found) < 1e-5
    assert [value.name for value in of_pixels.graph.input] == [value.name for value in tiny_model.graph.input]
    read = {name for node in of_pixels.graph.node for name in node.input}
    assert all(tensor.name in read for tensor in of_pixels.graph.initializer)


@pytest.mark.parametrize("mean", [(0.485, 0.456, 0.406), (0.5, 0.5, 0.5), (-0.02, 0.5, 1.03)])
def test_folded_model_gives_the_same_answers_where_the_mean_is_no_whole_pixel(
    tiny_model: onnx.ModelProto, mean: tuple[float, ...]
) -> None:
    found = classifier.run(reading_pixels(tiny_model, mean), images().astype(np.float32))
    expected = classifier.run(tiny_model, normalised(images(), mean))
    assert classifier.relative_error(expected, found) < 1e-5


def test_border_of_the_folded_convolution_is_the_exact_mean() -> None:
    """Beside a padding by hand: the image in the middle of a larger one of the mean, which no uint8 holds."""
    mean, batch = (0.485, 0.456, 0.406), images(2, 9)[:, :, :8]
    padded = np.empty((2, 3, 12, 12), np.float64)
    padded[:] = 255.0 * np.reshape(mean, (3, 1, 1))
    padded[:, :, 1:9, 2:11] = batch
    model = one_convolution(pads=[1, 2, 3, 1])
    del model.graph.node[1:]
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("c", TensorProto.FLOAT, ["N", 4, None, None]))
    weights = {each.name: numpy_helper.to_array(each).astype(np.float64) for each in model.graph.initializer}
    windows = np.lib.stride_tricks.sliding_window_view(
        (padded / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(STD, (3, 1, 1)), (3, 3), (2, 3)
    )
    expected = np.einsum("nchwij,ocij->nohw", windows, weights["w"]) + weights["b"][:, None, None]
    found = classifier.run(reading_pixels(model, mean), batch.astype(np.float32))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_border_has_no_mark_where_the_mean_is_a_whole_pixel(tiny_model: onnx.ModelProto) -> None:
    def channels(model: onnx.ModelProto) -> int:
        reader = next(node for node in model.graph.node if pixels.PIXELS in node.input)
        return next(int(each.dims[1]) for each in model.graph.initializer if each.name == reader.input[1])

    assert channels(reading_pixels(tiny_model)) == 3
    assert channels(reading_pixels(tiny_model, (0.485, 0.456, 0.406))) == 4


def test_mark_costs_the_weights_of_the_image_no_step(tiny_model: onnx.ModelProto) -> None:
    model = reading_pixels(tiny_model, (0.485, 0.456, 0.406))
    reader = next(node for node in model.graph.node if pixels.PIXELS in node.input)
    weights = next(numpy_helper.to_array(each) for each in model.graph.initializer if each.name == reader.input[1])
    largest = np.abs(weights).max(axis=(2, 3))
    assert (largest[:, 3] <= largest[:, :3].max(axis=1) / 16 + 1e-9).all()


@pytest.mark.parametrize("attributes", [{}, {"pads": [0, 0, 0, 0]}, {"pads": [1, 0, 2, 3], "strides": [2, 1]}])
@pytest.mark.parametrize("with_bias", [True, False])
def test_folded_convolution_keeps_pads_strides_and_bias(attributes: dict[str, Any], with_bias: bool) -> None:
    model = one_convolution(with_bias, **attributes)
    batch = images(4, 9)[:, :, :8]
    expected = classifier.run(model, normalised(batch))
    found = classifier.run(reading_pixels(model), batch.astype(np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_fold_leaves_weights_alone_that_another_layer_reads() -> None:
    model = one_convolution()
    model.graph.node[0].output[0] = "c0"
    project = numpy_helper.from_array(np.random.default_rng(1).normal(size=(3, 4, 1, 1)).astype(np.float32), "project")
    model.graph.initializer.append(project)
    model.graph.node.insert(1, helper.make_node("Conv", ["c0", "project"], ["three"], "back_to_three"))
    model.graph.node.insert(2, helper.make_node("Conv", ["three", "w", "b"], ["c"], "again"))
    batch = images(3, 9)[:, :, :8]
    expected = classifier.run(model, normalised(batch))
    found = classifier.run(reading_pixels(model), batch.astype(np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def computed_weights() -> onnx.ModelProto:
    model = one_convolution()
    model.graph.node.insert(0, helper.make_node("Neg", ["w"], ["minus_w"], "neg"))
    model.graph.node[1].input[1] = "minus_w"
    return model


def read_twice() -> onnx.ModelProto:
    model = one_convolution()
    model.graph.node.insert(1, helper.make_node("Conv", ["image", "w"], ["unused"], "second"))
    return model


def read_by_a_norm() -> onnx.ModelProto:
    model = one_convolution()
    model.graph.node.insert(0, helper.make_node("Mul", ["image", "image"], ["squared"], "square"))
    model.graph.node[1].input[0] = "squared"
    return model


@pytest.mark.parametrize(
    ("make", "mean", "expected"),
    [
        (lambda: one_convolution(group=3, channels=12), WHOLE_MEAN, "grouped"),
        (lambda: one_convolution(auto_pad="SAME_UPPER"), WHOLE_MEAN, "padding depends on the input size"),
        (computed_weights, WHOLE_MEAN, "computed"),
        (read_twice, WHOLE_MEAN, "read by Conv, Conv"),
        (read_by_a_norm, WHOLE_MEAN, "read by Mul"),
        (lambda: one_convolution(pads=[1, 1, 1, 1]), (0.5, -1.1, 0.5), "far from any pixel"),
        (lambda: one_convolution(pads=[1, 1, 1, 1]), (0.5, 2.1, 0.5), "far from any pixel"),
    ],
)
def test_obstacle_says_why_a_model_cannot_take_pixels(
    make: Callable[[], onnx.ModelProto], mean: tuple[float, ...], expected: str
) -> None:
    found = pixels.obstacle(make(), mean)
    assert found is not None
    assert expected in found


def test_obstacle_is_none_for_any_mean_where_nothing_is_padded() -> None:
    assert pixels.obstacle(one_convolution(), (-3.0, 0.0, 9.0)) is None


def test_int8_model_takes_uint8_and_reads_it_without_a_quantizer(int8: onnx.ModelProto) -> None:
    (given,) = int8.graph.input
    assert given.type.tensor_type.elem_type == TensorProto.UINT8
    assert [axis.dim_value for axis in given.type.tensor_type.shape.dim][1:] == [3, 32, 32]
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8.graph.initializer}
    (reader,) = [node for node in int8.graph.node if pixels.PIXELS in node.input]
    assert reader.op_type == "DequantizeLinear"
    assert (float(stored[reader.input[1]]), int(stored[reader.input[2]])) == (1.0, 0)
    read = {name for node in int8.graph.node if node.op_type == "QuantizeLinear" for name in node.input}
    assert not {given.name, pixels.PIXELS} & read
    assert qdq.count_quantized(int8) == {"weighted": 7, "quantized": 7}


@pytest.mark.parametrize("mean", [WHOLE_MEAN, (0.485, 0.456, 0.406)])
def test_int8_model_answers_in_every_runtime_as_one_with_a_normalised_input_does(
    tiny_model: onnx.ModelProto, tmp_path: Path, mean: tuple[float, ...]
) -> None:
    """And as near to float32, in the nature of things: nearer by what the input's quantizer cost."""
    batch = images()
    expected = classifier.run(tiny_model, normalised(batch, mean))
    usual = qdq.insert_qdq(tiny_model, ranges_of(tiny_model, normalised(batch, mean)), per_channel=True)
    folded = reading_pixels(tiny_model, mean)
    int8 = qdq.insert_qdq(folded, ranges_of(folded, batch), per_channel=True)
    for name, model, fed in (("usual", usual, normalised(batch, mean)), ("pixels", int8, batch)):
        onnx.save(model, tmp_path / f"{name}.onnx")
        for runtime in installed_runtimes():
            with open_backend(runtime, tmp_path / f"{name}.onnx", batch=4, placement=place(1, 1)) as backend:
                assert backend.input.dtype == fed.dtype.name
                answers = np.concatenate([backend.infer(fed[:4]), backend.infer(fed[4:])])
            assert classifier.relative_error(expected, answers) < 0.06, (name, runtime)


@pytest.mark.parametrize("mean", [WHOLE_MEAN, (0.485, 0.456, 0.406)])
def test_onnxruntime_runs_every_convolution_of_it_in_int8(
    tiny_model: onnx.ModelProto, tmp_path: Path, mean: tuple[float, ...]
) -> None:
    import onnxruntime

    folded = reading_pixels(tiny_model, mean)
    int8 = qdq.insert_qdq(folded, ranges_of(folded, images()), per_channel=True)

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(int8.SerializeToString(), options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert operators.count("QLinearConv") == 6
    assert "Conv" not in operators


@pytest.mark.parametrize("how", ["layer", "activation"])
def test_first_layer_left_in_float_reads_the_pixels_through_a_cast(
    tiny_model: onnx.ModelProto, of_pixels: onnx.ModelProto, tmp_path: Path, how: str
) -> None:
    left: dict[str, Any] = (
        {"float_layers": ["/conv1/Conv"]} if how == "layer" else {"float_activations": [pixels.PIXELS]}
    )
    model = qdq.insert_qdq(of_pixels, ranges_of(of_pixels, images()), per_channel=True, **left)
    assert qdq.count_quantized(model) == {"weighted": 7, "quantized": 6}
    onnx.save(model, tmp_path / "model.onnx")
    expected = classifier.run(tiny_model, normalised(images()))
    for runtime in installed_runtimes():
        with open_backend(runtime, tmp_path / "model.onnx", batch=6, placement=place(1, 1)) as backend:
            assert classifier.relative_error(expected, backend.infer(images())) < 0.06


def test_bias_correction_takes_the_mean_pixel_through_the_rounded_weights(
    of_pixels: onnx.ModelProto, spec: PreprocessSpec
) -> None:
    """An image of the mean pixel alone then gives what the float convolution gives, weights rounded or not."""
    from pipeline.quant.bias_correction import correct_biases

    model = qdq.insert_qdq(of_pixels, ranges_of(of_pixels, images()), per_channel=True)
    mean = 255.0 * np.array(WHOLE_MEAN)

    def of_the_mean() -> npt.NDArray[np.float64]:
        weights, bias = Dequantized(model).constants_of("/conv1/Conv") or (None, None)
        assert weights is not None
        assert bias is not None
        return np.asarray(weights.sum(axis=(2, 3)) @ mean + bias, np.float64)

    original = {tensor.name: numpy_helper.to_array(tensor) for tensor in of_pixels.graph.initializer}
    conv = next(node for node in of_pixels.graph.node if node.name == "/conv1/Conv")
    wanted = original[conv.input[1]].sum(axis=(2, 3)) @ mean + original[conv.input[2]]
    before = np.abs(of_the_mean() - wanted).max()
    assert set(correct_biases(model, of_pixels, {pixels.PIXELS: mean})) == {"/conv1/Conv"}
    assert np.abs(of_the_mean() - wanted).max() < before / 10


def test_prepare_gives_the_pixels_that_apply_normalises(spec: PreprocessSpec) -> None:
    image = images(1, 50)[0]
    raw = preprocess.prepare(spec, image, raw=True)
    assert (raw.dtype, raw.shape, raw.flags.c_contiguous) == (np.dtype(np.uint8), (3, 32, 32), True)
    scaled = (raw / 255.0 - np.reshape(spec.mean, (3, 1, 1))) / np.reshape(spec.std, (3, 1, 1))
    np.testing.assert_allclose(preprocess.apply(spec, image), scaled, atol=1e-5)
    np.testing.assert_array_equal(preprocess.prepare(spec, image, raw=False), preprocess.apply(spec, image))
