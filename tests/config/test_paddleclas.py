"""paddleclas.py: configs as PaddleClas writes them, of training and of inference, in build files and predict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config.build_file import load_build_file
from pipeline.config.choices import Frontend
from pipeline.config.paddleclas import read_infer_config
from pipeline.config.vdsp import PreprocessSpec, ResizeFilter, ResizeMode
from pipeline.errors import ConfigError

NORMALIZE = {"scale": "1.0/255.0", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "order": ""}
OPS = [
    {"DecodeImage": {"to_rgb": True, "channel_first": False}},
    {"ResizeImage": {"resize_short": 256}},
    {"CropImage": {"size": 224}},
    {"NormalizeImage": NORMALIZE},
    {"ToCHWImage": None},
]


def training_config() -> dict[str, object]:
    return {
        "Global": {"pretrained_model": None, "class_num": 1000, "image_shape": [3, 224, 224], "epochs": 120},
        "Arch": {"name": "ResNet50"},
        "Loss": {"Train": [{"CELoss": {"weight": 1.0}}]},
        "Optimizer": {"name": "Momentum"},
        "DataLoader": {
            "Train": {"dataset": {"image_root": "train"}},
            "Eval": {"dataset": {"image_root": "val", "cls_label_path": "val_list.txt", "transform_ops": OPS}},
        },
        "Infer": {
            "infer_imgs": "demo.jpg",
            "batch_size": 10,
            "transforms": OPS,
            "PostProcess": {"name": "Topk", "topk": 5, "class_id_map_file": "labels.txt"},
        },
    }


def inference_config() -> dict[str, object]:
    ops = [*OPS[1:3], {"NormalizeImage": {**NORMALIZE, "scale": 0.00392157}}, {"ToCHWImage": None}]
    return {
        "Global": {"infer_imgs": "./images/a.jpeg", "inference_model_dir": "./models/ResNet50_infer", "batch_size": 1},
        "PreProcess": {"transform_ops": ops},
        "PostProcess": {"main_indicator": "Topk", "Topk": {"topk": 3, "class_id_map_file": "labels.txt"}},
    }


def write(path: Path, values: object) -> Path:
    path.write_text(json.dumps(values), encoding="utf-8")  # which is YAML too
    return path


def test_training_config_is_a_build_file_of_its_network(tmp_path: Path) -> None:
    cfg = load_build_file(write(tmp_path / "ResNet50.yaml", training_config()))
    assert (cfg.name, cfg.frontend.type, cfg.frontend.model) == ("ResNet50", Frontend.PADDLECLAS, "ResNet50")
    assert cfg.frontend.checkpoint is None and cfg.dataset.path is None and cfg.uses_sample
    spec = cfg.preprocess
    assert (spec.resize_hw, spec.crop_hw, spec.filter) == ((256, 256), (224, 224), ResizeFilter.BILINEAR_CV)
    assert (spec.mean, spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    (notice,) = cfg.notices
    assert notice == (
        "config of PaddleClas: Loss, Optimizer, DataLoader.Train have no effect here; they are for training"
    )


def test_override_of_pretrained_model_brings_weights_and_images(tmp_path: Path) -> None:
    path = write(tmp_path / "ResNet50.yaml", training_config())
    (tmp_path / "best_model.pdparams").write_bytes(b"-")
    overrides = [f"Global.pretrained_model={tmp_path / 'best_model'}", "backend.quantize.percentile=99.99"]
    cfg = load_build_file(path, overrides)
    assert cfg.frontend.checkpoint == tmp_path / "best_model.pdparams"
    assert (cfg.dataset.path, cfg.dataset.val_label) == (Path("val"), Path("val_list.txt"))
    assert (cfg.evaluation.path, cfg.evaluation.val_label) == (Path("val"), Path("val_list.txt"))
    assert cfg.backend.quantize.percentile == 99.99


def test_inference_config_is_a_build_file_of_its_model_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "inference_cls.yaml", inference_config())
    cfg = load_build_file(path, ["Global.inference_model_dir=other_infer"], extra={"dataset.path": "images"})
    assert (cfg.frontend.type, cfg.frontend.checkpoint) == (Frontend.PADDLE, Path("other_infer"))
    assert (cfg.name, cfg.frontend.input_name, cfg.frontend.chw) == ("other_infer", "x", (3, 224, 224))


@pytest.mark.parametrize(
    ("values", "overrides", "wanted"),
    [
        (training_config(), [], (("demo.jpg",), 5, 10)),
        (training_config(), ["Infer.infer_imgs=photos", "Infer.PostProcess.topk=2"], (("photos",), 2, 10)),
        (inference_config(), [], (("./images/a.jpeg",), 3, 1)),
        (inference_config(), ["Global.infer_imgs=[a.jpg, b.jpg]"], (("a.jpg", "b.jpg"), 3, 1)),
    ],
)
def test_read_infer_config_says_what_to_classify(
    tmp_path: Path, values: object, overrides: list[str], wanted: tuple[object, ...]
) -> None:
    found = read_infer_config(write(tmp_path / "c.yaml", values), overrides)
    assert (found.images, found.topk, found.batch) == wanted


def old_config() -> dict[str, object]:
    """As PaddleClas had them before 2.2."""
    return {
        "mode": "train",
        "ARCHITECTURE": {"name": "ResNet50"},
        "pretrained_model": "",
        "classes_num": 1000,
        "topk": 5,
        "image_shape": [3, 224, 224],
        "LEARNING_RATE": {"function": "Piecewise"},
        "OPTIMIZER": {"function": "Momentum"},
        "TRAIN": {"data_dir": "data"},
        "VALID": {"file_list": "data/val_list.txt", "data_dir": "data", "transforms": OPS},
    }


def test_config_of_before_2_2_is_read_as_todays(tmp_path: Path) -> None:
    path = write(tmp_path / "ResNet50.yaml", old_config())
    cfg = load_build_file(path, ["pretrained_model=best"])
    assert (cfg.frontend.type, cfg.frontend.model) == (Frontend.PADDLECLAS, "ResNet50")
    assert (cfg.frontend.checkpoint, cfg.frontend.num_classes) == (Path("best.pdparams"), 1000)
    assert (cfg.dataset.path, cfg.evaluation.val_label) == (Path("data"), Path("data/val_list.txt"))
    assert cfg.preprocess == load_build_file(write(tmp_path / "new.yaml", training_config())).preprocess
    assert read_infer_config(path, ["topk=3"]).topk == 3
    assert cfg.notices == (
        "config of PaddleClas: LEARNING_RATE, OPTIMIZER, TRAIN have no effect here; they are for training",
    )


@pytest.mark.parametrize(("pretrained", "wanted"), [(True, "auto"), ("best", "best.pdparams"), (False, None)])
def test_weights_are_those_of_the_architecture_when_global_names_none(
    tmp_path: Path, pretrained: object, wanted: str | None
) -> None:
    values = training_config() | {"Arch": {"name": "ResNet50", "class_num": 1000, "pretrained": pretrained}}
    path = write(tmp_path / "ResNet50.yaml", values)
    assert load_build_file(path).frontend.checkpoint == (None if wanted is None else Path(wanted))
    given = load_build_file(path, ["Global.pretrained_model=mine"])
    assert given.frontend.checkpoint == Path("mine.pdparams")


def test_images_of_the_config_are_taken_when_a_flag_gives_the_weights(tmp_path: Path) -> None:
    path = write(tmp_path / "ResNet50.yaml", training_config())
    assert load_build_file(path, extra={"frontend.checkpoint": "w.pdparams"}).dataset.path == Path("val")


def test_images_are_the_folder_that_the_list_names_when_train_lies_beside_it(tmp_path: Path) -> None:
    root = tmp_path / "ILSVRC2012"
    for name in ("train/n01440764", "val"):
        (root / name).mkdir(parents=True)
    (root / "val_list.txt").write_text("val/a.JPEG 65\nval/b.JPEG 970\n")
    overrides = [
        f"DataLoader.Eval.dataset.image_root={root}",
        f"DataLoader.Eval.dataset.cls_label_path={root / 'val_list.txt'}",
        "Global.pretrained_model=best",
    ]
    path = write(tmp_path / "ResNet50.yaml", training_config())
    assert load_build_file(path, overrides).evaluation.path == root / "val"
    (root / "val_list.txt").write_text("val/a.JPEG 65\nextra/b.JPEG 970\n")
    assert load_build_file(path, overrides).evaluation.path == root


def test_alias_of_a_single_value_is_read(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "Global: {image_channel: &channels 3, image_shape: [*channels, 224, 224]}\nArch: {name: ResNet50}\n"
        f"Infer: {{transforms: {json.dumps(OPS)}}}\n"
    )
    assert load_build_file(path).frontend.chw == (3, 224, 224)


def spec_of(tmp_path: Path, *ops: object) -> PreprocessSpec:
    values = {**training_config(), "Infer": {"transforms": list(ops)}}
    return load_build_file(write(tmp_path / "c.yaml", values)).preprocess


def test_size_of_resize_image_is_both_sides_even_as_one_number(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, {"ResizeImage": {"size": 224}})
    assert (spec.resize, spec.resize_hw, spec.crop_hw) == (ResizeMode.STRETCH, (224, 224), (224, 224))
    spec = spec_of(tmp_path, {"ResizeImage": {"size": 256, "resize_short": 300}}, {"CropImage": {"size": 224}})
    assert (spec.resize, spec.resize_hw) == (ResizeMode.SHORTER_SIDE, (300, 300))


def test_input_has_the_size_that_the_preprocessing_ends_in(tmp_path: Path) -> None:
    values = training_config() | {"Infer": {"transforms": [{"ResizeImage": {"size": [160, 80]}}]}}
    cfg = load_build_file(write(tmp_path / "c.yaml", values))
    assert cfg.frontend.chw == (3, 80, 160) and cfg.preprocess.output_hw == (80, 160)


@pytest.mark.parametrize(
    ("said", "mean", "std"),
    [
        (None, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ({"scale": None, "mean": [0.5, 0.5, 0.5]}, (0.5, 0.5, 0.5), (0.229, 0.224, 0.225)),
        ({"scale": 1.0, "mean": [127.5, 127.5, 127.5], "std": [51, 51, 51]}, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
    ],
)
def test_normalize_image_takes_paddleclas_own_numbers_for_what_it_does_not_say(
    tmp_path: Path, said: object, mean: object, std: object
) -> None:
    spec = spec_of(tmp_path, {"ResizeImage": {"size": 224}}, {"NormalizeImage": said})
    assert (spec.mean, spec.std) == (mean, std)


@pytest.mark.parametrize(
    ("op", "fault"),
    [
        ({"AutoAugment": {}}, "operator 'AutoAugment' of the preprocessing is not known here"),
        ({"ResizeImage": {"size": 224, "interpolation": "area"}}, "interpolation area of cv2 is not known here"),
        (
            {"NormalizeImage": {**NORMALIZE, "scale": "1.0/128"}},
            "NormalizeImage.scale: expected 1/255 or 1, got '1.0/128'",
        ),
    ],
)
def test_preprocessing_that_is_not_known_is_named(tmp_path: Path, op: object, fault: str) -> None:
    values = {**training_config(), "Infer": {"transforms": [OPS[0], op]}}
    with pytest.raises(ConfigError, match=fault):
        load_build_file(write(tmp_path / "c.yaml", values))


@pytest.mark.parametrize(
    ("values", "overrides", "fault"),
    [
        ({"name": "x"}, [], "expected a config of PaddleClas"),
        (training_config(), ["Infer.PostProcess.topk=0"], "PostProcess.topk: expected a whole number from 1 on, got 0"),
        (training_config(), ["Infer.PostProcess.topk"], "expected Section.key=value"),
    ],
)
def test_read_infer_config_names_the_fault(tmp_path: Path, values: object, overrides: list[str], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        read_infer_config(write(tmp_path / "c.yaml", values), overrides)
