from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config.build_file import load_build_file
from pipeline.errors import ConfigError
from pipeline.host.extras import install_command
from pipeline.models import libraries, zoo

REPO = Path(__file__).parents[2]


def test_models_are_named_once_in_each_library() -> None:
    rows = [(model.library, model.name) for model in zoo.MODELS]
    assert len(set(rows)) == len(rows)
    assert Counter(library for library, _ in rows) == {"torchvision": 7, "timm": 9, "official": 6, "paddleclas": 16}


def test_every_model_has_a_build_file_that_fits_it() -> None:
    """One of its library, name and size, whose preprocessing file is its own."""
    configs = [load_build_file(path) for path in sorted((REPO / "build_configs").glob("*.yaml"))]
    for model in zoo.MODELS:
        mine = [c for c in configs if (c.frontend.type.value, c.frontend.model) == (model.library, model.name)]
        assert len(mine) == 1, model
        # The documents run timm's wide_resnet50_2 at 256.
        sizes = {model.size, 256} if model.name == "wide_resnet50_2" else {model.size}
        assert {mine[0].frontend.chw[1], mine[0].frontend.chw[2]} <= sizes
    assert len(configs) == len(zoo.MODELS)


def test_models_carry_the_figures_of_the_documents() -> None:
    documents = {(m.library, m.name): (m.top1, m.top5, m.flops, m.params) for m in zoo.MODELS if m.top1 is not None}
    assert len(documents) == 4 + 4 + 16
    assert documents["torchvision", "wide_resnet50_2"] == (78.468, 94.086, 11.456, 68.883)
    assert documents["timm", "wide_resnet101_2"] == (78.854, 94.290, 22.838, 126.887)
    assert documents["official", "iresnet200"] == (79.308, 94.626, 33.727, 64.674)
    assert documents["paddleclas", "ResNet50_vc"] == (78.4, 94.0, 8.670, 25.580)


def test_find_model_gives_the_row_of_the_library() -> None:
    found = zoo.find_model("timm", "wide_resnet50_2")
    assert (found.library, found.name, found.design) == ("timm", "wide_resnet50_2", zoo.Design.WIDE)
    assert zoo.find_model("torchvision", "wide_resnet50_2").top1 != found.top1


@pytest.mark.parametrize(
    ("library", "name", "message"),
    [
        (
            "keras",
            "resnet50",
            "frontend.type: no networks of 'keras' are known; wanted official, paddleclas, timm, torchvision, or onnx",
        ),
        (
            "timm",
            "wide_resnet502",
            "frontend.model: 'wide_resnet502': did you mean 'wide_resnet50_2'? Any other needs timm itself, which is "
            f"not installed; run: {install_command('timm')}",
        ),
        (
            "timm",
            "vgg",
            "frontend.model: 'vgg' needs timm itself, which is not installed; run: "
            f"{install_command('timm')} (without it: resnet18, resnet34, resnet50, resnet101, resnet152, resnet50c, "
            "resnet50d, wide_resnet50_2, wide_resnet101_2)",
        ),
    ],
)
def test_find_model_says_what_is_known_when_there_is_no_such_network(
    monkeypatch: pytest.MonkeyPatch, library: str, name: str, message: str
) -> None:
    monkeypatch.setattr(libraries, "is_installed", lambda _: False)
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
