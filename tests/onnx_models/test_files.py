"""ONNX files in every formal shape: old versions of the format, names left out, tensors beside them, functions."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_fixtures import CHW, IMAGES, RNG, WEIGHT, Constants, flat, load_and_compare, node, operators, save

from pipeline.errors import DataError
from pipeline.onnx_models import classifier, files

BIAS = RNG.normal(size=4).astype(np.float32)
NODES = flat(node("Conv", "x w b", "c"), node("Relu", "c", "a"))
CONSTANTS = {"w": WEIGHT, "b": BIAS}


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        classifier.load(path, CHW)
    return str(caught.value).replace(str(path), "FILE")


@pytest.mark.parametrize(("opset", "ir"), [(7, 3), (8, 3), (9, 4), (13, 7), (17, 8), (21, 10), (21, 14)])
def test_load_takes_initializers_that_are_inputs(tmp_path: Path, opset: int, ir: int) -> None:
    model = load_and_compare(save(tmp_path / "m.onnx", NODES, opset, CONSTANTS, ir=ir, inputs_too=True))
    assert [value.name for value in model.graph.input] == ["x"]
    assert 8 <= model.ir_version <= 10


def test_load_takes_initializers_that_are_no_inputs_in_a_file_of_version_3(tmp_path: Path) -> None:
    def forget(model: onnx.ModelProto) -> None:
        del model.graph.input[1:]

    path = save(tmp_path / "m.onnx", NODES, 8, CONSTANTS, ir=3, edit=forget)
    expected = save(tmp_path / "n.onnx", NODES, 8, CONSTANTS, ir=4)
    found, wanted = (classifier.run(classifier.load(each, CHW), IMAGES) for each in (path, expected))
    np.testing.assert_array_equal(found, wanted)


def test_load_takes_names_that_are_left_out(tmp_path: Path) -> None:
    nodes = flat(
        helper.make_node("Conv", ["x", "w", ""], ["c"], "conv"),
        helper.make_node("Clip", ["c", "", "high"], ["k"], "clip"),
        helper.make_node("Clip", ["k", "low", ""], ["l"], "clip_below"),
        helper.make_node("Clip", ["l", "", ""], ["m"], "clip_nothing"),
        helper.make_node("Pad", ["m", "pads", "", ""], ["p"], "pad"),
        helper.make_node("Resize", ["p", "", "scales", ""], ["a"], "resize"),
    )
    constants = {
        "w": WEIGHT,
        "high": np.float32(1),
        "low": np.float32(-1),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    model = load_and_compare(save(tmp_path / "m.onnx", nodes, 18, constants))
    assert all(each.input[-1] for each in model.graph.node)


def test_load_takes_a_gemm_without_bias_by_name(tmp_path: Path) -> None:
    nodes = [node("Flatten", "x", "f"), helper.make_node("Gemm", ["f", "w", ""], ["y"], "gemm", beta=3.0)]
    fc = RNG.normal(size=(192, 5)).astype(np.float32)
    model = load_and_compare(save(tmp_path / "m.onnx", nodes, 13, {"w": fc}))
    assert [len(each.input) for each in model.graph.node if each.op_type == "Gemm"] == [3]


@pytest.mark.parametrize("name", ["input:0", "x/y.1", "serving default", "Größe", "a\nb", "-"])
def test_load_takes_any_input_name(tmp_path: Path, name: str) -> None:
    nodes = flat(helper.make_node("Conv", [name, "w", "b"], ["c"], "conv"), node("Relu", "c", "a"))

    def rename(model: onnx.ModelProto) -> None:
        model.graph.input[0].name = name

    model = load_and_compare(save(tmp_path / "m.onnx", nodes, constants=CONSTANTS, edit=rename))
    assert model.graph.input[0].name == name


def test_load_takes_the_standard_domain_by_its_other_name(tmp_path: Path) -> None:
    def name_domain(model: onnx.ModelProto) -> None:
        model.opset_import[0].domain = "ai.onnx"
        for each in model.graph.node:
            each.domain = "ai.onnx"

    model = load_and_compare(save(tmp_path / "m.onnx", NODES, 13, CONSTANTS, edit=name_domain))
    assert [opset.domain for opset in model.opset_import] == [""]


@pytest.mark.parametrize("place", [0, 1])
def test_load_takes_domains_that_are_declared_and_not_used(tmp_path: Path, place: int) -> None:
    def declare(model: onnx.ModelProto) -> None:
        for domain in ("ai.onnx.ml", "ai.onnx.training", "com.microsoft"):
            model.opset_import.insert(place, helper.make_opsetid(domain, 1))

    load_and_compare(save(tmp_path / "m.onnx", NODES, 13, CONSTANTS, edit=declare))


def test_load_refuses_operators_of_another_domain_by_its_name(tmp_path: Path) -> None:
    def declare(model: onnx.ModelProto) -> None:
        model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))

    nodes = [node("Flatten", "x", "f"), node("Scaler", "f", "y", domain="ai.onnx.ml", scale=[2.0], offset=[0.0])]
    assert error_of(save(tmp_path / "m.onnx", nodes, edit=declare)) == (
        "FILE: uses operators outside standard ONNX (ai.onnx.ml Scaler); export it without them"
    )


def test_load_takes_functions_of_the_models_own(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 18)]

    def define(model: onnx.ModelProto) -> None:
        body = [node("Sigmoid", "v", "s"), node("Mul", "v s", "u")]
        model.functions.append(helper.make_function("own.functions", "swish", ["v"], ["u"], body, opsets))
        model.opset_import.append(helper.make_opsetid("own.functions", 1))

    nodes = flat(node("Conv", "x w b", "c"), node("swish", "c", "a", domain="own.functions"))
    model = load_and_compare(save(tmp_path / "m.onnx", nodes, 18, CONSTANTS, edit=define))
    assert operators(model) == ["Conv", "Sigmoid", "Mul", "Flatten"]


def test_load_takes_an_output_without_a_type(tmp_path: Path) -> None:
    def forget(model: onnx.ModelProto) -> None:
        model.graph.output[0].ClearField("type")

    load_and_compare(save(tmp_path / "m.onnx", NODES, constants=CONSTANTS, edit=forget))


def test_load_takes_constants_as_nodes(tmp_path: Path) -> None:
    held = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
        for name, value in CONSTANTS.items()
    ]
    low = helper.make_node("Constant", [], ["low"], value_float=-0.25)
    nodes = flat(*held, low, node("Conv", "x w b", "c"), node("Clip", "c low", "a"))
    assert "Constant" not in operators(load_and_compare(save(tmp_path / "m.onnx", nodes, 13)))


def in_cache(folder: Path) -> Path:
    """Return a model as Hugging Face's cache holds it: links into a folder of blobs."""
    blobs, snapshot = folder / "hub" / "blobs", folder / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    model = onnx.load(save(folder / "m.onnx", NODES, constants=CONSTANTS))
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    for name, blob in (("model.onnx", "1111"), ("model.onnx_data", "2222")):
        (folder / name).rename(blobs / blob)
        (snapshot / name).symlink_to(os.path.relpath(blobs / blob, snapshot))
    return snapshot / "model.onnx"


def test_load_follows_the_links_of_a_cache(tmp_path: Path) -> None:
    path = in_cache(tmp_path)
    model = classifier.load(path, CHW)
    expected = classifier.load(tmp_path / "m.onnx", CHW)
    np.testing.assert_array_equal(classifier.run(model, IMAGES), classifier.run(expected, IMAGES))
    assert classifier.files(path) == [path, path.parent / "model.onnx_data"]


def test_load_refuses_a_link_to_elsewhere_and_says_what_to_do(tmp_path: Path) -> None:
    path = in_cache(tmp_path)
    data = path.parent / "model.onnx_data"
    elsewhere = tmp_path / "elsewhere"
    data.resolve().rename(elsewhere)
    data.unlink()
    data.symlink_to(elsewhere)
    assert error_of(path) == (
        "FILE: tensor w lies outside the model's folder (model.onnx_data); not loaded: it is a link to "
        f"{elsewhere}; copy the folder with cp -rL"
    )


def test_load_says_so_when_the_file_beside_it_is_cut_short(tmp_path: Path) -> None:
    model = onnx.load(save(tmp_path / "m.onnx", NODES, constants=CONSTANTS))
    path = tmp_path / "n.onnx"
    onnx.save(model, path, save_as_external_data=True, location="n.data", size_threshold=0)
    content = (tmp_path / "n.data").read_bytes()
    (tmp_path / "n.data").write_bytes(content[:100])
    assert error_of(path) == "FILE: n.data ends within tensor w; copy or download it again"


def edit_places(path: Path, **entries: str | None) -> None:
    """Give the entries of every tensor beside a model other values; None: leave them out."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        said = {entry.key: entry.value for entry in tensor.external_data} | entries
        del tensor.external_data[:]
        for key, value in said.items():
            if value is not None:
                tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def test_load_takes_tensors_beside_it_whose_length_is_not_said(tmp_path: Path) -> None:
    """As onnxruntime does: the length is that of the shape, whatever follows in the file."""
    model = onnx.load(save(tmp_path / "m.onnx", NODES, constants=CONSTANTS))
    onnx.save(model, tmp_path / "n.onnx", save_as_external_data=True, location="n.data", size_threshold=0)
    edit_places(tmp_path / "n.onnx", length=None)
    plain = onnx.load(tmp_path / "m.onnx").graph.initializer
    for found, wanted in zip(files.read(tmp_path / "n.onnx").graph.initializer, plain, strict=True):
        assert (numpy_helper.to_array(found) == numpy_helper.to_array(wanted)).all()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "other.data"}, "tensor w wants the file other.data beside the model, which is missing"),
        ({"location": "../n.data"}, "tensor w lies outside the model's folder (../n.data); not loaded; save it again"),
        ({"offset": "1000000"}, "n.data ends within tensor w; copy or download it again"),
        ({"offset": "-4"}, "tensor w has no place in n.data (offset or length); export it again"),
        ({"length": "many"}, "tensor w has no place in n.data (offset or length); export it again"),
    ],
)
def test_check_and_load_find_the_same_faults_of_tensors_beside_it(
    tmp_path: Path, entries: dict[str, str], message: str
) -> None:
    model = onnx.load(save(tmp_path / "m.onnx", NODES, constants=CONSTANTS))
    path = tmp_path / "n.onnx"
    onnx.save(model, path, save_as_external_data=True, location="n.data", size_threshold=0)
    files.check(path)
    edit_places(path, **entries)
    for look in (files.check, files.read):
        with pytest.raises(DataError) as caught:
            look(path)
        assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize("which", ["the model", "its tensors"])
def test_load_names_a_git_lfs_pointer(tmp_path: Path, which: str) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
    model = onnx.load(save(tmp_path / "m.onnx", NODES, constants=CONSTANTS))
    path = tmp_path / "n.onnx"
    onnx.save(model, path, save_as_external_data=True, location="n.data", size_threshold=0)
    (path if which == "the model" else tmp_path / "n.data").write_text(pointer)
    what = "it" if which == "the model" else "n.data"
    assert error_of(path) == f"FILE: {what} is a Git LFS pointer, not the file itself; run git lfs pull"


def test_load_says_so_when_no_opset_is_declared(tmp_path: Path) -> None:
    def forget(model: onnx.ModelProto) -> None:
        del model.opset_import[:]

    message = error_of(save(tmp_path / "m.onnx", NODES, constants=CONSTANTS, edit=forget))
    assert message.startswith("FILE: not a valid ONNX model (")


def test_files_of_type_tensor_double_keep_their_place(tmp_path: Path) -> None:
    """A tensor beside the model that is of another float type is read as that type."""
    nodes = [
        *(node("Flatten", "x", "f"), node("Cast", "f", "d", to=TensorProto.DOUBLE), node("MatMul", "d w", "m")),
        node("Cast", "m", "y", to=TensorProto.FLOAT),
    ]
    model = onnx.load(save(tmp_path / "m.onnx", nodes, constants={"w": RNG.normal(size=(192, 4))}))
    onnx.save(model, tmp_path / "n.onnx", save_as_external_data=True, location="n.data", size_threshold=0)
    load_and_compare(tmp_path / "n.onnx")


def test_load_takes_sparse_initializers(tmp_path: Path) -> None:
    matrix = np.zeros((4 * 6 * 6, 5), np.float32)
    matrix[::7, 2], matrix[3, 4] = 0.5, -2
    nodes = [node("Conv", "x w b", "c"), node("Flatten", "c", "f"), node("MatMul", "f m", "y")]
    expected = load_and_compare(save(tmp_path / "dense.onnx", nodes, constants={**CONSTANTS, "m": matrix}))

    def to_sparse(model: onnx.ModelProto) -> None:
        dense = next(tensor for tensor in model.graph.initializer if tensor.name == "m")
        values = numpy_helper.from_array(matrix[matrix != 0], "m")
        places = numpy_helper.from_array(np.argwhere(matrix != 0), "m_places")
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, matrix.shape))
        model.graph.initializer.remove(dense)

    path = save(tmp_path / "m.onnx", nodes, constants={**CONSTANTS, "m": matrix}, edit=to_sparse)
    found = classifier.load(path, CHW)
    assert not found.graph.sparse_initializer
    np.testing.assert_array_equal(classifier.run(found, IMAGES), classifier.run(expected, IMAGES))


def test_load_takes_a_constant_node_of_a_sparse_tensor(tmp_path: Path) -> None:
    matrix = np.zeros((4 * 6 * 6, 5), np.float32)
    matrix[::7, 2], matrix[3, 4] = 0.5, -2
    values = numpy_helper.from_array(matrix[matrix != 0])
    sparse = helper.make_sparse_tensor(
        values, numpy_helper.from_array(np.flatnonzero(matrix).astype(np.int64)), matrix.shape
    )
    constant = helper.make_node("Constant", [], ["m"], "m", sparse_value=sparse)
    nodes = [constant, node("Conv", "x w b", "c"), node("Flatten", "c", "f"), node("MatMul", "f m", "y")]
    found = load_and_compare(save(tmp_path / "m.onnx", nodes, constants=CONSTANTS))
    assert [list(tensor.dims) for tensor in found.graph.initializer if len(tensor.dims) == 2] == [[144, 5]]


def test_load_takes_nodes_of_one_name(tmp_path: Path) -> None:
    def name_alike(model: onnx.ModelProto) -> None:
        for each in model.graph.node:
            each.name = "same"

    model = classifier.load(save(tmp_path / "m.onnx", NODES, constants=CONSTANTS, edit=name_alike), CHW)
    expected = classifier.load(save(tmp_path / "n.onnx", NODES, constants=CONSTANTS), CHW)
    np.testing.assert_array_equal(classifier.run(model, IMAGES), classifier.run(expected, IMAGES))


def test_load_takes_a_link_to_a_file_with_tensors_beside_it(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "m.onnx"
    real.mkdir()
    plain = save(tmp_path / "plain.onnx", NODES, constants=CONSTANTS)
    onnx.save(onnx.load(plain), real / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    link.symlink_to(real / "m.onnx")
    assert classifier.files(link) == [link, real.resolve() / "m.data"]
    expected = classifier.run(classifier.load(plain, CHW), IMAGES)
    np.testing.assert_array_equal(classifier.run(load_and_compare(link), IMAGES), expected)


@pytest.mark.parametrize("opset", [13, 18, 20])
def test_load_takes_functions_of_another_opset_whose_operators_are_the_same(tmp_path: Path, opset: int) -> None:
    def define(model: onnx.ModelProto) -> None:
        body = [node("Sigmoid", "v", "s"), node("Mul", "v s", "u")]
        opsets = [helper.make_opsetid("", opset)]
        model.functions.append(helper.make_function("own.functions", "swish", ["v"], ["u"], body, opsets))
        model.opset_import.append(helper.make_opsetid("own.functions", 1))

    nodes = flat(node("Conv", "x w b", "c"), node("swish", "c", "a", domain="own.functions"))
    load_and_compare(save(tmp_path / "m.onnx", nodes, 17, CONSTANTS, edit=define))


def test_load_refuses_functions_whose_operators_meant_something_else_then(tmp_path: Path) -> None:
    def define(model: onnx.ModelProto) -> None:
        body, opsets = [node("Softmax", "v", "u")], [helper.make_opsetid("", 11)]
        model.functions.append(helper.make_function("own.functions", "soft", ["v"], ["u"], body, opsets))
        model.opset_import.append(helper.make_opsetid("own.functions", 1))

    nodes = flat(node("Conv", "x w b", "c"), node("soft", "c", "a", domain="own.functions"))
    assert error_of(save(tmp_path / "m.onnx", nodes, 17, CONSTANTS, edit=define)) == (
        "FILE: uses operators outside standard ONNX (own.functions soft); export it without them"
    )


def test_load_sorts_nodes_that_read_what_later_ones_make(tmp_path: Path) -> None:
    def turn_round(model: onnx.ModelProto) -> None:
        nodes = [onnx.NodeProto.FromString(each.SerializeToString()) for each in model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(nodes[::-1])

    load_and_compare(save(tmp_path / "m.onnx", NODES, 13, CONSTANTS, edit=turn_round))


def test_load_takes_a_graph_without_a_name(tmp_path: Path) -> None:
    load_and_compare(save(tmp_path / "m.onnx", NODES, 13, CONSTANTS, edit=lambda model: model.graph.ClearField("name")))


def test_load_refuses_a_file_whose_opset_is_none(tmp_path: Path) -> None:
    def take_opset(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 0

    assert "it declares no opset of standard ONNX" in error_of(
        save(tmp_path / "m.onnx", NODES, 13, CONSTANTS, edit=take_opset)
    )


def test_load_says_quantized_of_a_file_with_quantized_operators_of_onnx_runtime(tmp_path: Path) -> None:
    def declare(model: onnx.ModelProto) -> None:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    nodes = flat(
        node("QuantizeLinear", "x s z", "q"),
        node("QLinearSigmoid", "q s z s z", "p", domain="com.microsoft"),
        node("DequantizeLinear", "p s z", "a"),
    )
    constants = {"s": np.float32(0.1), "z": np.uint8(128)}
    assert error_of(save(tmp_path / "m.onnx", nodes, 17, constants, edit=declare)) == (
        "FILE: is quantized already; wanted the float32 model"
    )


@pytest.mark.parametrize(
    "kind", ["MatMulNBits", "MatMulBnb4", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "GatherBlockQuantized"]
)
def test_load_says_quantized_of_a_file_with_quantized_weights_of_onnx_runtime(tmp_path: Path, kind: str) -> None:
    """As onnxruntime 1.32.0's MatMulNBitsQuantizer and its dynamic quantization write them; no operator quantizes."""

    def declare(model: onnx.ModelProto) -> None:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    nodes = flat(node(kind, "x p s", "a", domain="com.microsoft", K=6, N=6, bits=4, block_size=32))
    constants: Constants = {"p": np.zeros((6, 1, 16), np.uint8), "s": np.ones(6, np.float32)}
    assert error_of(save(tmp_path / "m.onnx", nodes, 17, constants, edit=declare)) == (
        "FILE: is quantized already; wanted the float32 model"
    )


def test_load_says_quantized_of_a_file_with_weights_in_8_bits_alone(tmp_path: Path) -> None:
    """As NNCF 3.4.0's compress_weights and other tools write them, to store the file: its weights were rounded."""
    nodes = flat(node("DequantizeLinear", "p s", "w", axis=0), node("Conv", "x w", "a"))
    constants: Constants = {"p": np.ones((4, 3, 3, 3), np.int8), "s": np.ones(4, np.float32)}
    assert error_of(save(tmp_path / "m.onnx", nodes, 17, constants)) == (
        "FILE: is quantized already; wanted the float32 model"
    )
