"""onnx_classifier.py on models as vendors, exporters and hands make them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from pipeline.errors import DataError
from pipeline.onnx_models import classifier as onnx_classifier
from pipeline.quant import placement, qdq
from pipeline.quant.qmath import Range

Float32 = npt.NDArray[np.float32]
Dims = Sequence[int | str]

RNG = np.random.default_rng(11)
WEIGHT = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)
FC = RNG.normal(size=(4, 5)).astype(np.float32)
IMAGES = RNG.normal(size=(3, 3, 8, 8)).astype(np.float32)
CHW = (3, 8, 8)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def classifier(
    nodes: Sequence[onnx.NodeProto] | None = None,
    constants: dict[str, np.ndarray] | None = None,
    *,
    inputs: dict[str, Dims] | None = None,
    outputs: dict[str, Dims] | None = None,
    kind: int = TensorProto.FLOAT,
    opset: int = 17,
) -> onnx.ModelProto:
    """Return a small model without node names; by default convolution, ReLU, pooling, Flatten, Gemm."""
    if nodes is None:
        nodes = [
            *(node("Conv", "x w", "c"), node("Relu", "c", "r"), node("GlobalAveragePool", "r", "g")),
            *(node("Flatten", "g", "f"), node("Gemm", "f fw", "y")),
        ]
    graph = helper.make_graph(
        nodes,
        "made by hand",
        [helper.make_tensor_value_info(name, kind, dims) for name, dims in (inputs or {"x": (1, 3, 8, 8)}).items()],
        [helper.make_tensor_value_info(name, kind, dims) for name, dims in (outputs or {"y": (1, 5)}).items()],
        [numpy_helper.from_array(value, name) for name, value in {"w": WEIGHT, "fw": FC, **(constants or {})}.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def expected_logits(images: Float32 = IMAGES) -> Float32:
    """The default classifier, computed by torch."""
    features = torch.relu(nn.functional.conv2d(torch.from_numpy(images), torch.from_numpy(WEIGHT))).mean((2, 3))
    logits: Float32 = (features @ torch.from_numpy(FC)).numpy()
    return logits


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., onnx.ModelProto]:
    """Save a model, load it as the pipeline does, and check that its batch axis is free."""

    def save_and_load(model: onnx.ModelProto, images: Float32 = IMAGES) -> onnx.ModelProto:
        onnx.save(model, tmp_path / "m.onnx")
        loaded = onnx_classifier.load(tmp_path / "m.onnx", images.shape[1:])
        onnx.checker.check_model(loaded, full_check=True)
        onnx_classifier.check_batch(loaded, images, tmp_path / "m.onnx")
        return loaded

    return save_and_load


@pytest.fixture
def load_error(tmp_path: Path) -> Callable[..., str]:
    """Return what loading a model says, its path replaced by FILE."""

    def error_of(model: onnx.ModelProto | bytes, chw: tuple[int, int, int] = CHW) -> str:
        path = tmp_path / "m.onnx"
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        with pytest.raises(DataError) as caught:
            onnx_classifier.load(path, chw)
        return str(caught.value).replace(str(path), "FILE")

    return error_of


def dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def close(found: Float32, wanted: Float32) -> bool:
    return onnx_classifier.relative_error(wanted, found) < 1e-5


def count_layers(model: onnx.ModelProto) -> dict[str, int]:
    ranges = {name: Range(-1.0, 1.0) for name in placement.observed_tensors(model)}
    return qdq.count_quantized(qdq.insert_qdq(model, ranges, per_channel=True))


def test_load_frees_the_batch_axis_when_it_is_fixed_to_one(load: Callable[..., onnx.ModelProto]) -> None:
    model = load(classifier())
    assert dims(model.graph.input[0]) == ["N", 3, 8, 8]
    assert dims(model.graph.output[0])[0] == "N"
    assert close(onnx_classifier.run(model, IMAGES), expected_logits())


@pytest.mark.parametrize("shape", [[1, 4], [1, -1], [-1, 4], [0, -1]])
def test_load_frees_reshapes_when_they_hold_a_batch_of_one(
    load: Callable[..., onnx.ModelProto], shape: list[int]
) -> None:
    ending = [node("GlobalAveragePool", "r", "g"), node("Reshape", "g to", "f"), node("Gemm", "f fw", "y")]
    start = [node("Conv", "x w", "c"), node("Relu", "c", "r")]
    by_initializer = classifier([*start, *ending], {"to": np.array(shape)})
    constant = helper.make_node("Constant", [], ["to"], value=numpy_helper.from_array(np.array(shape)))
    by_constant = classifier([constant, *start, *ending])
    parts = {"one": np.array(shape[:1]), "rest": np.array(shape[1:])}
    computed = classifier([*start, node("Concat", "one rest", "to", axis=0), *ending], parts)
    for model in (by_initializer, by_constant, computed):
        assert close(onnx_classifier.run(load(model), IMAGES), expected_logits())


def test_load_keeps_reshapes_of_weights_as_they_are(load: Callable[..., onnx.ModelProto]) -> None:
    """A bias that is reshaped to [1, C, 1, 1], as paddle2onnx writes it: that 1 is no batch."""
    bias = np.array([1.0, -2.0, 3.0, 0.5], np.float32)
    model = load(
        classifier(
            [
                *(node("Conv", "x w", "c"), node("Reshape", "b to", "b4"), node("Add", "c b4", "a")),
                *(node("Relu", "a", "r"), node("GlobalAveragePool", "r", "g"), node("Flatten", "g", "f")),
                node("Gemm", "f fw", "y"),
            ],
            {"b": bias, "to": np.array([1, 4, 1, 1])},
        )
    )
    conv = nn.functional.conv2d(torch.from_numpy(IMAGES), torch.from_numpy(WEIGHT), torch.from_numpy(bias))
    expected = torch.relu(conv).mean((2, 3)).numpy() @ FC
    assert close(onnx_classifier.run(model, IMAGES), expected)


class Vendor(nn.Module):
    """A network that flattens by `view(x.size(0), -1)`, which an export with batch 1 makes a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 6 * 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn(self.conv(x)))
        logits: Tensor = self.fc(y.view(y.size(0), -1))
        return logits


@pytest.fixture(scope="module")
def vendor_network() -> nn.Module:
    torch.manual_seed(2)
    network = Vendor().eval()
    assert network.bn.running_mean is not None
    assert network.bn.running_var is not None
    nn.init.uniform_(network.bn.running_mean, -1, 1)
    nn.init.uniform_(network.bn.running_var, 0.5, 2)
    return network


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"opset_version": 9},
        {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE},
        {"keep_initializers_as_inputs": True},
        {
            "keep_initializers_as_inputs": True,
            "do_constant_folding": False,
            "training": torch.onnx.TrainingMode.PRESERVE,
        },
        {"dynamic_axes": {"input": {0: "batch", 2: "h", 3: "w"}, "output": {0: "batch"}}},
    ],
    ids=["opset 11", "opset 9", "unfolded", "weights as inputs", "unfolded weights as inputs", "free height and width"],
)
def test_load_gives_what_torch_gives_when_exported_as_the_vendor_does(
    vendor_network: nn.Module, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Opset 11 and a fixed batch of one; batch norms end up folded and every layer can be quantized."""
    path = tmp_path / "vendor.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            vendor_network,
            (torch.zeros(1, *CHW),),
            str(path),
            dynamo=False,
            **{"opset_version": 11, "input_names": ["input"], "output_names": ["output"], **options},
        )
    model = onnx_classifier.load(path, CHW)
    assert onnx_classifier.check_batch(model, IMAGES, path) == 5
    with torch.inference_mode():
        expected = vendor_network(torch.from_numpy(IMAGES)).numpy()
    assert close(onnx_classifier.run(model, IMAGES), expected)
    assert "BatchNormalization" not in [node.op_type for node in model.graph.node]
    assert [dims(value) for value in model.graph.input] == [["N", 3, 8, 8]]
    assert [opset.domain for opset in model.opset_import] == [""]
    assert model.opset_import[0].version == 17
    assert count_layers(model) == {"weighted": 2, "quantized": 2}


def test_load_names_every_node_when_names_are_missing(load: Callable[..., onnx.ModelProto]) -> None:
    source = classifier()
    source.graph.node[1].name = "Conv_0"  # the name that the convolution would get
    model = load(source)
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    assert count_layers(model) == {"weighted": 2, "quantized": 2}


def test_load_takes_a_model_that_only_declares_another_domain(load: Callable[..., onnx.ModelProto]) -> None:
    source = classifier(opset=13)
    source.opset_import.insert(0, helper.make_opsetid("com.microsoft", 1))
    model = load(source)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]


def test_load_keeps_the_models_own_opset_when_it_is_later(load: Callable[..., onnx.ModelProto]) -> None:
    assert [opset.version for opset in load(classifier(opset=18)).opset_import] == [18]


def test_load_reads_tensors_beside_the_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(classifier(), path, save_as_external_data=True, location="m.data", size_threshold=0)
    assert onnx_classifier.files(path) == [path, tmp_path / "m.data"]
    model = onnx_classifier.load(path, CHW)
    assert close(onnx_classifier.run(model, IMAGES), expected_logits())
    (tmp_path / "m.data").unlink()
    with pytest.raises(DataError) as caught:
        onnx_classifier.load(path, CHW)
    assert str(caught.value) == f"{path}: tensor w wants the file m.data beside the model, which is missing"


@pytest.mark.parametrize("location", ["../secret.data", "{folder}/secret.data"])
def test_load_refuses_tensors_outside_the_models_folder(tmp_path: Path, location: str) -> None:
    location = location.format(folder=tmp_path)
    (tmp_path / "model").mkdir()
    model = classifier()
    (tmp_path / "secret.data").write_bytes(model.graph.initializer[0].raw_data)
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], location)
    model.graph.initializer[0].ClearField("raw_data")
    path = tmp_path / "model" / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DataError) as caught:
        onnx_classifier.load(path, CHW)
    assert str(caught.value) == (
        f"{path}: tensor w lies outside the model's folder ({location}); not loaded; save it again with its tensors "
        "beside it, or in the file itself"
    )


def test_load_says_which_flag_when_the_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        onnx_classifier.load(tmp_path / "gone.onnx", CHW)
    assert str(caught.value) == (
        f"{tmp_path}/gone.onnx: no such model; give the file with --weights FILE or frontend.checkpoint"
    )
    assert onnx_classifier.files(tmp_path / "gone.onnx") == [tmp_path / "gone.onnx"]


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x00\xff" * 99])
def test_load_says_so_when_the_file_is_no_model(load_error: Callable[..., str], content: bytes) -> None:
    message = load_error(content)
    assert message.startswith("FILE: not a valid ONNX model (")
    assert message.endswith("); export it again")
    assert "\n" not in message


def test_load_says_so_when_the_file_is_cut_short(load_error: Callable[..., str]) -> None:
    whole = classifier().SerializeToString()
    assert load_error(whole[: len(whole) // 2]).startswith("FILE: not a valid ONNX model (")


def test_load_says_so_when_there_are_two_inputs(load_error: Callable[..., str]) -> None:
    nodes = [node("GlobalAveragePool", "x", "g"), node("Flatten", "g", "f"), node("Add", "f mask", "y")]
    assert load_error(classifier(nodes, inputs={"x": (1, 3, 8, 8), "mask": (1, 3)}, outputs={"y": (1, 3)})) == (
        "FILE: 2 inputs (x float [1, 3, 8, 8], mask float [1, 3]); wanted one, of images [N, 3, H, W]"
    )


@pytest.mark.parametrize("name", ["keras_learning_phase", "training"])
def test_load_switches_training_off_where_an_input_does(load: Callable[..., onnx.ModelProto], name: str) -> None:
    drop = helper.make_node("Dropout", ["f", "", name], ["d"], "drop")
    nodes = [node("GlobalAveragePool", "x", "g"), node("Flatten", "g", "f"), drop, node("Neg", "d", "y")]
    model = classifier(nodes, inputs={"x": (1, 3, 8, 8), name: ()}, outputs={"y": (1, 3)})
    model.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.BOOL
    found = onnx_classifier.run(load(model), IMAGES)
    np.testing.assert_allclose(found, -IMAGES.mean((2, 3)), rtol=1e-5, atol=1e-6)


def test_load_drops_an_input_that_nothing_reads(load: Callable[..., onnx.ModelProto]) -> None:
    model = load(classifier(inputs={"mask": (1, 4), "x": (1, 3, 8, 8)}))
    assert [value.name for value in model.graph.input] == ["x"]
    assert close(onnx_classifier.run(model, IMAGES), expected_logits())


def test_load_says_so_when_there_are_two_outputs(load_error: Callable[..., str]) -> None:
    assert load_error(classifier(outputs={"y": (1, 5), "f": (1, 4)})) == (
        "FILE: 2 outputs (y float [1, 5], f float [1, 4]); name the one with the scores of the classes, as in "
        "--set frontend.output=y of build"
    )


def test_load_shows_both_shapes_when_the_input_has_another(load_error: Callable[..., str]) -> None:
    ending = "; set frontend.shape and process_ops to the model's size"
    assert load_error(classifier(), (3, 16, 16)) == (
        f"FILE: input 'x' is float [1, 3, 8, 8]; the build file wants [N, 3, 16, 16]{ending} "
        "(--size 8 of build does it)"
    )
    assert load_error(classifier(inputs={"x": ("batch", 3, 8, 9)})) == (
        f"FILE: input 'x' is float [batch, 3, 8, 9]; the build file wants [N, 3, 8, 8]{ending}"
    )
    assert load_error(classifier([node("Identity", "x", "y")], inputs={"x": (1, 5)})) == (
        "FILE: input 'x' is float [1, 5]; wanted images, [N, 3, H, W]: nothing behind it tells in which order a row "
        "holds an image; export it with images as its input"
    )


def test_load_refuses_a_quantized_model(load_error: Callable[..., str], tiny_model: onnx.ModelProto) -> None:
    ranges = {name: Range(-1.0, 1.0) for name in placement.observed_tensors(tiny_model)}
    model = qdq.insert_qdq(tiny_model, ranges, per_channel=True)
    assert load_error(model, (3, 32, 32)) == "FILE: is quantized already; wanted the float32 model"


def test_load_refuses_a_dynamically_quantized_model(load_error: Callable[..., str]) -> None:
    nodes = [
        *(node("GlobalAveragePool", "x", "g"), node("Flatten", "g", "f")),
        helper.make_node("DynamicQuantizeLinear", ["f"], ["q", "s", "z"]),
        *(node("MatMulInteger", "q iw z", "i"), node("Cast", "i", "k", to=TensorProto.FLOAT), node("Mul", "k s", "y")),
    ]
    assert load_error(classifier(nodes, {"iw": np.ones((3, 5), np.int8)})) == (
        "FILE: is quantized already; wanted the float32 model"
    )


def test_load_refuses_operators_outside_the_standard(load_error: Callable[..., str]) -> None:
    model = classifier([node("Conv", "x w", "c"), node("FusedThing", "c fw", "y", domain="com.vendor")])
    model.opset_import.append(helper.make_opsetid("com.vendor", 1))
    assert load_error(model) == (
        "FILE: uses operators outside standard ONNX (com.vendor FusedThing); export it without them"
    )


def check_error(model: onnx.ModelProto, images: Float32 = IMAGES) -> str:
    with pytest.raises(DataError) as caught:
        onnx_classifier.check_batch(model, images, Path("m.onnx"))
    return str(caught.value)


def test_check_batch_says_so_when_the_batch_is_fixed() -> None:
    message = check_error(classifier(inputs={"x": (2, *CHW)}))
    assert message.startswith("m.onnx: model does not take a batch of 1: ")
    assert message.endswith("; export it with a free batch axis, or for one image")


@pytest.mark.parametrize(
    ("nodes", "shape", "found", "advice"),
    [
        ([node("Identity", "x", "y")], ("N", 3, 8, 8), [3, 3, 8, 8], "not networks that give a map"),
        ([node("ReduceMean", "x", "y", keepdims=0)], (), [], "ends in one score for each class"),
        ([node("ReduceMean", "x", "y", keepdims=0, axes=[1, 2, 3])], ("N",), [3], "a score for each class, such as"),
        ([node("GlobalAveragePool", "x", "g"), node("Flatten", "g", "y", axis=0)], (1, "C"), [1, 9], "ends in one"),
    ],
)
def test_check_batch_shows_the_shape_when_the_output_is_not_of_a_classifier(
    nodes: list[onnx.NodeProto], shape: Dims, found: list[int], advice: str
) -> None:
    model = classifier(nodes, inputs={"x": ("N", 3, 8, 8)}, outputs={"y": shape})
    error = check_error(model)
    assert error.startswith(f"m.onnx: output is {found} for 3 images; wanted [N, classes]: ")
    assert advice in error


def test_check_batch_says_so_when_answers_depend_on_the_batch() -> None:
    nodes = [
        *(node("ReduceMean", "x", "mean", axes=[0, 1, 2, 3]), node("Sub", "x mean", "d"), node("Conv", "d w", "c")),
        *(node("GlobalAveragePool", "c", "g"), node("Flatten", "g", "y")),
    ]
    model = classifier(nodes, inputs={"x": ("N", 3, 8, 8)}, outputs={"y": ("N", 4)})
    assert check_error(model) == (
        "m.onnx: images in a batch get other answers than alone; export it after model.eval(), or for one image (a "
        "batch of 1), which is kept"
    )


def test_run_checked_gives_all_answers_and_checks_the_first(load: Callable[..., onnx.ModelProto]) -> None:
    model, images = load(classifier()), np.concatenate([IMAGES, IMAGES + 1])
    answers, classes = onnx_classifier.run_checked(model, images, Path("m.onnx"))
    np.testing.assert_array_equal(answers, onnx_classifier.run_in_chunks(model, images))
    assert (len(answers), classes) == (6, 5)
    images[1, 0] = np.nan
    with pytest.raises(DataError, match="output holds NaN or Inf on real images"):
        onnx_classifier.run_checked(model, images, Path("m.onnx"))


def test_check_batch_says_so_when_the_output_is_not_finite(load: Callable[..., onnx.ModelProto]) -> None:
    images = IMAGES.copy()
    images[1, 0] = np.nan
    assert check_error(load(classifier()), images) == (
        "m.onnx: output holds NaN or Inf on real images; check the weights and the preprocessing"
    )


def test_append_softmax_ends_the_model_in_probabilities_once(tiny_model: onnx.ModelProto, batch_nchw: Float32) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(tiny_model)
    for _ in range(2):
        onnx_classifier.append_softmax(model)
        onnx.checker.check_model(model, full_check=True)
        assert [node.op_type for node in model.graph.node].count("Softmax") == 1
    assert model.graph.output[0].name == tiny_model.graph.output[0].name
    logits = onnx_classifier.run(tiny_model, batch_nchw)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        onnx_classifier.run(model, batch_nchw), shifted / shifted.sum(axis=1, keepdims=True), atol=1e-6
    )


def test_append_softmax_leaves_the_classifier_quantized(tiny_model: onnx.ModelProto) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(tiny_model)
    onnx_classifier.append_softmax(model)
    assert count_layers(model) == {"weighted": 7, "quantized": 7}
    assert placement.observed_tensors(model) == placement.observed_tensors(tiny_model)


@pytest.mark.parametrize(
    ("tail", "appended"),
    [
        ([node("Softmax", "logits", "s", axis=1), node("Flatten", "s", "y")], False),
        ([node("Softmax", "logits", "s", axis=-1), node("Identity", "s", "y")], False),
        ([node("Sigmoid", "logits", "y")], False),
        ([node("Hardmax", "logits", "y", axis=1)], False),
        ([node("LogSoftmax", "logits", "y", axis=1)], True),
        ([node("Relu", "logits", "y")], True),
    ],
)
def test_append_softmax_appends_none_when_the_outputs_are_no_logits(tail: list[onnx.NodeProto], appended: bool) -> None:
    nodes = [
        *(node("Conv", "x w", "c"), node("Relu", "c", "r"), node("GlobalAveragePool", "r", "g")),
        *(node("Flatten", "g", "f"), node("Gemm", "f fw", "logits"), *tail),
    ]
    model = classifier(nodes)
    before = onnx_classifier.run(model, IMAGES[:1])
    onnx_classifier.append_softmax(model)
    onnx.checker.check_model(model, full_check=True)
    raised = np.exp(before - before.max())
    expected = raised / raised.sum() if appended else before
    np.testing.assert_allclose(onnx_classifier.run(model, IMAGES[:1]), expected, rtol=1e-5)
