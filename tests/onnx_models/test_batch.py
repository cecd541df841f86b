"""A batch that an export fixed is freed, wherever it left its mark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx_fixtures import CHW, IMAGES, RNG, WEIGHT, flat, load_and_compare, node, save
from small_graphs import SIDE, Builder, images
from small_graphs import run_exact as run_alone

from pipeline.errors import DataError
from pipeline.onnx_models import classifier
from pipeline.onnx_models.run import takes_one_image
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import installed_runtimes, open_backend, place
from pipeline.runtimes.ort import run_exact

FC = RNG.normal(size=(4, 5)).astype(np.float32)


def pooled(shape: list[int], **attributes: Any) -> list[onnx.NodeProto]:
    return [
        *(node("Conv", "x w", "c"), node("Relu", "c", "r"), node("GlobalAveragePool", "r", "g")),
        *(node("Reshape", "g to", "f", **attributes), node("Gemm", "f fw", "y")),
    ]


@pytest.mark.parametrize("allowzero", [0, 1])
@pytest.mark.parametrize("batch", [1, 2, 8, "N"])
def test_load_frees_reshapes_of_any_batch(tmp_path: Path, batch: int | str, allowzero: int) -> None:
    first = batch if isinstance(batch, int) else -1
    for shape in ([first, 4], [first, -1] if first > 0 else [-1, 4]):
        constants = {"w": WEIGHT, "fw": FC, "to": np.array(shape)}
        path = save(tmp_path / "m.onnx", pooled(shape, allowzero=allowzero), 18, constants, dims=(batch, *CHW))
        load_and_compare(path)


def test_load_keeps_a_zero_that_means_zero(tmp_path: Path) -> None:
    """A tensor of no elements joined to another changes nothing; 0 with allowzero is its size."""
    nodes = [
        *(
            node("Flatten", "x", "f"),
            node("Slice", "f from to axis", "none"),
            node("Reshape", "none shape", "z", allowzero=1),
        ),
        node("Concat", "f z", "y", axis=1),
    ]
    constants = {
        "from": np.array([0]),
        "to": np.array([0]),
        "axis": np.array([1]),
        "shape": np.array([1, 0]),
    }
    path = save(tmp_path / "m.onnx", nodes, 18, constants, dims=(1, *CHW))
    load_and_compare(path)


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_load_frees_a_shuffle_of_channels(tmp_path: Path, batch: int) -> None:
    """ShuffleNet: [N, groups, channels / groups, H, W], transposed and put together again."""
    constants: dict[str, npt.NDArray[np.generic]] = {
        "w": WEIGHT,
        "apart": np.array([batch, 2, 2, 6, 6]),
        "together": np.array([batch, -1, 6, 6]),
    }
    nodes = flat(
        *(node("Conv", "x w", "c"), node("Reshape", "c apart", "p"), node("Transpose", "p", "t", perm=[0, 2, 1, 3, 4])),
        node("Reshape", "t together", "a"),
    )
    load_and_compare(save(tmp_path / "m.onnx", nodes, 18, constants, dims=(batch, *CHW)))


@pytest.mark.parametrize("batch", [1, 3])
def test_load_frees_windows_that_are_folded_into_the_batch(tmp_path: Path, batch: int) -> None:
    """Swin: windows of 4x4 of an 8x8 image become images, and images again."""
    constants: dict[str, npt.NDArray[np.generic]] = {
        "cut": np.array([batch, 3, 2, 4, 2, 4]),
        "windows": np.array([batch * 4, 3, 16]),
        "w": RNG.normal(size=(16, 16)).astype(np.float32),
        "back": np.array([batch, 2, 2, 3, 16]),
        "flat": np.array([batch, -1]),
    }
    nodes = [
        *(node("Reshape", "x cut", "p"), node("Transpose", "p", "t", perm=[0, 2, 4, 1, 3, 5])),
        *(node("Reshape", "t windows", "i"), node("MatMul", "i w", "m"), node("Softmax", "m", "s", axis=-1)),
        *(node("Reshape", "s back", "b"), node("Reshape", "b flat", "y")),
    ]
    load_and_compare(save(tmp_path / "m.onnx", nodes, 17, constants, dims=(batch, *CHW)))


@pytest.mark.parametrize("batch", [1, 2])
def test_load_frees_windows_of_reshapes_that_leave_their_last_axis_open(tmp_path: Path, batch: int) -> None:
    """Where an earlier Reshape still has the fixed batch, shape inference puts it into the axis that is left open."""
    constants: dict[str, npt.NDArray[np.generic]] = {
        "cut": np.array([batch, 3, 2, 4, 2, 4]),
        "rows": np.array([batch * 4, 48]),
        "w": RNG.normal(size=(48, 18)).astype(np.float32),
        "heads": np.array([batch * 4, 3, 2, -1]),
        "joined": np.array([batch * 4, 18]),
        "back": np.array([batch, 2, 2, 18]),
        "flat": np.array([batch, 72]),
    }
    nodes = [
        *(node("Reshape", "x cut", "p"), node("Transpose", "p", "t", perm=[0, 2, 4, 1, 3, 5])),
        *(node("Reshape", "t rows", "r"), node("MatMul", "r w", "m"), node("Reshape", "m heads", "h")),
        *(node("Transpose", "h", "ht", perm=[0, 2, 1, 3]), node("Reshape", "ht joined", "j")),
        *(node("Reshape", "j back", "b"), node("Reshape", "b flat", "y")),
    ]
    load_and_compare(save(tmp_path / "m.onnx", nodes, 17, constants, dims=(batch, *CHW)))


@pytest.mark.parametrize("batch", [1, 2])
def test_load_frees_a_gather_among_all_values(tmp_path: Path, batch: int) -> None:
    """What torch.export makes of as_strided: the values of each image lie behind those of the one before."""
    places = RNG.permutation(3 * 8 * 8)[:60].reshape(5, 4, 3)
    constants: dict[str, npt.NDArray[np.generic]] = {
        "all": np.array([-1]),
        "places": np.stack([places + image * 192 for image in range(batch)]),
    }
    nodes = flat(node("Reshape", "x all", "v"), node("Gather", "v places", "a", axis=0))
    load_and_compare(save(tmp_path / "m.onnx", nodes, 17, constants, dims=(batch, *CHW)))


def test_load_frees_patches_of_a_map_that_is_one_patch(tmp_path: Path) -> None:
    """MobileViT at its smallest: axes of size 1 that an optimizer would take for the batch's, of one image."""
    constants: dict[str, npt.NDArray[np.generic]] = {
        "w": RNG.normal(size=(6, 3, 4, 4)).astype(np.float32),
        "cut": np.array([6, 1, 2, 2]),
        "patches": np.array([1, 6, 1, 4]),
        "pixels": np.array([4, 1, 6]),
        "fc": RNG.normal(size=(6, 6)).astype(np.float32),
        "apart": np.array([1, 4, 1, 6]),
        "planes": np.array([6, 1, 2, 2]),
        "back": np.array([1, 6, 2, 2]),
        "v": RNG.normal(size=(5, 6, 1, 1)).astype(np.float32),
    }
    nodes = flat(
        *(node("Conv", "x w", "c", strides=[4, 4]), node("Reshape", "c cut", "p")),
        *(node("Transpose", "p", "pt", perm=[0, 2, 1, 3]), node("Reshape", "pt patches", "q")),
        *(
            node("Transpose", "q", "qt", perm=[0, 3, 2, 1]),
            node("Reshape", "qt pixels", "k"),
            node("MatMul", "k fc", "m"),
        ),
        *(
            node("Softmax", "m", "s", axis=-1),
            node("Reshape", "s apart", "z"),
            node("Transpose", "z", "zt", perm=[0, 3, 2, 1]),
        ),
        *(
            node("Reshape", "zt planes", "l"),
            node("Transpose", "l", "lt", perm=[0, 2, 1, 3]),
            node("Reshape", "lt back", "b"),
        ),
        node("Conv", "b v", "a"),
    )
    load_and_compare(save(tmp_path / "m.onnx", nodes, 17, constants, dims=(1, *CHW)))


def mixing() -> tuple[list[onnx.NodeProto], dict[str, npt.NDArray[np.generic]]]:
    """A softmax over all there is: of one image a function of that image, of two of both."""
    constants = {"all": np.array([1, 3 * 8 * 8]), "fc": RNG.normal(size=(192, 5)).astype(np.float32)}
    nodes = [
        *(node("Flatten", "x", "f", axis=0), node("Softmax", "f", "s", axis=1)),
        *(node("Reshape", "s all", "r"), node("MatMul", "r fc", "y")),
    ]
    return nodes, constants


def test_load_keeps_a_batch_of_one_that_cannot_be_freed(tmp_path: Path) -> None:
    nodes, constants = mixing()
    path = save(tmp_path / "m.onnx", nodes, 17, constants, dims=(1, *CHW))
    model = load_and_compare(path)
    assert takes_one_image(model)
    assert [dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim] == [1, 5]
    assert classifier.check_batch(model, IMAGES, path) == 5


def test_load_keeps_a_batch_of_one_when_the_file_calls_it_free(tmp_path: Path) -> None:
    """Exports with dynamic_axes whose inside has the batch of the example: they run on one image only."""
    nodes, constants = mixing()
    assert takes_one_image(load_and_compare(save(tmp_path / "m.onnx", nodes, 17, constants)))


def test_check_batch_refuses_a_larger_batch_that_cannot_be_freed(tmp_path: Path) -> None:
    constants = {"all": np.array([-1, 192]), "w": RNG.normal(size=(2, 192)).astype(np.float32)}
    nodes = [node("Reshape", "x all", "r"), node("Add", "r w", "y")]
    path = save(tmp_path / "m.onnx", nodes, 17, constants, dims=(2, *CHW))
    with pytest.raises(DataError, match="export it with a free batch axis, or for one image"):
        classifier.check_batch(classifier.load(path, CHW), IMAGES, path)


@pytest.mark.parametrize("runtime", installed_runtimes())
def test_backend_loops_over_a_model_of_one_image(tmp_path: Path, runtime: Runtime) -> None:
    nodes, constants = mixing()
    model = classifier.load(save(tmp_path / "m.onnx", nodes, 17, constants, dims=(1, *CHW)), CHW)
    onnx.save(model, tmp_path / "loaded.onnx")
    expected = np.concatenate([classifier.run(model, image[None]) for image in IMAGES])
    with open_backend(runtime, tmp_path / "loaded.onnx", batch=4, placement=place(1, 1)) as backend:
        assert (backend.input.shape[0], backend.output.shape[0]) == (None, None)
        np.testing.assert_allclose(backend.infer(IMAGES), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(run_exact(tmp_path / "loaded.onnx", [IMAGES], 1), expected, rtol=1e-4, atol=1e-6)


def attention(batch: int) -> tuple[list[onnx.NodeProto], dict[str, npt.NDArray[np.generic]]]:
    """torch's MultiheadAttention at a fixed batch: [positions, batch, features], heads folded into the batch."""
    constants: dict[str, npt.NDArray[np.generic]] = {
        "tokens": np.array([batch, 12, 16]),
        "q": RNG.normal(size=(12, 12)).astype(np.float32) / 4,
        "heads": np.array([17, batch * 3, 4]),
        "joined": np.array([17, batch, 12]),
        "token": np.repeat(RNG.normal(size=(1, 1, 12)).astype(np.float32), batch, axis=0),
        "place": RNG.normal(size=(1, 17, 12)).astype(np.float32),
        "half": np.float32(0.5),
        "fc": RNG.normal(size=(12, 5)).astype(np.float32),
        "first": np.array(0),
        "wide": RNG.normal(size=(12, 3, 2, 2)).astype(np.float32),
    }
    nodes = [
        *(node("Conv", "x wide", "c", strides=[2, 2]), node("Reshape", "c tokens", "k")),
        *(node("Transpose", "k", "n", perm=[0, 2, 1]), node("Concat", "token n", "j", axis=1)),
        *(node("Add", "j place", "e"), node("Transpose", "e", "l", perm=[1, 0, 2]), node("MatMul", "l q", "v")),
        *(node("Reshape", "v heads", "h"), node("Transpose", "h", "b", perm=[1, 0, 2])),
        *(node("Transpose", "b", "bt", perm=[0, 2, 1]), node("MatMul", "b bt", "qk"), node("Mul", "qk half", "scaled")),
        *(
            node("Softmax", "scaled", "s", axis=-1),
            node("MatMul", "s b", "o"),
            node("Transpose", "o", "ot", perm=[1, 0, 2]),
        ),
        *(node("Reshape", "ot joined", "z"), node("Transpose", "z", "zt", perm=[1, 0, 2])),
        *(node("Gather", "zt first", "cls", axis=1), node("Gemm", "cls fc", "y")),
    ]
    return nodes, constants


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_load_frees_a_transformer(tmp_path: Path, batch: int) -> None:
    nodes, constants = attention(batch)
    load_and_compare(save(tmp_path / "m.onnx", nodes, 17, constants, dims=(batch, *CHW)))


@pytest.mark.parametrize("batch", [1, 2])
def test_load_frees_an_expansion_to_the_batch(tmp_path: Path, batch: int) -> None:
    nodes = flat(node("GlobalAveragePool", "x", "g"), node("Expand", "g to", "e"), node("Sub", "x e", "a"))
    constants = {"to": np.array([batch, 3, 8, 8])}
    load_and_compare(save(tmp_path / "m.onnx", nodes, 17, constants, dims=(batch, *CHW)))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_load_frees_a_resize_to_a_size(tmp_path: Path, mode: str, batch: int) -> None:
    nodes = flat(onnx.helper.make_node("Resize", ["x", "", "", "to"], ["a"], "resize", mode=mode))
    load_and_compare(save(tmp_path / "m.onnx", nodes, 17, {"to": np.array([batch, 3, 11, 5])}, dims=(batch, *CHW)))


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_load_keeps_the_batch_axis_when_a_squeeze_names_no_axes(tmp_path: Path, opset: int) -> None:
    nodes = [node("Conv", "x w", "c"), node("GlobalMaxPool", "c", "p"), node("Squeeze", "p", "y")]
    model = classifier.load(save(tmp_path / "m.onnx", nodes, opset, {"w": WEIGHT}), CHW)
    expected = classifier.run(model, IMAGES)
    assert expected.shape == (len(IMAGES), len(WEIGHT))
    assert classifier.run(model, IMAGES[:1]).shape == (1, len(WEIGHT))
    np.testing.assert_allclose(classifier.run(model, IMAGES[:1]), expected[:1], rtol=1e-5, atol=1e-6)


def test_load_frees_tokens_whose_number_is_computed_from_the_shape_of_the_map(tmp_path: Path) -> None:
    """As torch writes `flatten(2)` of a vision transformer, for one image; a class token is joined to them."""
    made = Builder()
    x = made.op("Conv", "x", made.constant(made.normal(8, 3, 3, 3)), strides=[3, 3])
    kept = made.op("Slice", made.op("Shape", x), *(made.constant([value], np.int64) for value in (0, 2, 0)))
    shape = made.op("Concat", kept, made.constant([-1], np.int64), axis=0)
    tokens = made.op("Transpose", made.op("Reshape", x, shape), perm=[0, 2, 1])
    tokens = made.op("Concat", made.constant(made.normal(1, 1, 8)), tokens, axis=1)
    tokens = made.op("Relu", made.op("Add", tokens, made.constant(made.normal(1, 17, 8))))
    model = made.model(made.gemm(made.op("ReduceMean", tokens, axes=[1], keepdims=0), 8, 5))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "model.onnx")
    loaded = classifier.load(tmp_path / "model.onnx", (3, SIDE, SIDE))
    assert loaded.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    expected = np.concatenate([run_alone(model, image[None]) for image in images(5)])
    np.testing.assert_allclose(classifier.run(loaded, images(5)), expected, rtol=1e-5, atol=1e-5)


ROW = RNG.normal(size=(1, 4)).astype(np.float32)
BAKED: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "repeated constant": ([node("Add", "f k", "a")], {"k": np.repeat(ROW, 4, axis=0)}),
    "tiled constant": ([node("Tile", "k times", "t"), node("Mul", "t f", "a")], {"k": ROW, "times": np.array([4, 1])}),
    "bias of a Gemm": (
        [node("Gemm", "f s k", "a")],
        {"s": RNG.normal(size=(4, 4)).astype(np.float32), "k": np.repeat(ROW, 4, axis=0)},
    ),
    "matrix for each image": (
        [node("Unsqueeze", "f one", "u"), node("MatMul", "u s", "m"), node("Squeeze", "m one", "a")],
        {"one": np.array([1]), "s": np.repeat(RNG.normal(size=(1, 4, 4)).astype(np.float32), 4, axis=0)},
    ),
    "slice to the batch": (
        [node("Slice", "f from to axis", "a")],
        {"from": np.array([0]), "to": np.array([4]), "axis": np.array([0])},
    ),
    "squeeze of an axis before it": (
        [node("Unsqueeze", "f first", "u"), node("Squeeze", "u", "a")],
        {"first": np.array([0])},
    ),
}


def baked(tmp_path: Path, nodes: list[onnx.NodeProto], constants: dict[str, Any]) -> Path:
    """Save a network with a batch of 4, with some nodes from its features f [4, 4] to a."""
    ends = [*(node("Conv", "x w", "c"), node("GlobalAveragePool", "c", "g"), node("Flatten", "g", "f"))]
    constants = {"w": WEIGHT, "fw": FC, **constants}
    return save(tmp_path / "m.onnx", [*ends, *nodes, node("Gemm", "a fw", "y")], 17, constants, dims=(4, *CHW))


@pytest.mark.parametrize("kind", list(BAKED))
def test_load_frees_what_a_batch_has_left_its_size_in(tmp_path: Path, kind: str) -> None:
    model = load_and_compare(baked(tmp_path, *BAKED[kind]))
    many = RNG.normal(size=(9, *CHW)).astype(np.float32)
    alone = np.concatenate([classifier.run(model, image[None]) for image in many])
    np.testing.assert_allclose(classifier.run(model, many), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["other rows", "split", "some of the images"])
def test_load_refuses_a_batch_that_cannot_be_freed(tmp_path: Path, kind: str) -> None:
    nodes, constants = {
        "other rows": ([node("Add", "f k", "a")], {"k": RNG.normal(size=(4, 4)).astype(np.float32)}),
        "split": ([node("Split", "f", "p q", axis=0), node("Concat", "q p", "a", axis=0)], {}),
        "some of the images": (
            [node("Slice", "f from to axis", "h"), node("Concat", "h h", "a", axis=0)],
            {"from": np.array([1]), "to": np.array([3]), "axis": np.array([0])},
        ),
    }[kind]
    with pytest.raises(DataError, match="its batch of 4 cannot be freed; export it with a free batch axis"):
        classifier.load(baked(tmp_path, nodes, constants), CHW)


@pytest.mark.parametrize("batch", [1, 2])
def test_load_frees_a_shuffle_behind_a_cut_whose_place_is_computed(tmp_path: Path, batch: int) -> None:
    """As torch writes `chunk(2, 1)` of a tensor whose shape it lost: each is known when those before it are."""
    made = Builder()

    def number(value: int) -> str:
        return made.constant([value], np.int64)

    def swapped_halves(x: str) -> str:
        size = made.op("Gather", made.op("Shape", x), number(1), axis=0)
        half = made.op("Div", made.op("Add", size, number(1)), number(2))
        left = made.op("Slice", x, number(0), half, number(1))
        right = made.op("Slice", x, half, made.op("Mul", half, number(2)), number(1))
        return made.op("Concat", made.op("Relu", right), left, axis=1)

    def shuffled(x: str, channels: int) -> str:
        apart = made.constant([batch, 2, channels // 2, SIDE, SIDE], np.int64)
        x = made.op("Transpose", made.op("Reshape", x, apart), perm=[0, 2, 1, 3, 4])
        return made.op("Reshape", x, made.constant([batch, channels, SIDE, SIDE], np.int64))

    x = made.op("Conv", "x", made.constant(made.normal(8, 3, 1, 1)))
    x = shuffled(swapped_halves(shuffled(swapped_halves(swapped_halves(x)), 8)), 8)
    x = made.op("Flatten", made.op("GlobalAveragePool", x))
    model = made.model(made.gemm(x, 8, 5))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(model, tmp_path / "model.onnx")
    loaded = classifier.load(tmp_path / "model.onnx", (3, SIDE, SIDE))
    assert loaded.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert not {"Shape", "Div"} & {node.op_type for node in loaded.graph.node}
    expected = np.concatenate([run_alone(model, images(4)[start : start + batch]) for start in range(0, 4, batch)])
    np.testing.assert_allclose(classifier.run(loaded, images(4)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", ["N", 1, 2])
def test_load_averages_over_views_that_are_put_together_along_the_batch(tmp_path: Path, batch: int | str) -> None:
    """An image and its mirror image, as networks with test-time augmentation inside compute them."""
    nodes = [
        node("Slice", "x last first axis last", "mirrored"),
        node("Concat", "x mirrored", "both", axis=0),
        *(node("Conv", "both w", "c"), node("Relu", "c", "r"), node("GlobalAveragePool", "r", "g")),
        *(
            node("Flatten", "g", "f"),
            node("Reshape", "f views", "v"),
            node("ReduceMean", "v", "y", axes=[0], keepdims=0),
        ),
    ]
    constants: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {
        "w": WEIGHT,
        "views": np.array([2, -1, 4]),
        "axis": np.array([3]),
        "last": np.array([-1]),
        "first": np.array([-(2**31)]),
    }
    path = save(tmp_path / "m.onnx", nodes, constants=constants, dims=(batch, *CHW), outputs={"y": (batch, 4)})
    load_and_compare(path)
