"""keras_conventions.py: the note on what TensorFlow's models are given; its lines beside Keras's arithmetic."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from pipeline.config.build_file import load_build_file
from pipeline.data import preprocess
from pipeline.onnx_models.input_units import InputUnit
from pipeline.prepare.keras_conventions import describe


def test_note_is_for_models_of_tf2onnx_that_do_not_normalise_and_have_no_record() -> None:
    made = onnx.ModelProto(producer_name="tf2onnx")
    assert "what preprocess_input of Keras does must stand in process_ops" in describe(made, None, is_recorded=False)
    assert describe(made, InputUnit.PIXELS, is_recorded=False) == ""
    assert describe(made, None, is_recorded=True) == ""
    assert describe(onnx.ModelProto(producer_name="pytorch"), None, is_recorded=False) == ""


@pytest.mark.parametrize("mode", ["caffe", "tf"])
def test_what_the_note_says_gives_kerass_own_numbers(tmp_path: Path, mode: str) -> None:
    """keras.applications.imagenet_utils.preprocess_input: `caffe` and `tf`."""
    note = describe(onnx.ModelProto(producer_name="tf2onnx"), None, is_recorded=False)
    lines = re.findall(r"\{type[^}]*\}", note)
    if mode == "tf":
        assert "--mean 0.5 --std 0.5" in note
        lines = ["{type: Normalize, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}"]
    (tmp_path / "x.yaml").write_text(
        "name: x\nfrontend: {type: onnx, checkpoint: x.onnx, shape: {input: [1, 3, 32, 32]}}\n"
        "dataset: {path: images, process_ops: [{type: DecodeImage}, {type: Resize, size: [32, 32]}, "
        f"{{type: CenterCrop, crop_size: 32}}, {', '.join(lines)}, {{type: ToTensor}}]}}\n",
        encoding="utf-8",
    )
    image_chw = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    found = preprocess.apply(load_build_file(tmp_path / "x.yaml").preprocess, image_chw)
    pixels = image_chw.astype(np.float64)
    expected = pixels / 127.5 - 1
    if mode == "caffe":
        expected = pixels[::-1] - np.array([103.939, 116.779, 123.68])[:, None, None]
    np.testing.assert_allclose(found, expected, atol=2e-5)
