from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from pipeline.errors import ConfigError
from pipeline.models import zoo


def test_models_are_named_once_in_each_library() -> None:
    rows = [(model.library, model.name) for model in zoo.MODELS]
    assert len(set(rows)) == len(rows)
    names = {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"}
    for library in ("timm", "torchvision"):
        assert {name for found, name in rows if found == library} == names


def test_models_carry_the_accuracy_of_the_documents() -> None:
    published = {(m.library, m.name): (m.top1, m.top5) for m in zoo.MODELS if m.top1 is not None}
    assert published == {
        ("torchvision", "wide_resnet50_2"): (78.468, 94.086),
        ("torchvision", "wide_resnet101_2"): (78.848, 94.284),
        ("timm", "wide_resnet50_2"): (81.452, 95.530),
        ("timm", "wide_resnet101_2"): (78.854, 94.290),
    }


def test_find_model_gives_the_row_of_the_library() -> None:
    found = zoo.find_model("timm", "wide_resnet50_2")
    assert (found.library, found.name, found.base_width) == ("timm", "wide_resnet50_2", 128)
    assert zoo.find_model("torchvision", "wide_resnet50_2").top1 != found.top1


@pytest.mark.parametrize(
    ("library", "name", "message"),
    [
        (
            "keras",
            "resnet50",
            "frontend.type: no networks of 'keras' are known; wanted timm, torchvision, or onnx",
        ),
        (
            "timm",
            "wide_resnet502",
            "frontend.model: timm has no network 'wide_resnet502'; did you mean 'wide_resnet50_2'?",
        ),
        (
            "timm",
            "vgg",
            "frontend.model: timm has no network 'vgg'; known: resnet18, resnet34, resnet50, resnet101, resnet152, "
            "wide_resnet50_2, wide_resnet101_2",
        ),
    ],
)
def test_find_model_says_what_is_known_when_there_is_no_such_network(library: str, name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        zoo.find_model(library, name)
    assert str(caught.value) == message


def test_build_network_is_in_evaluation_mode_with_the_wanted_classes() -> None:
    network = zoo.build_network(zoo.find_model("timm", "resnet18"), num_classes=7)
    assert not any(module.training for module in network.modules())
    assert network.state_dict()["fc.weight"].shape == (7, 512)


def test_zoo_needs_no_torch_when_only_the_table_is_read(
    start_python: Callable[..., subprocess.Popen[str]],
) -> None:
    code = (
        "import sys; from pipeline.models import zoo; zoo.find_model('timm', 'resnet18'); print('torch' in sys.modules)"
    )
    process = start_python("-c", code)
    assert process.communicate(timeout=60)[0] == "False\n"
