"""checkpoint_origin.py: checkpoints of other libraries are named, with what exports them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.commands.cli import main
from pipeline.prepare.checkpoint_origin import describe

VIT = ("vit.embeddings.cls_token", "vit.encoder.layer.0.attention.attention.query.weight", "classifier.weight")


def write_config(folder: Path, kind: str, **entries: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": [kind], **entries}), encoding="utf-8")
    return folder / "model.safetensors"


@pytest.mark.parametrize("kind", ["ViTForImageClassification", "DeiTForImageClassificationWithTeacher"])
def test_describe_gives_the_command_that_exports_a_classifier_of_transformers(tmp_path: Path, kind: str) -> None:
    """As transformers 4.57.6 and 5.24.0 save them; the command is optimum-onnx 0.1.0's."""
    weights = write_config(tmp_path / "my vit", kind, model_type="vit")
    assert describe(weights, VIT) == (
        f"is transformers' {kind}, by config.json beside it; give the model.onnx that optimum-cli export onnx --task "
        f"image-classification -m '{tmp_path}/my vit' exported writes"
    )


def test_describe_says_so_when_transformers_network_is_no_classifier(tmp_path: Path) -> None:
    weights = write_config(tmp_path / "m", "CLIPVisionModel", model_type="clip_vision_model")
    assert describe(weights, VIT) == (
        "is transformers' CLIPVisionModel, by config.json beside it, which is no classifier of images"
    )


@pytest.mark.parametrize(
    ("kind", "entries"),
    [
        ("TimmWrapperForImageClassification", {"model_type": "timm_wrapper"}),  # the weights are timm's
        ("x", {}),  # not of transformers
    ],
)
def test_describe_leaves_networks_of_timm_to_the_search(tmp_path: Path, kind: str, entries: dict[str, object]) -> None:
    assert describe(write_config(tmp_path / "m", kind, **entries), ("conv1.weight", "fc.weight")) is None


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("visual.conv1.weight", "transformer.resblocks.0.ln_1.weight", "logit_scale"), "is of CLIP or a relative"),
        (("vision_model.post_layernorm.weight", "text_model.final_layer_norm.weight"), "is of CLIP or a relative"),
        (("0.conv.weight", "2.cv1.conv.weight", "10.linear.weight"), "yolo export model=w.pth format=onnx writes"),
        (("0.model.conv1.weight", "1.2.weight"), "as fastai's vision_learner has them; export learner.model.eval()"),
    ],
)
def test_describe_knows_libraries_by_the_names_of_tensors(names: tuple[str, ...], wanted: str) -> None:
    """As open_clip 3.3.0, transformers 4.57.6, Ultralytics 8.4.190 and fastai 2.8.12 name them."""
    assert wanted in (describe(Path("w.pth"), names) or "")


@pytest.mark.parametrize("names", [("conv1.weight", "fc.weight"), ("0.weight", "2.weight", "5.weight"), ()])
def test_describe_says_nothing_of_other_names(names: tuple[str, ...]) -> None:
    assert describe(Path("w.pth"), names) is None


def test_init_names_the_library_of_a_checkpoint_that_it_cannot_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name / "1.png")
    weights = tmp_path / "export.pth"
    torch.save({"0.model.conv1.weight": torch.zeros(4, 3, 3, 3), "1.8.weight": torch.zeros(2, 4)}, weights)
    assert main(["init", f"{tmp_path}/x.yaml", "--weights", str(weights), "--dataset", f"{tmp_path}/images"]) == 2
    assert capsys.readouterr().err == (
        f"error: {weights}: is in two parts, as fastai's vision_learner has them; export learner.model.eval() to ONNX\n"
    )
