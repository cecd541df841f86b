"""Operators of classification networks mean after loading what they meant in their own opset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, defs, helper
from onnx_fixtures import CHW, IMAGES, RNG, WEIGHT, Float32, flat, load_and_compare, node, save

from pipeline.errors import DataError
from pipeline.onnx_models import classifier, upgrades
from pipeline.onnx_models.raw_file import RawFile

PER_CHANNEL = {name: RNG.uniform(0.5, 2, 3).astype(np.float32) for name in ("scale", "offset", "mean", "variance")}
PER_POSITION = {name: RNG.uniform(0.5, 2, (3, 8, 8)).astype(np.float32) for name in PER_CHANNEL}


Case = tuple[str, range, list[onnx.NodeProto], dict[str, npt.NDArray[np.generic]]]


def both(
    name: str, first: int, nodes: list[onnx.NodeProto], constants: dict[str, npt.NDArray[np.generic]], until: int = 22
) -> Case:
    return name, range(first, until), nodes, constants


INT = np.int64
TWICE = {"twice": np.array([2], np.float32)}  # behind what as an output would be refused: it leaves no scores
CASES: list[Case] = [
    both("softmax of axis 1", 7, flat(node("Softmax", "x", "a", axis=1)), {}),
    both("softmax without axis", 7, flat(node("Softmax", "x", "a")), {}),
    both("softmax of axis 2", 7, flat(node("Softmax", "x", "a", axis=2)), {}),
    both("softmax of axis 3", 7, flat(node("Softmax", "x", "a", axis=3)), {}),
    both("softmax of axis 0", 7, flat(node("Softmax", "x", "a", axis=3)), {}),
    both("softmax of a negative axis", 11, flat(node("Softmax", "x", "a", axis=-2)), {}),
    both(
        "softmax over [N, C, 1, 1]",
        7,
        flat(node("GlobalAveragePool", "x", "g"), node("Softmax", "g", "a", axis=1)),
        {},
    ),
    both("log softmax", 7, flat(node("LogSoftmax", "x", "a", axis=1)), {}),
    both("hardmax", 7, flat(node("Hardmax", "x", "a", axis=1)), {}),
    both("clip by attributes", 7, flat(node("Clip", "x", "a", min=-0.5, max=0.25)), {}, until=11),
    both("clip with max alone", 7, flat(node("Clip", "x", "a", max=0.25)), {}, until=11),
    both("clip with min alone", 7, flat(node("Clip", "x", "a", min=0.25)), {}, until=11),
    both("clip without bounds", 7, flat(node("Clip", "x", "a")), {}, until=11),
    both(
        "clip by inputs",
        11,
        flat(helper.make_node("Clip", ["x", "", "high"], ["a"], name="clip")),
        {"high": np.array(0.25, np.float32)},
    ),
    both("pad by attributes", 7, flat(node("Pad", "x", "a", pads=[0, 0, 1, 2, 0, 0, 0, 1], value=1.5)), {}, until=11),
    both("pad by reflection", 7, flat(node("Pad", "x", "a", pads=[0, 0, 1, 2, 0, 0, 0, 1], mode="reflect")), {}, 11),
    both("pad of edges", 7, flat(node("Pad", "x", "a", pads=[0, 0, 1, 2, 0, 0, 0, 1], mode="edge")), {}, until=11),
    both("slice by attributes", 7, flat(node("Slice", "x", "a", starts=[1, -4], ends=[3, 100], axes=[1, 3])), {}, 10),
    both("slice without axes", 7, flat(node("Slice", "x", "a", starts=[0, 1], ends=[9, 3])), {}, until=10),
    both(
        "slice by inputs",
        10,
        flat(node("Slice", "x from to axes steps", "a")),
        {"from": np.array([7], INT), "to": np.array([0], INT), "axes": np.array([2]), "steps": np.array([-2])},
    ),
    both(
        "top k by attribute",
        7,
        flat(node("TopK", "x", "t places", k=3, axis=2), node("Mul", "t twice", "a")),
        {**TWICE},
        until=10,
    ),
    both(
        "top k by input",
        10,
        flat(node("TopK", "x k", "t places", axis=2), node("Mul", "t twice", "a")),
        {"k": np.array([3]), **TWICE},
    ),
    both("dropout with ratio", 7, flat(node("Dropout", "x", "a", ratio=0.75)), {}, until=12),
    both("dropout with mask", 7, flat(node("Dropout", "x", "a mask", ratio=0.75)), {}, until=12),
    both("dropout", 12, flat(node("Dropout", "x", "a")), {}),
    both("norm", 7, flat(node("BatchNormalization", "x scale offset mean variance", "a")), {**PER_CHANNEL}),
    both(
        "norm before a convolution's end",
        7,
        flat(node("BatchNormalization", "x scale offset mean variance", "b", epsilon=0.1), node("Conv", "b w", "a")),
        {**PER_CHANNEL, "w": WEIGHT},
    ),
    both(
        "norm of positions",
        7,
        flat(node("BatchNormalization", "x scale offset mean variance", "a", spatial=0, epsilon=0.01)),
        {**PER_POSITION},
        until=9,
    ),
    both("sum of axes", 7, flat(node("ReduceSum", "x", "a", axes=[2], keepdims=0)), {}, until=13),
    both("sum of axes by input", 13, flat(node("ReduceSum", "x axes", "a")), {"axes": np.array([1, 3])}),
    both("mean of axes", 7, flat(node("ReduceMean", "x", "a", axes=[2, 3], keepdims=1)), {}, until=18),
    both("mean of axes by input", 18, flat(node("ReduceMean", "x axes", "a")), {"axes": np.array([2, 3])}),
    both("largest of axes", 7, flat(node("ReduceMax", "x", "a", axes=[3], keepdims=0)), {}, until=18),
    both(
        "squeeze and unsqueeze",
        7,
        flat(
            node("GlobalMaxPool", "x", "g"),
            node("Squeeze", "g", "s", axes=[2, 3]),
            node("Unsqueeze", "s", "a", axes=[1, 3]),
        ),
        {},
        until=13,
    ),
    both(
        "split by attribute",
        7,
        flat(node("Split", "x", "p q", axis=1, split=[2, 1]), node("Concat", "q p", "a", axis=1)),
        {},
        until=13,
    ),
    both("split evenly", 7, flat(node("Split", "x", "p q", axis=2), node("Sub", "p q", "a")), {}, until=18),
    both(
        "average pool over its padding",
        7,
        flat(node("AveragePool", "x", "a", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)),
        {},
    ),
    both(
        "average pool without its padding",
        7,
        flat(node("AveragePool", "x", "a", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")),
        {},
    ),
    both(
        "average pool rounded up",
        10,
        flat(node("AveragePool", "x", "a", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)),
        {},
    ),
    both("max pool", 7, flat(node("MaxPool", "x", "a", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 0])), {}),
    both("lp pool", 7, flat(node("LpPool", "x", "a", kernel_shape=[2, 2], p=2)), {}),
    both("lrn", 7, flat(node("LRN", "x", "a", size=3, alpha=0.5, beta=0.7, bias=1.5)), {}),
    both("cast there and back", 7, flat(node("Cast", "x", "i", to=6), node("Cast", "i", "a", to=1)), {}),
    both(
        "gemm with factors",
        7,
        [node("Flatten", "x", "f"), node("Gemm", "f fw b", "y", alpha=0.5, beta=2.0, transB=1)],
        {"fw": RNG.normal(size=(5, 192)).astype(np.float32), "b": RNG.normal(size=5).astype(np.float32)},
    ),
    both("prelu", 7, flat(node("PRelu", "x slope", "a")), {"slope": np.full((3, 1, 1), 0.3, np.float32)}),
    both(
        "depth to space",
        7,
        flat(node("Concat", "x x x x", "c", axis=1), node("DepthToSpace", "c", "a", blocksize=2)),
        {},
    ),
    both("shape and reshape", 7, flat(node("Shape", "x", "s"), node("Reshape", "x s", "a")), {}),
    both("transposed convolution", 7, flat(node("ConvTranspose", "x w", "a", strides=[2, 2])), {"w": WEIGHT[:3]}),
    both("instance norm", 7, flat(node("InstanceNormalization", "x scale offset", "a")), {**PER_CHANNEL}),
    both(
        "argmax by a cast",
        7,
        flat(node("ArgMax", "x", "i", axis=1), node("Cast", "i", "f", to=1), node("Mul", "f twice", "a")),
        {**TWICE},
    ),
]
SCALES = {"up": [1, 1, 2, 2], "by a half": [1, 1, 1.5, 1.5], "down": [1, 1, 0.5, 0.5], "both": [1, 1, 1.5, 0.5]}
for mode in ("nearest", "linear"):
    for what, factors in SCALES.items():
        scales = np.array(factors, np.float32)
        if what in ("up", "by a half"):
            old = flat(node("Upsample", "x", "a", mode=mode, scales=scales.tolist()))
            CASES.append(both(f"upsample 7 {mode} {what}", 7, old, {}, until=9))
            CASES.append(
                both(f"upsample 9 {mode} {what}", 9, flat(node("Upsample", "x s", "a", mode=mode)), {"s": scales}, 10)
            )
        CASES.append(
            both(f"resize 10 {mode} {what}", 10, flat(node("Resize", "x s", "a", mode=mode)), {"s": scales}, 11)
        )
        now = helper.make_node("Resize", ["x", "", "s"], ["a"], name="resize", mode=mode)
        CASES.append(both(f"resize {mode} {what}", 13, flat(now), {"s": scales}))
    sizes = helper.make_node("Resize", ["x", "", "", "to"], ["a"], name="resize", mode=mode)
    CASES.append(both(f"resize {mode} to a size", 13, flat(sizes), {"to": np.array([1, 3, 5, 11], INT)}))

RUNS = [
    pytest.param(opset, nodes, constants, id=f"{name}, opset {opset}")
    for name, opsets, nodes, constants in CASES
    for opset in opsets
    if opset in (*range(7, 15), 16, 17, 18, 21)  # the others changed none of these
]


@pytest.mark.parametrize(("opset", "nodes", "constants"), RUNS)
def test_load_keeps_what_an_operator_means_when_its_opset_changes(
    tmp_path: Path, opset: int, nodes: list[onnx.NodeProto], constants: dict[str, npt.NDArray[np.generic]]
) -> None:
    path = save(tmp_path / "m.onnx", nodes, opset, constants)
    model = load_and_compare(path)
    assert model.opset_import[0].version == max(17, min(opset, 21))


def sampled(image_chw: Float32, scale: float) -> Float32:
    """Resize by linear interpolation at x / scale, the last pixel repeated: what opsets 7 to 10 mean."""

    def along(values: Float32, axis: int) -> Float32:
        size = values.shape[axis]
        places = np.minimum(np.arange(int(size * scale)) / np.float32(scale), size - 1)
        low = np.floor(places).astype(int)
        share = (places - low).reshape([-1 if index == axis else 1 for index in range(values.ndim)])
        high = np.minimum(low + 1, size - 1)
        mixed: Float32 = np.take(values, low, axis) * (1 - share) + np.take(values, high, axis) * share
        return mixed.astype(np.float32)

    return along(along(image_chw, 1), 2)


@pytest.mark.parametrize("scale", [2.0, 1.5, 3.0])
@pytest.mark.parametrize("opset", [7, 9, 10])
def test_load_samples_linear_upsampling_at_x_over_scale(tmp_path: Path, opset: int, scale: float) -> None:
    scales = np.array([1, 1, scale, scale], np.float32)
    kind = "Resize" if opset == 10 else "Upsample"
    by_attribute = {"scales": scales.tolist()} if opset == 7 else {}
    upsampled = node(kind, "x" if opset == 7 else "x s", "a", mode="linear", **by_attribute)
    path = save(tmp_path / "m.onnx", flat(upsampled), opset, {} if opset == 7 else {"s": scales})
    expected = np.stack([sampled(image, scale).reshape(-1) for image in IMAGES])
    np.testing.assert_allclose(classifier.run(classifier.load(path, CHW), IMAGES), expected, atol=1e-5)


def test_every_operator_whose_form_changed_is_rewritten() -> None:
    """An attribute or input that opset 17 no longer has under its name, and is not known to be compatible."""
    # Never in a classifier, or refused: training, recurrence over sequences in Scan of opset 8.
    compatible = {"Scan", "Constant", "Gemm", "NegativeLogLikelihoodLoss"}
    histories: dict[str, list[defs.OpSchema]] = {}
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.since_version <= classifier.OPSET:
            histories.setdefault(schema.name, []).append(schema)
    for name, schemas in histories.items():
        ordered = sorted(schemas, key=lambda schema: schema.since_version)
        old = [schema for schema in ordered if schema.since_version <= 7][-1:]
        known = old + [schema for schema in ordered if schema.since_version > 7]
        newest = known[-1]
        changed = any(
            set(schema.attributes) - set(newest.attributes) or schema.max_input > newest.max_input
            for schema in known[:-1]
        )
        assert not (changed or newest.deprecated) or name in upgrades.REWRITTEN | compatible, name


@pytest.mark.parametrize("opset", [22, 24, 27, 28])
def test_load_lowers_an_opset_beyond_what_runtimes_have(tmp_path: Path, opset: int) -> None:
    nodes = [
        *(node("Conv", "x w", "c"), node("Relu", "c", "r"), node("GlobalAveragePool", "r", "g")),
        *(node("Cast", "g", "h", to=TensorProto.FLOAT), node("Flatten", "h", "y")),
    ]
    path = save(tmp_path / "m.onnx", nodes, opset, {"w": WEIGHT}, ir=14)
    model = classifier.load(path, CHW)
    assert (model.opset_import[0].version, model.ir_version) == (21, 10)
    np.testing.assert_allclose(classifier.run(model, IMAGES), RawFile(path, None).answers(IMAGES), atol=1e-6)


def test_load_keeps_an_opset_that_an_operator_needs(tmp_path: Path) -> None:
    nodes = [node("RMSNormalization", "x s", "a"), node("Flatten", "a", "y")]
    path = save(tmp_path / "m.onnx", nodes, 24, {"s": np.ones(8, np.float32)}, ir=10)
    assert classifier.load(path, CHW).opset_import[0].version == 23


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        classifier.check(path)
    return str(caught.value).replace(str(path), "FILE")


def test_check_names_what_no_runtime_has(tmp_path: Path) -> None:
    ordered = node("SpaceToDepth", "x", "a", blocksize=2, mode="CRD")
    path = save(tmp_path / "m.onnx", [ordered, node("Flatten", "a", "y")], 28, ir=13)
    assert refusal(path) == (
        "FILE: is of opset 28, and SpaceToDepth (node 'SpaceToDepth_a') with mode is in no opset up to 27, the latest "
        "whose operators ONNX Runtime has; export it with opset 21"
    )


def test_check_refuses_an_opset_that_is_not_known(tmp_path: Path) -> None:
    latest = defs.onnx_opset_version()
    path = save(tmp_path / "m.onnx", [node("Flatten", "x", "y")], latest + 1, ir=10)
    assert refusal(path) == (
        f"FILE: is of opset {latest + 1}, the latest known here is {latest}; export it with opset 21"
    )


def test_load_takes_a_file_version_later_than_known(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [node("Flatten", "x", "y")], 17, ir=onnx.IR_VERSION + 1)
    np.testing.assert_array_equal(classifier.run(classifier.load(path, CHW), IMAGES), IMAGES.reshape(len(IMAGES), -1))


@pytest.mark.parametrize("opset", [1, 3, 6])
def test_load_takes_what_opsets_before_7_broadcast_from_an_axis(tmp_path: Path, opset: int) -> None:
    bias = np.arange(4, dtype=np.float32)
    old = flat(node("Conv", "x w", "c"), node("Add", "c b", "a", broadcast=1, axis=1))
    now = flat(node("Conv", "x w", "c"), node("Add", "c b", "a"))
    path = save(tmp_path / "old.onnx", old, opset, {"w": WEIGHT, "b": bias})
    same = save(tmp_path / "now.onnx", now, 13, {"w": WEIGHT, "b": bias[:, None, None]})
    found = classifier.run(classifier.load(path, CHW), IMAGES)
    np.testing.assert_allclose(found, RawFile(same, None).answers(IMAGES), atol=1e-5)
