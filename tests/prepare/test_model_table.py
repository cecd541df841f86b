from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.commands.cli import main
from pipeline.errors import ConfigError
from pipeline.models.published import published_of
from pipeline.models.zoo import MODELS, find_model
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


@pytest.mark.slow
def test_models_prints_what_was_counted_beside_what_the_documents_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "ResNet50_vc", "wide_resnet50_2", "iresnet18"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:-5]]
    assert [row[:2] for row in rows] == [
        ["torchvision", "wide_resnet50_2"],
        ["timm", "wide_resnet50_2"],
        ["official", "iresnet18"],
        ["paddleclas", "ResNet50_vc"],
    ]
    assert rows[0][2:] == ["224", "68.883", "11.398", "68.883", "11.456", "78.468", "94.086", "-", "-", "auto"]
    assert rows[2][2:] == ["224", "11.690", "1.814", *"-" * 7]
    assert rows[3][2:] == ["224", "25.576", "4.329", "25.580", "8.670", "78.400", "94.000", "-", "-", "by", "hand"]


def test_models_prints_json_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json", "Fix_"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["library"], row["model"], row["size"], row["params"]) == (
        "paddleclas",
        "Fix_ResNet50_vd_ssld",
        320,
        25_576_264,
    )
    assert row["documents"] == {
        "params_m": 25.58,
        "flops_g": 17.696,
        "top1": 84.0,
        "top5": 97.0,
        "reference_top1": None,
        "reference_top5": None,
        "latency_ms": {
            "batches": [1, 4, 8],
            "T4 GPU, FP16": [3.42818, 7.51534, 13.1937],
            "T4 GPU, FP32": [5.07696, 14.64218, 27.01453],
        },
    }


def test_models_prints_the_documents_latencies_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--latency", "ResNet50_vd"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["ResNet50_vd", "V100", "GPU,", "FP32", "2.600", "4.860", "7.630"]
    assert len(lines) == 1 + 3 * 2 + 2 + 1  # ResNet50_vd and _ssld in three rows, Fix_ without V100


def test_models_says_so_when_the_documents_have_no_latency(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--latency", "iresnet"]) == 2
    assert "PaddleClas's networks only" in capsys.readouterr().err


@pytest.mark.realdata
def test_published_figures_are_those_of_the_document() -> None:
    """Every row of the tables 1.2 and 1.3 of the PaddleClas document, cell by cell."""
    found = list((Path(__file__).parents[3] / "shared" / "documents").glob("001*.txt"))
    if not found:
        pytest.skip("../shared/documents is absent")
    text = found[0].read_text(encoding="utf-8")
    ends = (("### 1.2 ", "## 1.3 "), ("### 1.3.1", "### 1.3.2"), ("### 1.3.2 ", "## 2. "))
    tables = [text[text.index(start) : text.index(end)] for start, end in ends]
    accuracy, v100, t4 = ({row[0]: row[1:] for row in rows_of(table)} for table in tables)
    assert len(accuracy) == 16
    for name, row in accuracy.items():
        published = published_of("paddleclas", name)
        wanted = tuple(100 * float(cell) for cell in row[2:4]) if row[2] else None
        assert published.reference == (None if wanted is None else pytest.approx(wanted))
        assert published.v100_fp32 == (tuple(map(float, v100[name][1:])) if name in v100 else None)
        assert published.t4_fp16 == tuple(map(float, t4[name][1:4]))
        assert published.t4_fp32 == tuple(map(float, t4[name][4:7]))
        model = find_model("paddleclas", name)
        cells = (model.top1, model.top5, model.flops, model.params)
        assert cells == pytest.approx((100 * float(row[0]), 100 * float(row[1]), float(row[4]), float(row[5])))


def rows_of(table: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("|") and "ResNet" in line
    ]
