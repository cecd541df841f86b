"""documented_latency.py: latency here beside the documents' rows of the package's network."""

from __future__ import annotations

import json

import pytest
from run_fixtures import TinyWorkspace

from pipeline.errors import ConfigError
from pipeline.measure import documented_latency
from pipeline.run.plan import Limit


def say_network(tiny: TinyWorkspace, **frontend: object) -> None:
    (tiny.folder / "build.json").write_text(json.dumps({"frontend": frontend}))


def test_measure_puts_this_machine_beside_the_documents(tiny: TinyWorkspace) -> None:
    say_network(tiny, type="paddleclas", model="ResNet50", checkpoint=None)
    found = documented_latency.measure(tiny.package, "onnxruntime", Limit(iterations=3))
    latency = found.as_dict()["latency_ms"]
    assert latency["batches"] == (1, 4, 8)
    assert latency["V100 GPU, FP32"] == (2.54, 4.79, 7.4)
    assert latency["T4 GPU, FP32"] == (3.47712, 7.84421, 13.90633)
    assert len(latency["here"]) == 3 and all(0 < ms < 1000 for ms in latency["here"])
    head, here, v100, *_, machine, size = found.lines()
    assert head.split() == ["ResNet50,", "ms", "per", "request", "batch", "1", "batch", "4", "batch", "8"]
    assert here.split() == ["here,", "int8", *(f"{ms:.3f}" for ms in latency["here"])]
    assert v100.split() == ["V100", "GPU,", "FP32", "2.540", "4.790", "7.400"]
    assert machine.startswith("here: onnxruntime on ")
    assert size == "note: this package is of 32 px, the documents' latencies are of 224 px"


@pytest.mark.parametrize(
    ("frontend", "what"),
    [
        ({"type": "timm", "model": "wide_resnet50_2", "checkpoint": None}, "is of timm wide_resnet50_2"),
        ({"type": "onnx", "model": None, "checkpoint": "x.onnx"}, "is built from x.onnx"),
    ],
)
def test_rows_of_names_the_network_when_the_documents_have_none(
    tiny: TinyWorkspace, frontend: dict[str, object], what: str
) -> None:
    say_network(tiny, **frontend)
    with pytest.raises(ConfigError, match=f"latencies of PaddleClas's networks only .*{what}; leave --documents out"):
        documented_latency.rows_of(tiny.package)


def test_rows_of_an_inference_model_are_those_of_its_network(tiny: TinyWorkspace) -> None:
    say_network(tiny, type="paddle", checkpoint="models/ResNet18_infer.tar")
    network, rows = documented_latency.rows_of(tiny.package)
    assert network == "ResNet18" and rows["V100 GPU, FP32"] == (1.22, 2.19, 3.63)
