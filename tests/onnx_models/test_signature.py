"""Inputs and outputs of ONNX classifiers: what is taken, and by which cause the rest is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_fixtures import CHW, IMAGES, RNG, WEIGHT, Dims, flat, load_and_compare, node, operators, save

from pipeline.errors import DataError
from pipeline.onnx_models import classifier, signature
from pipeline.onnx_models.raw_file import RawFile

CONV = flat(node("Conv", "x w", "c"), node("Relu", "c", "a"))
LAST = (8, 8, 3)


def error_of(path: Path, output: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        classifier.load(path, CHW, output)
    return str(caught.value).replace(str(path), "FILE")


@pytest.mark.parametrize(
    "dims",
    [
        (-1, 3, -1, -1),
        (-1, 3, 8, 8),
        ("N", "N", "N", "N"),
        ("batch", 3, "height", "width"),
        ("a", "b", "a", "b"),
        (-1, -1, -1, -1),
        (1, 3, 8, 8),
        ("", 3, 8, 8),
    ],
    ids=str,
)
def test_load_takes_free_axes_however_they_are_written(tmp_path: Path, dims: Dims) -> None:
    path = save(tmp_path / "m.onnx", CONV, constants={"w": WEIGHT}, dims=dims, outputs={"y": ("N", "N")})
    model = load_and_compare(path)
    shape = model.graph.input[0].type.tensor_type.shape
    assert [dim.dim_param or dim.dim_value for dim in shape.dim] == ["N", 3, 8, 8]
    assert model.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 4 * 36


def test_load_takes_an_input_of_unknown_rank(tmp_path: Path) -> None:
    def forget(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.ClearField("shape")

    load_and_compare(save(tmp_path / "m.onnx", CONV, constants={"w": WEIGHT}, edit=forget))


def test_load_refuses_axes_of_size_0(tmp_path: Path) -> None:
    assert error_of(save(tmp_path / "m.onnx", CONV, constants={"w": WEIGHT}, dims=(0, 3, 0, 0))) == (
        "FILE: input 'x' is float [0, 3, 0, 0]: an axis of size 0 holds no image, and ONNX Runtime takes none for it; "
        "export it with free axes (dynamic_axes or dynamic_shapes)"
    )


@pytest.mark.parametrize("dims", [("N", *LAST), (1, *LAST), (-1, -1, -1, 3), ("N", "h", "w", "c")], ids=str)
def test_load_takes_channels_last_when_a_transpose_reads_them(tmp_path: Path, dims: Dims) -> None:
    nodes = flat(node("Transpose", "x", "t", perm=[0, 3, 1, 2]), node("Conv", "t w", "c"), node("Relu", "c", "a"))
    model = load_and_compare(save(tmp_path / "m.onnx", nodes, constants={"w": WEIGHT}, dims=dims))
    assert operators(model) == ["Conv", "Relu", "Flatten"]
    assert model.graph.input[0].name == "x"


def test_load_takes_channels_last_when_other_operators_read_them(tmp_path: Path) -> None:
    """TensorFlow's networks scale their input before they transpose it."""
    nodes = flat(
        *(node("Sub", "x mean", "s"), node("Mul", "s factor", "m"), node("Transpose", "m", "t", perm=[0, 3, 1, 2])),
        *(node("Conv", "t w", "c"), node("Transpose", "c", "a", perm=[0, 2, 3, 1])),
    )
    constants = {
        "mean": RNG.normal(size=3).astype(np.float32),
        "factor": np.float32(0.5),
        "w": WEIGHT,
    }
    load_and_compare(save(tmp_path / "m.onnx", nodes, constants=constants, dims=("N", *LAST)))


def test_load_takes_channels_last_when_they_are_read_twice(tmp_path: Path) -> None:
    nodes = [
        *(
            node("Transpose", "x", "t", perm=[0, 3, 1, 2]),
            node("Conv", "t w", "c"),
            node("GlobalAveragePool", "c", "g"),
        ),
        *(node("ReduceMean", "x", "m", axes=[1, 2], keepdims=0), node("Flatten", "g", "f")),
        node("Concat", "f m", "y", axis=1),
    ]
    load_and_compare(save(tmp_path / "m.onnx", nodes, constants={"w": WEIGHT}, dims=("N", *LAST)))


def test_load_shows_channels_last_when_their_size_is_another(tmp_path: Path) -> None:
    nodes = flat(node("Transpose", "x", "t", perm=[0, 3, 1, 2]), node("Conv", "t w", "a"))
    assert error_of(save(tmp_path / "m.onnx", nodes, constants={"w": WEIGHT}, dims=("N", 16, 16, 3))) == (
        "FILE: input 'x' is float [N, 16, 16, 3], channels last; the build file wants [N, 3, 8, 8]; set frontend.shape "
        "and process_ops to the model's size (--size 16 of build does it)"
    )


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("dims", [("N", 1, 8, 8), ("N", "C", 8, 8), ("N", 8, 8, 1)], ids=str)
def test_load_gives_networks_of_grey_images_the_luminance(tmp_path: Path, dims: Dims, kind: int) -> None:
    grey = (IMAGES * np.array([0.299, 0.587, 0.114], np.float32)[:, None, None]).sum(axis=1, keepdims=True)
    alone = save(
        tmp_path / "alone.onnx",
        flat(node("Conv", "x w", "a")),
        constants={"w": np.repeat(WEIGHT[:, :1] / 3, 3, axis=1)},
    )
    expected = classifier.run(classifier.load(alone, CHW), np.repeat(grey, 3, axis=1))  # by a network of three planes
    last = dims[3] == 1
    start = [node("Transpose", "x", "t", perm=[0, 3, 1, 2])] if last else []
    nodes = flat(*start, node("Conv", "t w" if last else "x w", "a"))
    weight = np.asarray(WEIGHT[:, :1], onnx.helper.tensor_dtype_to_np_dtype(kind))
    path = save(tmp_path / "m.onnx", nodes, constants={"w": weight}, dims=dims, kind=kind, output_kind=kind)
    half = kind == TensorProto.FLOAT16
    model = load_and_compare(path, atol=2e-2 if half else 1e-5)
    np.testing.assert_allclose(classifier.run(model, IMAGES), expected, atol=2e-2 if half else 1e-5)
    assert "Conv" in operators(model)
    assert operators(model).count("Conv") == 1  # the luminance is in its weights


def test_load_gives_other_readers_of_grey_images_a_convolution(tmp_path: Path) -> None:
    nodes = flat(node("Sub", "x half", "s"), node("Conv", "s w", "a"))
    constants = {"w": WEIGHT[:, :1], "half": np.float32(0.5)}
    model = load_and_compare(save(tmp_path / "m.onnx", nodes, constants=constants, dims=("N", 1, 8, 8)))
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:] == [3, 8, 8]


def test_load_refuses_images_of_four_channels(tmp_path: Path) -> None:
    four = np.ones((4, 4, 3, 3), np.float32)
    message = error_of(save(tmp_path / "m.onnx", CONV, constants={"w": four}, dims=("N", 4, 8, 8)))
    assert message.endswith("images of 4 channels; only networks of 3 channels (RGB) or 1 (grey) are taken")


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16])
def test_load_takes_inputs_and_outputs_of_other_float_types(tmp_path: Path, kind: int) -> None:
    weight = np.asarray(WEIGHT, onnx.helper.tensor_dtype_to_np_dtype(kind))
    path = save(tmp_path / "m.onnx", CONV, constants={"w": weight}, kind=kind, output_kind=kind)
    model = classifier.load(path, CHW)
    exact = save(tmp_path / "exact.onnx", CONV, constants={"w": weight.astype(np.float32)})
    expected = classifier.run(classifier.load(exact, CHW), IMAGES)
    np.testing.assert_allclose(classifier.run(model, IMAGES), expected, atol=1e-5)
    values = (*model.graph.input, *model.graph.output)
    assert {value.type.tensor_type.elem_type for value in values} == {TensorProto.FLOAT}


@pytest.mark.parametrize(
    ("last", "kind"),
    [(False, TensorProto.UINT8), (True, TensorProto.UINT8), (False, TensorProto.INT64), (True, TensorProto.INT32)],
)
def test_load_takes_pixels_that_the_network_normalises(tmp_path: Path, last: bool, kind: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, *CHW)).astype(np.float32)
    start = [node("Cast", "x", "f", to=TensorProto.FLOAT), node("Div", "f scale", "d"), node("Sub", "d mean", "s")]
    nodes = [*start, node("Transpose", "s", "t", perm=[0, 3, 1, 2])] if last else start
    nodes = flat(*nodes, node("Conv", "t w" if last else "s w", "a"))
    constants = {"w": WEIGHT, "scale": np.float32(255), "mean": np.float32(0.45)}
    dims = ("N", 8, 8, 3) if last else ("N", *CHW)
    path = save(tmp_path / "m.onnx", nodes, constants=constants, dims=dims, kind=kind)
    model = classifier.load(path, CHW)
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    expected = RawFile(path, None).answers(pixels)
    np.testing.assert_allclose(classifier.run(model, pixels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["int8", "uint16", "bool"])
def test_numbers_that_are_no_pixels_are_refused(tmp_path: Path, kind: str) -> None:
    """Both by `load` and by what `init` describes."""
    nodes = flat(node("Cast", "x", "f", to=TensorProto.FLOAT), node("Conv", "f w", "a"))
    path = save(tmp_path / "m.onnx", nodes, constants={"w": WEIGHT}, kind=TensorProto.DataType.Value(kind.upper()))
    message = (
        f"FILE: input 'x' is {kind}: wanted images as float32, or pixels of 0 to 255 as uint8, int32 or int64; export "
        "it with an input of one of these"
    )
    assert error_of(path) == message
    with pytest.raises(DataError) as caught:
        signature.describe_input(onnx.load(path), path)
    assert str(caught.value) == message.replace("FILE", str(path))


def test_load_takes_the_output_that_is_named(tmp_path: Path) -> None:
    nodes = [*CONV, node("GlobalAveragePool", "a", "g"), node("Flatten", "g", "f"), node("ReduceMax", "a", "unused")]
    path = save(tmp_path / "m.onnx", nodes, constants={"w": WEIGHT}, outputs={"y": None, "f": ("N", 4)})
    for name, last in (("f", 4), ("y", 144)):
        model = load_and_compare(path, name)
        assert [value.name for value in model.graph.output] == [name]
        assert model.graph.output[0].type.tensor_type.shape.dim[1].dim_value == last
    assert operators(classifier.load(path, CHW, "f")) == ["Conv", "Relu", "GlobalAveragePool", "Flatten"]


def test_load_lists_the_outputs_when_none_has_the_name(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", CONV, constants={"w": WEIGHT}, outputs={"y": ("N", 144), "a": ("N", 4, 6, 6)})
    assert error_of(path, "logits") == (
        "FILE: frontend.output: no output 'logits'; the model has y float [N, 144], a float [N, 4, 6, 6]"
    )


def test_load_refuses_an_answer_instead_of_scores(tmp_path: Path) -> None:
    nodes = [*CONV[:-1], node("Flatten", "a", "f"), node("ArgMax", "f", "y", axis=1)]
    path = save(tmp_path / "m.onnx", nodes, constants={"w": WEIGHT}, output_kind=TensorProto.INT64)
    assert error_of(path) == (
        "FILE: output 'y' of ArgMax is int64; wanted the scores of the classes as float32: export the network without "
        "what follows them"
    )


@pytest.mark.parametrize(
    ("dims", "found"),
    [
        (("N", 3, 8, 9), (8, 9)),
        (("N", 3, -1, "w"), (None, None)),
        (("N", 8, 9, 3), (8, 9)),
        (("N", 8, 9, 4), (8, 9)),
    ],
)
def test_describe_input_gives_name_height_and_width(
    tmp_path: Path, dims: Dims, found: tuple[int | None, int | None]
) -> None:
    path = save(tmp_path / "m.onnx", CONV, 8, {"w": WEIGHT}, dims=dims)
    assert signature.describe_input(onnx.load(path), path) == ("x", found)


def test_describe_input_passes_over_unused_inputs_and_unknown_ranks(tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.input.insert(0, helper.make_tensor_value_info("labels", TensorProto.INT64, ["N"]))
        model.graph.input[1].type.tensor_type.ClearField("shape")

    path = save(tmp_path / "m.onnx", CONV, 8, {"w": WEIGHT}, edit=edit)
    assert signature.describe_input(onnx.load(path), path) == ("x", (None, None))


@pytest.mark.parametrize(
    ("dims", "why"),
    [
        (("N", 192), "input 'x' is float [N, 192]; wanted images, [N, 3, H, W]"),
        (("N", 3, 1, 8, 8), "input 'x' is float [N, 3, 1, 8, 8]; wanted images, [N, 3, H, W]"),
        (("N", 3, 0, 8), "an axis of size 0 holds no image"),
    ],
)
def test_describe_input_says_what_it_found(tmp_path: Path, dims: Dims, why: str) -> None:
    path = save(tmp_path / "m.onnx", CONV, 17, {"w": WEIGHT}, dims=dims)
    with pytest.raises(DataError, match=re.escape(why)):
        signature.describe_input(onnx.load(path), path)


@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.STRING])
def test_describe_input_says_so_when_the_graph_decodes_files(tmp_path: Path, kind: int) -> None:
    """As onnxruntime-extensions 0.15.2 adds preprocessing: the bytes of a JPEG in, or a path."""
    decode = node("DecodeImage", "x", "p", domain="com.microsoft.extensions", color_space="BGR")
    path = save(tmp_path / "m.onnx", [decode, node("Cast", "p", "y", to=TensorProto.FLOAT)], 18, dims=("num_bytes",))
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.elem_type = kind
    with pytest.raises(DataError, match=re.escape("it reads image files, which its graph decodes; give the network")):
        signature.describe_input(model, path)


@pytest.mark.parametrize("scale", [np.float32(0.02), np.array([0.01, 0.02, 0.03], np.float32)], ids=["one", "each"])
@pytest.mark.parametrize("zero", [None, 117])
def test_load_takes_pixels_that_the_network_dequantizes(
    tmp_path: Path, zero: int | None, scale: npt.NDArray[np.float32]
) -> None:
    nodes = flat(node("DequantizeLinear", "x s z" if zero else "x s", "d"), node("Conv", "d w", "a"))
    constants: dict[str, npt.NDArray[np.generic]] = {
        "s": np.asarray(scale),
        "z": np.full(scale.shape, zero or 0, np.uint8),
        "w": WEIGHT,
    }
    constants = constants if zero else {name: value for name, value in constants.items() if name != "z"}
    path = save(tmp_path / "m.onnx", nodes, constants=constants, kind=TensorProto.UINT8)
    pixels = np.random.default_rng(3).integers(0, 256, (2, *CHW)).astype(np.float32)
    expected = RawFile(path, None).answers(pixels)
    np.testing.assert_allclose(classifier.run(classifier.load(path, CHW), pixels), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["ArgMax", "ArgMin"])
def test_load_refuses_a_choice_among_the_scores_that_is_given_as_a_number(tmp_path: Path, kind: str) -> None:
    nodes = [node("Flatten", "x", "f"), node(kind, "f", "i", axis=1), node("Cast", "i", "y", to=TensorProto.FLOAT)]
    assert f"output 'y' is made by {kind}, which leaves no score of each class" in error_of(
        save(tmp_path / "m.onnx", nodes)
    )


def test_load_refuses_the_best_scores_alone(tmp_path: Path) -> None:
    nodes = [node("Flatten", "x", "f"), node("TopK", "f k", "y i", axis=1)]
    assert "output 'y' is made by TopK" in error_of(save(tmp_path / "m.onnx", nodes, constants={"k": np.array([5])}))


@pytest.mark.parametrize(
    ("outputs", "advised"),
    [
        ({"y": ("N", 5), "aux": ("N", 5)}, "y"),
        ({"aux": ("N", 5), "y": ("N", 5)}, "y"),
        ({"f": ("N", 9, 9), "y": None}, "y"),
    ],
)
def test_load_advises_an_output_of_scores_when_there_are_several(
    tmp_path: Path, outputs: dict[str, Dims | None], advised: str
) -> None:
    nodes = [node("Flatten", "x", "y"), *(node("Identity", "x", name) for name in outputs if name != "y")]
    assert f"--set frontend.output={advised} of build" in error_of(save(tmp_path / "m.onnx", nodes, outputs=outputs))


INTEGERS = {
    "less a mean": node("Sub", "x mean", "d"),
    "halved, rounded down": node("Div", "x two", "d"),
    "that wrap": node("Sub", "x hundred", "d"),
}


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.INT32])
def test_load_keeps_what_a_network_computes_with_pixels_as_integers(tmp_path: Path, kind: int, name: str) -> None:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    constants = {
        "w": WEIGHT,
        "mean": np.array([12, 11, 10], dtype)[:, None, None],
        "two": np.array(2, dtype),
        "hundred": np.array(100, dtype),
    }
    nodes = flat(INTEGERS[name], node("Cast", "d", "f", to=TensorProto.FLOAT), node("Conv", "f w", "a"))
    path = save(tmp_path / "m.onnx", nodes, constants=constants, kind=kind)
    pixels = np.random.default_rng(4).integers(0, 256, IMAGES.shape).astype(np.float32)
    found = classifier.run(classifier.load(path, CHW), pixels)
    np.testing.assert_allclose(found, RawFile(path, None).answers(pixels), rtol=1e-5, atol=1e-2)
