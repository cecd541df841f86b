"""PaddleClas's own configs, as they are: of training (`ppcls/configs/...`) and of inference (`deploy/configs/...`).

What they say of the network, its weights, its images and its preprocessing becomes the document of a build file;
`predict` takes its images and the number of classes from them. Keys of training have no effect and are named once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.documents import apply_override, parse_yaml, read_text, shown_path
from pipeline.config.schema import Document, raise_faults, shown
from pipeline.errors import ConfigError

_SIDE = 224  # px, where a config names no size
_WEIGHTS_SUFFIX = ".pdparams"
_TRAINING = ("Loss", "Optimizer", "Metric", "EMA", "AMP", "Slim", "DistillationTrainer", "profiler_options")
_SECTIONS = ("Global", "Arch", "DataLoader", "Infer", "PreProcess", "PostProcess")
_FILTERS = {
    ("cv2", "bilinear"): "BILINEAR_CV",
    ("pil", "bilinear"): "BILINEAR_PILLOW",
    ("pil", "bicubic"): "BICUBIC_PILLOW",
    ("pil", "lanczos"): "LANCZOS_PILLOW",
    ("pil", "nearest"): "NEAREST_PILLOW",
}
_SCALE = 1 / 255
_SCALE_TOLERANCE = 1e-6  # configs write it as 0.00392157


@dataclass(frozen=True)
class InferConfig:
    """What `predict` takes of a config; None where it says nothing."""

    images: tuple[str, ...]
    topk: int | None
    batch: int | None


def is_paddleclas(values: Mapping[str, object]) -> bool:
    """Tell whether the values of a YAML file are a config of PaddleClas."""
    return isinstance(values.get("Global"), dict) and bool({"Arch", "PreProcess"} & values.keys())


def is_override(override: str) -> bool:
    """Tell whether `key=value` is about a config of PaddleClas: of one of its sections."""
    return override.partition("=")[0].strip().partition(".")[0] in (*_SECTIONS, *_TRAINING)


def read_infer_config(path: Path, overrides: Sequence[str]) -> InferConfig:
    """Return what a config says of the images to classify.

    Args:
        overrides: `Section.key=value`, as PaddleClas's own `-o`.

    Raises:
        ConfigError: the file is missing, or is no config of PaddleClas; or a value of it is none that is taken.
    """
    document = parse_yaml(read_text(path), shown_path(path))
    if not is_paddleclas(document.values):
        raise ConfigError(f"{path}: expected a config of PaddleClas, with the sections Global and Arch or PreProcess")
    apply_overrides(document, overrides)
    raise_faults(document.faults)
    infer, post = _section(document, "Infer"), _section(document, "PostProcess")
    images = infer.get("infer_imgs", _section(document, "Global").get("infer_imgs"))
    batch = infer.get("batch_size", _section(document, "Global").get("batch_size"))
    post = infer.get("PostProcess") or post.get("Topk") or post
    return InferConfig(
        images=tuple(map(str, images if isinstance(images, list) else [] if images is None else [images])),
        topk=_count(path, "PostProcess.topk", post.get("topk") if isinstance(post, dict) else None),
        batch=_count(path, "batch_size", batch),
    )


def _count(path: Path, key: str, value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{path} {key}: expected a whole number from 1 on, got {shown(value)}")
    return value


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Apply `Section.key=value`, the value in YAML; faults of them are added to the document."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"-o {override}: expected Section.key=value")
        value = parse_yaml(f"value: {text}", f"-o {override}").values.get("value")
        apply_override(document, key.strip(), value, "-o")


def to_build_document(document: Document) -> Document:
    """Return the document of a build file that says what a config of PaddleClas says.

    Relative paths stay relative to the working directory, as PaddleClas has them.

    Raises:
        ConfigError: it names no network and no inference model, or an operator of its preprocessing is unknown here.
    """
    settings, arch = _section(document, "Global"), _section(document, "Arch")
    ops = list(_process_ops(document))
    frontend = _frontend(document, settings, arch, _side_of(ops, settings))
    built = Document(path=document.path, notices=list(document.notices))
    built.values = {
        "name": str(arch.get("name") or Path(str(frontend["checkpoint"])).name.partition(".")[0]),
        "frontend": frontend,
        "backend": {"quantize": {"calibrate_mode": "percentile"}},
        "dataset": {"process_ops": ops, "preprocess_as": "paddleclas"},
    }
    if frontend["checkpoint"] is not None:
        images, labels = _images(document)
        built.values["dataset"] |= {"path": images, "val_label": labels}  # type: ignore[operator]
        built.values["evaluation"] = {"path": images, "val_label": labels}
    unused = [name for name in (*_TRAINING, "DataLoader.Train") if _has(document, name)]
    if unused:
        built.notices.append(f"config of PaddleClas: {', '.join(unused)} have no effect here; they are for training")
    return built


def _frontend(document: Document, settings: Mapping[str, Any], arch: Mapping[str, Any], side: int) -> dict[str, Any]:
    folder = settings.get("inference_model_dir")
    if "Arch" not in document.values and folder:
        return {"type": "paddle", "checkpoint": str(folder), "shape": {"x": [1, 3, side, side]}}
    if not arch.get("name"):
        raise ConfigError(f"{document.path} Arch.name: missing; it says which network this is")
    weights = settings.get("pretrained_model")
    classes = settings.get("class_num", arch.get("class_num"))
    return {
        "type": "paddleclas",
        "model": str(arch["name"]),
        "checkpoint": _weights_file(weights) if isinstance(weights, str) and weights else None,
        "shape": {"x": [1, 3, side, side]},
        **({"num_classes": classes} if classes is not None else {}),
    }


def _weights_file(text: str) -> str:
    """PaddleClas leaves the suffix out."""
    return text if Path(text).is_file() or text.endswith(_WEIGHTS_SUFFIX) else text + _WEIGHTS_SUFFIX


def _images(document: Document) -> tuple[str | None, str | None]:
    """Return the evaluation images and their label list, in the newer or the older spelling."""
    dataset = _evaluation(document)
    images = dataset.get("image_root", dataset.get("data_dir"))
    labels = dataset.get("cls_label_path", dataset.get("file_list"))
    return None if images is None else str(images), None if labels is None else str(labels)


def _evaluation(document: Document) -> Mapping[str, Any]:
    loader = _section(document, "DataLoader").get("Eval")
    if not isinstance(loader, dict):
        return {}
    dataset = loader.get("dataset")
    return dataset if isinstance(dataset, dict) else loader


def _process_ops(document: Document) -> Iterator[dict[str, Any]]:
    """Yield the operators of a build file for those of the config: of inference, else of evaluation."""
    dataset = _evaluation(document)
    found = (
        _section(document, "PreProcess").get("transform_ops")
        or _section(document, "Infer").get("transforms")
        or dataset.get("transform_ops")
        or dataset.get("transforms")
        or []
    )
    if not isinstance(found, list) or not found:
        raise ConfigError(f"{document.path}: no preprocessing, in PreProcess.transform_ops or Infer.transforms")
    yield {"type": "DecodeImage"}
    for item in found:
        name, values = next(iter(item.items())) if isinstance(item, dict) and len(item) == 1 else (None, None)
        if name == "DecodeImage" and isinstance(values, dict) and values.get("to_rgb", True) is not True:
            yield {"type": "CvtColor", "code": "COLOR_RGB2BGR"}
        elif name != "DecodeImage":
            yield _process_op(document.path, name, values if isinstance(values, dict) else {})


def _process_op(path: str, name: object, values: Mapping[str, Any]) -> dict[str, Any]:
    if name == "ResizeImage":
        return _resize(path, values)
    if name == "CropImage":
        return {"type": "CenterCrop", "crop_size": _hw(values.get("size"))}
    if name == "NormalizeImage":
        scale = _number(values.get("scale", _SCALE))
        if scale is None or abs(scale - _SCALE) > _SCALE_TOLERANCE:
            raise ConfigError(f"{path} NormalizeImage.scale: expected 1/255, got {shown(values.get('scale'))}")
        return {"type": "Normalize", "mean": values.get("mean"), "std": values.get("std")}
    if name == "ToCHWImage":
        return {"type": "ToTensor"}
    raise ConfigError(
        f"{path}: operator {shown(name)} of the preprocessing is not known here; known: DecodeImage, ResizeImage, "
        "CropImage, NormalizeImage, ToCHWImage"
    )


def _resize(path: str, values: Mapping[str, Any]) -> dict[str, Any]:
    backend = str(values.get("backend", "cv2")).lower()
    interpolation = str(values.get("interpolation") or "bilinear").lower()
    known = _FILTERS.get((backend, interpolation))
    if known is None:
        raise ConfigError(
            f"{path} ResizeImage: interpolation {interpolation} of {backend} is not known here; known: "
            + ", ".join(f"{name} of {library}" for library, name in _FILTERS)
        )
    size = values.get("resize_short") or _hw(values.get("size"))
    return {"type": "Resize", "size": size, "interpolation": known}


def _hw(size: object) -> object:
    """[width, height], as PaddleClas writes it, to [height, width]."""
    return size[::-1] if isinstance(size, list) else size


def _number(value: object) -> float | None:
    """A number, or text such as 1.0/255.0."""
    if isinstance(value, int | float):
        return float(value)
    parts = re.fullmatch(r"\s*(\d+\.?\d*)\s*/\s*(\d+\.?\d*)\s*", str(value))
    return float(parts[1]) / float(parts[2]) if parts and float(parts[2]) else None


def _side_of(ops: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> int:
    for op in ops:
        if op["type"] == "CenterCrop" and isinstance(op["crop_size"], int):
            return int(op["crop_size"])
    shape = settings.get("image_shape")
    return int(shape[-1]) if isinstance(shape, list) and shape and isinstance(shape[-1], int) else _SIDE


def _section(document: Document, name: str) -> dict[str, Any]:
    found = document.values.get(name)
    return found if isinstance(found, dict) else {}


def _has(document: Document, name: str) -> bool:
    section, _, key = name.partition(".")
    return key in _section(document, section) if key else section in document.values
