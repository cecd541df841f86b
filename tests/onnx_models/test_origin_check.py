"""The float32 model beside the file it was made of: right figures, and what another function leads to."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_fixtures import CHW, IMAGES, WEIGHT, Float32, flat, node, save

from pipeline.errors import DataError
from pipeline.onnx_models import classifier
from pipeline.onnx_models.origin_check import HALF, SINGLE, check_origin, compare
from pipeline.onnx_models.raw_file import RawFile

NODES = flat(
    node("Conv", "x w", "c"), node("LeakyRelu", "c", "l", alpha=0.1), node("MaxPool", "l", "a", kernel_shape=[2, 2])
)
CONSTANTS = {"w": WEIGHT}
EXPECTED = np.array([[1.0, 2.0, -4.0], [0.5, 0.25, 0.125]], np.float32)


def test_compare_gives_the_figures_of_two_answers() -> None:
    found = EXPECTED + np.array([[0, 0.02, 0], [0, 0, 0.4]], np.float32)
    given, is_another = compare("file", EXPECTED, found)
    signal, noise = 1 + 4 + 16 + 0.25 + 0.0625 + 0.015625, 0.02**2 + 0.4**2
    assert given.as_dict() == {
        "source": "file",
        "images": 2,
        "same_answers": 1,
        "sqnr_db": round(10 * math.log10(signal / noise), 1),
        "largest_difference": 0.4,
        "largest_output": 4.0,
        "verdict": "suspicious",
        "cause": None,
    }
    assert is_another


@pytest.mark.parametrize(
    ("share", "verdict", "is_another"),
    [(0, "good", False), (5e-6, "good", False), (5e-5, "suspicious", False), (0.1, "suspicious", True)],
)
def test_compare_judges_by_the_share_of_the_largest_output(share: float, verdict: str, is_another: bool) -> None:
    given, another = compare("torch", EXPECTED, EXPECTED + np.float32(4 * share))
    assert (given.verdict, another, given.source) == (verdict, is_another, "torch")
    assert (given.sqnr_db is None) == (share == 0)


def test_compare_allows_more_in_half_precision() -> None:
    given, _ = compare("file", EXPECTED, EXPECTED + np.float32(0.04), HALF)
    assert given.verdict == "good"


def test_compare_finds_another_function_in_nan() -> None:
    given, is_another = compare("file", EXPECTED, np.full_like(EXPECTED, np.nan))
    assert (given.verdict, is_another) == ("suspicious", True)


def edited(path: Path, edit: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    model = classifier.load(path, CHW)
    edit(model)
    return model


def set_alpha(value: float) -> Callable[[onnx.ModelProto], object]:
    def edit(model: onnx.ModelProto) -> None:
        next(each for each in model.graph.node if each.op_type == "LeakyRelu").attribute[0].f = value

    return edit


def test_check_given_is_good_when_the_meaning_was_kept(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", NODES, 9, CONSTANTS)
    given = check_origin(path, None, classifier.load(path, CHW), IMAGES)
    assert (given.source, given.images, given.same_answers, given.verdict, given.cause) == ("file", 3, 3, "good", None)
    assert given.sqnr_db is None or given.sqnr_db > 120


def test_check_given_refuses_another_function_and_names_the_operator(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", NODES, 9, CONSTANTS)
    with pytest.raises(DataError) as caught:
        check_origin(path, None, edited(path, set_alpha(0.5)), IMAGES)
    message = str(caught.value)
    assert message.startswith(f"{path}: the float32 model made of it differs from the file by ")
    assert "; the first operator that changed is LeakyRelu (node 'LeakyRelu_l', output 'l'); export it again" in message


def test_check_given_says_what_is_suspicious(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", NODES, 9, CONSTANTS)
    given = check_origin(path, None, edited(path, set_alpha(0.102)), IMAGES)
    assert given.verdict == "suspicious"
    assert given.cause is not None
    assert "the first operator that changed is LeakyRelu" in given.cause


def cancelling_nodes(rng: np.random.Generator) -> tuple[list[onnx.NodeProto], dict[str, Float32]]:
    """Return a network that takes the small difference of two large convolutions: it amplifies rounding."""
    large = rng.standard_normal((16, 3, 3, 3)).astype(np.float32)
    near = large + 1e-3 * rng.standard_normal(large.shape).astype(np.float32)
    nodes = flat(node("Conv", "x l", "b"), node("Conv", "x n", "d"), node("Sub", "b d", "a"))
    return nodes, {"l": large, "n": near}


def test_check_given_allows_a_network_that_amplifies_rounding_what_float32_does_to_it(tmp_path: Path) -> None:
    nodes, constants = cancelling_nodes(np.random.default_rng(0))
    path = save(tmp_path / "m.onnx", nodes, 13, constants)
    given = check_origin(path, None, classifier.load(path, CHW), IMAGES)
    assert given.largest_difference > SINGLE.good * given.largest_output
    assert (given.verdict, given.cause) == ("good", None)


def test_check_given_is_suspicious_of_a_network_that_amplifies_rounding_and_differs_more(tmp_path: Path) -> None:
    nodes, constants = cancelling_nodes(np.random.default_rng(0))
    path = save(tmp_path / "m.onnx", nodes, 13, constants)

    def scale(model: onnx.ModelProto) -> None:
        tensor = next(each for each in model.graph.initializer if each.name == "n")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1 + 5e-6), tensor.name))

    assert check_origin(path, None, edited(path, scale), IMAGES).verdict == "suspicious"


def test_check_given_finds_a_linear_upsampling_that_samples_elsewhere(tmp_path: Path) -> None:
    """What onnx's version converter makes of opset 9."""
    nodes = flat(node("Conv", "x w", "c"), node("Upsample", "c s", "a", mode="linear"))
    path = save(tmp_path / "m.onnx", nodes, 9, {**CONSTANTS, "s": np.array([1, 1, 2, 2], np.float32)})

    def resample(model: onnx.ModelProto) -> None:
        resize = next(each for each in model.graph.node if each.op_type == "Resize")
        mode = next(each for each in resize.attribute if each.name == "coordinate_transformation_mode")
        mode.s = b"half_pixel"

    with pytest.raises(
        DataError, match=r"the first operator that changed is Upsample \(node 'Upsample_a', output 'a'\)"
    ):
        check_origin(path, None, edited(path, resample), IMAGES)


def test_check_given_asks_the_reference_when_onnx_runtime_cannot(tmp_path: Path) -> None:
    ones = {name: np.full(3, value, np.float32) for name, value in {"s": 2, "b": 1, "m": 0.5, "v": 4}.items()}
    nodes = flat(helper.make_node("BatchNormalization", ["x", *ones], ["a"], "bn", is_test=1))
    path = save(tmp_path / "m.onnx", nodes, 6, ones)
    file = RawFile(path, None)
    assert (file.runner, file.most_images) == ("onnx's reference evaluator", 4)
    expected = ((IMAGES - 0.5) / np.sqrt(4 + 1e-5) * 2 + 1).reshape(3, -1)
    np.testing.assert_allclose(file.answers(IMAGES), expected, atol=1e-5)
    given = check_origin(path, None, classifier.load(path, CHW), IMAGES)
    assert (given.images, given.verdict) == (3, "good")


def test_check_given_says_so_when_nothing_runs_the_file(tmp_path: Path) -> None:
    nodes = flat(helper.make_node("Dropout", ["x"], ["a"], "d", is_test=1))
    path = save(tmp_path / "m.onnx", nodes, 6)
    given = check_origin(path, None, classifier.load(path, CHW), IMAGES)
    assert (given.images, given.sqnr_db, given.verdict) == (0, None, "suspicious")
    assert given.cause is not None
    assert given.cause.startswith("neither ONNX Runtime (")
    assert given.cause.endswith("the float32 model means the same; export the network again with opset 17")


def test_raw_file_runs_a_fixed_batch_whatever_the_number_of_images(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", NODES, 13, CONSTANTS, dims=(2, *CHW))
    free = save(tmp_path / "n.onnx", NODES, 13, CONSTANTS)
    np.testing.assert_allclose(RawFile(path, None).answers(IMAGES), RawFile(free, None).answers(IMAGES), atol=1e-6)


def test_check_given_is_suspicious_of_a_batch_that_no_memory_holds(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", "c"), *flat(node("GlobalAveragePool", "c", "a"))]
    path = save(tmp_path / "m.onnx", nodes, 17, {"w": WEIGHT}, dims=(1 << 40, *CHW))
    given = check_origin(path, None, classifier.load(path, CHW), IMAGES)
    assert given.verdict == "suspicious"
    assert "more than is tried (a batch of 1 will do)" in str(given.cause)


def test_raw_file_feeds_images_in_the_files_own_layout_and_type(tmp_path: Path) -> None:
    nodes = flat(node("Transpose", "x", "t", perm=[0, 3, 1, 2]), node("Conv", "t w", "a"))
    half: Float32 = WEIGHT.astype(np.float16).astype(np.float32)
    path = save(
        tmp_path / "m.onnx",
        nodes,
        13,
        {"w": WEIGHT.astype(np.float16)},
        dims=("N", 8, 8, 3),
        kind=TensorProto.FLOAT16,
        output_kind=TensorProto.FLOAT16,
    )
    plain = save(tmp_path / "n.onnx", flat(node("Conv", "x w", "a")), 13, {"w": half})
    file = RawFile(path, None)
    assert file.is_half
    np.testing.assert_allclose(file.answers(IMAGES), RawFile(plain, None).answers(IMAGES), atol=0.05)
    assert check_origin(path, None, classifier.load(path, CHW), IMAGES).verdict == "good"


def test_check_given_runs_images_one_by_one_when_a_free_batch_hides_a_fixed_one(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", "c"), node("Reshape", "c shape", "y")]
    path = save(tmp_path / "m.onnx", nodes, 17, {"w": WEIGHT, "shape": np.array([1, 4 * 6 * 6])})
    given = check_origin(path, None, classifier.load(path, CHW), IMAGES)
    assert (given.verdict, given.images, given.same_answers) == ("good", len(IMAGES), len(IMAGES))


def test_check_given_is_good_of_grey_pixels_as_integers(tmp_path: Path) -> None:
    """The luminance of most pixels is no whole number; the file takes no other."""
    nodes = flat(node("Cast", "x", "f", to=TensorProto.FLOAT), node("Conv", "f w", "a"))
    dims = ("N", 1, 8, 8)
    path = save(tmp_path / "m.onnx", nodes, 13, {"w": WEIGHT[:, :1]}, dims=dims, kind=TensorProto.UINT8)
    pixels = np.random.default_rng(4).integers(0, 256, IMAGES.shape).astype(np.float32)
    given = check_origin(path, None, classifier.load(path, CHW), pixels)
    assert (given.verdict, given.same_answers) == ("good", len(pixels))
