"""Command lines of PaddleClas's users: predict, eval and init with its configs and its names."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_fixtures import CLASS_IDS, TinyWorkspace, draw, plain_answers

from pipeline.commands.cli import main
from pipeline.data import npz

NORMALIZE = {"scale": 0.00392157, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "order": ""}
OPS = [{"DecodeImage": None}, {"ResizeImage": {"resize_short": 36}}, {"CropImage": {"size": 32}}]
TRANSFORMS = [*OPS, {"NormalizeImage": NORMALIZE}, {"ToCHWImage": None}]


@pytest.fixture
def resnet50(in_workspace: TinyWorkspace) -> TinyWorkspace:
    """A tiny package that says it is of PaddleClas's ResNet50, and three images."""
    built = {"frontend": {"type": "paddleclas", "model": "ResNet50", "checkpoint": "best_model.pdparams"}}
    (in_workspace.folder / "build.json").write_text(json.dumps(built))
    Path("photos").mkdir()
    for index in range(3):
        Image.fromarray(np.ascontiguousarray(draw(index).transpose(1, 2, 0))).save(f"photos/{index}.png")
    return in_workspace


def write_config(**infer: object) -> str:
    config = {
        "Global": {"pretrained_model": None, "class_num": 6},
        "Arch": {"name": "ResNet50"},
        "DataLoader": {
            "Eval": {"dataset": {"image_root": "val", "cls_label_path": "val_list.txt", "transform_ops": TRANSFORMS}}
        },
        "Infer": {"infer_imgs": "photos", "batch_size": 2, "transforms": TRANSFORMS, **infer},
    }
    Path("ResNet50.yaml").write_text(json.dumps(config))
    return "ResNet50.yaml"


def test_predict_by_model_name_prints_the_lines_of_the_pip_package(
    resnet50: TinyWorkspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "--model_name=ResNet50", "--infer_imgs=photos/1.png", "--topk", "2"]) == 0
    line, end = capsys.readouterr().out.splitlines()
    npz.write_image_npz(Path("1.npz"), draw(1))
    (expected,) = plain_answers(resnet50.package, [Path("1.npz")])
    found = re.fullmatch(r"class_ids: (\[.*\]), scores: (\[.*\]), label_names: (\[.*\]), filename: photos/1.png", line)
    assert found is not None
    ids, scores, names = map(ast.literal_eval, found.groups())
    order = np.argsort(-expected)[:2]
    assert ids == order.tolist() and names == [CLASS_IDS[index] for index in ids]
    softmax = np.exp(expected - expected.max()) / np.exp(expected - expected.max()).sum()
    assert scores == pytest.approx(softmax[order], abs=0.02)
    assert all(score == round(score, 5) for score in scores)
    assert end == "Predict complete!"


def test_predict_with_a_training_config_prints_lists_as_infer_does(
    resnet50: TinyWorkspace, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("names.txt").write_text("".join(f"{index} name {index}\n" for index in range(6)))
    config = write_config(PostProcess={"name": "Topk", "topk": 5, "class_id_map_file": "names.txt"})
    assert main(["predict", "-c", config, "-o", "Infer.PostProcess.topk=3"]) == 0
    batches = [ast.literal_eval(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(batch) for batch in batches] == [2, 1]
    assert [list(answer) for answer in batches[0]] == [["class_ids", "scores", "file_name", "label_names"]] * 2
    answer = batches[1][0]
    assert answer["file_name"] == "photos/2.png" and len(answer["class_ids"]) == 3
    assert answer["label_names"] == [f"name {index}" for index in answer["class_ids"]]


def test_predict_says_when_the_package_is_of_other_weights_or_another_network(
    resnet50: TinyWorkspace, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config()
    assert main(["predict", "-c", config, "-o", "Global.pretrained_model=output/ResNet50/best_model"]) == 0
    assert "was built from best_model.pdparams, not from output/ResNet50/best_model.pdparams" in capsys.readouterr().err
    assert main(["predict", "-c", config, "-o", "Global.pretrained_model=best_model"]) == 0
    assert "note" not in capsys.readouterr().err
    assert main(["predict", "-c", config, "-o", "Arch.name=ResNet18"]) == 0
    assert "note: no package of ResNet18 is here; the one built last answers: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["predict", "--model_name", "ResNet50", "-m", "x", "photos"], "--model_name ResNet50: -m x names a package"),
        (["predict", "--model_name", "ResNet18", "photos"], "--model_name ResNet18: no package of it"),
        (["predict", "--model_name", "ResNet50", "-c", "ResNet50.yaml"], "names a network too; leave one of them out"),
        (["eval", "--result_path", "out", "-o", "Global.x=1"], "-o Global.x=1: overrides a config of PaddleClas"),
        (["eval", "--result_path", "out", "-c", "ResNet50.yaml"], "val_list.txt: no such file; give --val_label FILE"),
        (["init", "a.yaml", "--weights", "x"], "init: --dataset: missing; give it, or a config of PaddleClas"),
        (["init", "a.yaml", "-c", "ResNet50.yaml", "--size", "32"], "--size: the crop of its preprocessing"),
        (["bench", "--documents", "-b", "4"], "--documents: measures batch 1, 4 and 8 .*; leave --batch out"),
    ],
)
def test_flags_that_do_not_fit_are_named(
    resnet50: TinyWorkspace, capsys: pytest.CaptureFixture[str], arguments: list[str], fault: str
) -> None:
    write_config()
    assert main(arguments) == 2
    assert re.search(fault, capsys.readouterr().err)


def test_eval_takes_the_labels_of_a_config(resnet50: TinyWorkspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--datalist", str(resnet50.datalist), "--path_output", "out"]) == 0
    names = [line.split()[0].rpartition("/")[2] for line in own_labels(resnet50)]
    answers = plain_answers(resnet50.package, resnet50.images).argmax(axis=1).tolist()
    # The answers themselves, but for the first image: one is wrong, where the build's own labels have most wrong.
    listed = [(answers[0] + 1) % 6, *answers[1:]]
    labels = zip(names, listed, strict=True)
    Path("val_list.txt").write_text("".join(f"val/{name}.JPEG {index}\n" for name, index in labels))
    config = write_config()
    capsys.readouterr()
    line = ["eval", "--result_path", "out", "-c", config, "-o", "Global.pretrained_model=best_model", "--json", "-"]
    assert main(line) == 0
    done = capsys.readouterr()
    top1 = json.loads(done.out)["int8"]["top1"]
    assert (top1["correct"], top1["count"]) == (len(names) - 1, len(names))
    assert "note" not in done.err


def own_labels(space: TinyWorkspace) -> list[str]:
    return (space.datalist.parent / "val_label.txt").read_text().splitlines()


def test_bench_documents_prints_the_table(resnet50: TinyWorkspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--documents", "--iterations", "2"]) == 0
    out = capsys.readouterr().out
    assert "ResNet50, ms per request" in out and "V100 GPU, FP32" in out and "here, int8" in out


def test_init_writes_the_build_file_of_a_config(resnet50: TinyWorkspace, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.config.build_file import load_build_file

    config = write_config()
    assert main(["init", "mine.yaml", "-c", config, "-o", "Global.pretrained_model=best_model"]) == 0
    out = capsys.readouterr().out
    assert "before a build, change line 5 frontend.checkpoint: best_model.pdparams: no such file" in out
    assert "dataset.path: val: no such folder" in out
    written = load_build_file("mine.yaml")
    read = load_build_file(config, ["Global.pretrained_model=best_model"])
    assert written.as_dict() == read.as_dict()
    assert (written.dataset.path, written.frontend.num_classes) == (Path("val"), 6)


def test_init_flags_win_over_the_config(resnet50: TinyWorkspace, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.config.build_file import load_build_file

    config = write_config()
    Path("mine.pdparams").touch()
    assert main(["init", "mine.yaml", "-c", config, "--weights", "mine.pdparams", "--dataset", "photos"]) == 0
    assert "evaluation.path: val: no such folder" in capsys.readouterr().out
    written = load_build_file("mine.yaml")
    assert written.frontend.checkpoint == Path("mine.pdparams")
    assert (written.dataset.path, written.dataset.val_label) == (Path("photos"), None)
    assert written.evaluation.path == Path("val")
