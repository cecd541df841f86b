"""Writing a model piece by piece: the same bytes, with less memory."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import DataError
from pipeline.onnx_models import saving
from pipeline.onnx_models.saving import save_model

_LARGE = (1 << 20) // 4  # float32 values


def _model(*tensors: TensorProto, **fields: Any) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", tensors[0].name], ["y"], "add")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        initializer=tensors,
        doc_string="of the graph",
        value_info=[helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], **fields)


def _values(count: int, name: str, kind: npt.DTypeLike = np.float32) -> TensorProto:
    return numpy_helper.from_array((np.arange(count) % 100).astype(kind), name)


def _described(tensor: TensorProto) -> TensorProto:
    tensor.doc_string = "of the tensor"
    tensor.metadata_props.add(key="from", value="a test")
    return tensor


def _listed(count: int, name: str) -> TensorProto:
    return helper.make_tensor(name, TensorProto.FLOAT, [count], np.arange(count, dtype=np.float32))


@pytest.mark.parametrize(
    "tensors",
    [
        [_values(3, "small")],
        [_values(_LARGE, "large"), _values(3, "small"), _values(_LARGE + 1, "larger")],
        [_described(_values(_LARGE, "large"))],
        [_listed(_LARGE, "values in a list")],
        [_values(1 << 20, "int8", np.int8), _values(1 << 19, "half", np.float16)],
        [_values(0, "none")],
    ],
)
def test_save_model_writes_the_bytes_of_onnx(tensors: list[TensorProto], tmp_path: Path) -> None:
    model = _model(*tensors, producer_name="test", doc_string="of the model", model_version=3)
    model.metadata_props.add(key="key", value="value")
    save_model(model, tmp_path / "pieces.onnx")
    onnx.save(model, tmp_path / "whole.onnx")
    assert (tmp_path / "pieces.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()


def test_save_model_writes_the_bytes_of_onnx_when_the_model_is_empty(tmp_path: Path) -> None:
    save_model(onnx.ModelProto(), tmp_path / "pieces.onnx")
    assert (tmp_path / "pieces.onnx").read_bytes() == b""


def test_save_model_names_the_size_when_no_reader_would_take_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_LARGEST_FILE", 1 << 20)
    with pytest.raises(DataError, match="the model takes 1 MiB as an ONNX file"):
        save_model(_model(_values(_LARGE, "large")), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


_PEAK = """
import sys
import numpy as np
from onnx import TensorProto, helper
from pipeline.host.hardware import peak_memory_mib, reset_peak_memory
from pipeline.onnx_models.saving import save_model

graph = helper.make_graph([], "graph", [], [])
for index in range(4):
    tensor = graph.initializer.add(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[10 << 20])
    tensor.raw_data = bytes(40 << 20)
model = helper.make_model(graph)
del graph
reset_peak_memory()
before = peak_memory_mib()
save_model(model, __import__("pathlib").Path(sys.argv[1]))
print(peak_memory_mib() - before)
"""


def test_save_model_takes_memory_for_one_tensor(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", _PEAK, str(tmp_path / "model.onnx")], capture_output=True, text=True, check=True
    )
    assert float(found.stdout) < 100  # the model has 160 MiB, and onnx.save takes 320 and more
