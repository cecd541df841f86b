from __future__ import annotations

import json

import pytest

from pipeline.commands.cli import main
from pipeline.errors import ConfigError
from pipeline.models.zoo import MODELS
from pipeline.prepare import model_table


def test_select_takes_any_word_of_library_or_name() -> None:
    assert model_table.select([]) == list(MODELS)
    assert {model.library for model in model_table.select(["OFFICIAL"])} == {"official"}
    assert {model.name for model in model_table.select(["34_vd", "iresnet18"])} == {
        "iresnet18",
        "ResNet34_vd",
        "ResNet34_vd_ssld",
    }


def test_select_says_so_when_no_network_has_the_name() -> None:
    with pytest.raises(ConfigError) as caught:
        model_table.select(["vgg"])
    assert str(caught.value) == "models vgg: no network of that name; `models` without words lists all"


def test_models_prints_what_was_counted_beside_what_the_documents_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "ResNet50_vc", "wide_resnet50_2", "iresnet18"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:-3]]
    assert [row[:2] for row in rows] == [
        ["torchvision", "wide_resnet50_2"],
        ["timm", "wide_resnet50_2"],
        ["official", "iresnet18"],
        ["paddleclas", "ResNet50_vc"],
    ]
    assert rows[0][2:] == ["224", "68.883", "11.398", "68.883", "11.456", "78.47", "94.09", "auto"]
    assert rows[2][2:] == ["224", "11.690", "1.814", "-", "-", "-", "-", "-"]
    assert rows[3][2:] == ["224", "25.576", "4.329", "25.580", "8.670", "78.40", "94.00", "by", "hand"]


def test_models_prints_json_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json", "Fix_"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["library"], row["model"], row["size"], row["params"]) == (
        "paddleclas",
        "Fix_ResNet50_vd_ssld",
        320,
        25_576_264,
    )
    assert row["documents"] == {"params_m": 25.58, "flops_g": 17.696, "top1": 84.0, "top5": 97.0}
