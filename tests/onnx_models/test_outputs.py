"""outputs.py and label_outputs.py: the scores among what a file gives, and labels that are taken off them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_fixtures import CHW, IMAGES, RNG, Float32, node, save

from pipeline.errors import DataError
from pipeline.onnx_models import classifier, files, outputs
from pipeline.onnx_models.origin_check import check_origin
from pipeline.onnx_models.raw_file import RawFile

CLASSES = ("wasp", "ant", "bee")  # not in the order of the alphabet, in which a ZipMap's result comes
WEIGHTS: dict[str, Float32] = {
    "w": RNG.normal(size=(4, 3, 3, 3)).astype(np.float32),
    "fc": RNG.normal(size=(4, 3)).astype(np.float32),
}
SCORES = [
    node("Conv", "x w", "c"),
    node("GlobalAveragePool", "c", "g"),
    node("Flatten", "g", "f"),
    node("MatMul", "f fc", "l"),
    node("Softmax", "l", "s", axis=1),
]


def zipped(path: Path, *, labels: bool) -> Path:
    """Write a classifier as converters of scikit-learn do: scores under their labels, and the likeliest label."""

    def edit(model: onnx.ModelProto) -> None:
        model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
        row = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
        del model.graph.output[:]
        if labels:
            model.graph.output.append(helper.make_tensor_value_info("label", TensorProto.STRING, ["N"]))
        model.graph.output.append(helper.make_value_info("probabilities", helper.make_sequence_type_proto(row)))

    zip_map = node("ZipMap", "s", "probabilities", domain="ai.onnx.ml", classlabels_strings=CLASSES)
    encoder = node("LabelEncoder", "best", "label", domain="ai.onnx.ml", keys_int64s=[0, 1], values_strings=["a", "b"])
    named = [node("ArgMax", "s", "best", axis=1, keepdims=0), encoder] if labels else []
    return save(path, [*SCORES, zip_map, *named], constants=WEIGHTS, edit=edit)


@pytest.mark.parametrize("labels", [True, False])
def test_load_takes_the_scores_that_a_zip_map_puts_under_labels(tmp_path: Path, labels: bool) -> None:
    path = zipped(tmp_path / "m.onnx", labels=labels)
    model = classifier.load(path, CHW)
    plain = save(tmp_path / "plain.onnx", SCORES, constants=WEIGHTS, outputs={"s": ("N", 3)})
    expected = RawFile(plain, None).answers(IMAGES)
    np.testing.assert_allclose(classifier.run(model, IMAGES), expected, rtol=1e-5)
    np.testing.assert_allclose(RawFile(path, None).answers(IMAGES), expected, rtol=1e-5)
    assert check_origin(path, None, model, IMAGES).verdict == "good"
    assert not [opset for opset in model.opset_import if opset.domain]


def test_load_refuses_an_output_that_is_a_sequence(tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 3])
        del model.graph.output[:]
        model.graph.output.append(helper.make_value_info("y", helper.make_sequence_type_proto(tensor)))

    path = save(tmp_path / "m.onnx", [*SCORES, node("SequenceConstruct", "s s", "y")], constants=WEIGHTS, edit=edit)
    with pytest.raises(DataError) as caught:
        classifier.load(path, CHW)
    assert str(caught.value) == (
        f"{path}: output 'y' of SequenceConstruct is a sequence; wanted the scores of the classes as float32: export "
        "the network without what follows them"
    )


@pytest.mark.parametrize(
    ("nodes", "shapes", "found"),
    [
        ([*SCORES], {"l": ("N", 3), "s": ("N", 3)}, [("s", 3)]),
        ([*SCORES, node("Neg", "g", "map")], {"s": ("N", 3), "map": ("N", 4, 1, 1)}, [("s", 3), ("map", 4)]),
        ([*SCORES, node("Neg", "c", "map")], {"s": ("N", 3), "map": ("N", 4, 6, 6)}, [("s", 3)]),
        ([*SCORES, node("Neg", "l", "aux_out")], {"s": ("N", "K"), "aux_out": ("N", 3)}, [("s", 3)]),
        ([*SCORES, node("ArgMax", "l", "best", axis=1)], {"s": ("N", 3), "best": ("N", 1)}, [("s", 3)]),
    ],
)
def test_candidates_are_the_outputs_that_may_be_scores(
    tmp_path: Path,
    nodes: list[onnx.NodeProto],
    shapes: dict[str, tuple[int | str, ...]],
    found: list[tuple[str, int]],
) -> None:
    def edit(model: onnx.ModelProto) -> None:
        for value in model.graph.output:
            if value.name == "best":
                value.type.tensor_type.elem_type = TensorProto.INT64

    path = save(tmp_path / "m.onnx", nodes, constants=WEIGHTS, outputs=shapes, edit=edit)
    listed = outputs.candidates(files.structure(path))
    assert [(each.name, each.classes) for each in listed] == found
