"""PaddleClas's own configs, as they are: of training (`ppcls/configs/...`) and of inference (`deploy/configs/...`).

What they say of the network, its weights, its images and its preprocessing becomes the document of a build file;
`predict` takes its images and the number of classes from them, `eval` the labels. Keys of training have no effect and
are named once. Configs of PaddleClas before 2.2 (`configs/...`, with the section ARCHITECTURE) are read too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.documents import apply_override, parse_yaml, read_text, shown_path
from pipeline.config.paddleclas_ops import process_ops
from pipeline.config.schema import Document, raise_faults, shown
from pipeline.config.sections import AUTO
from pipeline.errors import ConfigError

_SIDE = 224  # px, where a config names no size
_WEIGHTS_SUFFIX = ".pdparams"
INFERENCE = "_infer"  # the folder and tar of an inference model are named NETWORK_infer
_TRAINING = ("Loss", "Optimizer", "Metric", "EMA", "AMP", "Slim", "DistillationTrainer", "profiler_options")
_SECTIONS = ("Global", "Arch", "DataLoader", "Infer", "PreProcess", "PostProcess")
# Before PaddleClas 2.2.
_OLD_KEYS = ("ARCHITECTURE", "pretrained_model", "classes_num", "image_shape", "topk", "VALID")
_OLD_TRAINING = ("LEARNING_RATE", "OPTIMIZER", "TRAIN")


@dataclass(frozen=True)
class InferConfig:
    """What `predict` takes of a config; None where it says nothing."""

    images: tuple[str, ...]
    topk: int | None
    batch: int | None
    class_names: Path | None  # lines `index name`
    trains: bool  # a config of training, as `tools/infer.py` takes; else of inference, as `predict_cls.py` does


@dataclass(frozen=True)
class NetworkConfig:
    """The network that a config is about, and the file or folder of its weights; None where it names none."""

    name: str
    weights: Path | None


def is_paddleclas(values: Mapping[str, object]) -> bool:
    """Tell whether the values of a YAML file are a config of PaddleClas."""
    return _is_old(values) or (isinstance(values.get("Global"), dict) and bool({"Arch", "PreProcess"} & values.keys()))


def _is_old(values: Mapping[str, object]) -> bool:
    return isinstance(values.get("ARCHITECTURE"), dict) and "VALID" in values


def is_override(override: str) -> bool:
    """Tell whether `key=value` is about a config of PaddleClas: of one of its sections."""
    return override.partition("=")[0].strip().partition(".")[0] in (
        *(*_SECTIONS, *_TRAINING),
        *(*_OLD_KEYS, *_OLD_TRAINING),
    )


def read_infer_config(path: Path, overrides: Sequence[str]) -> InferConfig:
    """Return what a config says of the images to classify.

    Args:
        overrides: `Section.key=value`, as PaddleClas's own `-o`.

    Raises:
        ConfigError: the file is missing, or is no config of PaddleClas; or a value of it is none that is taken.
    """
    document = _read(path, overrides)
    infer, post = _section(document, "Infer"), _section(document, "PostProcess")
    images = infer.get("infer_imgs", _section(document, "Global").get("infer_imgs"))
    batch = infer.get("batch_size", _section(document, "Global").get("batch_size"))
    post = infer.get("PostProcess") or post.get("Topk") or post
    post = post if isinstance(post, dict) else {}
    return InferConfig(
        images=tuple(map(str, images if isinstance(images, list) else [] if images is None else [images])),
        topk=_count(path, "PostProcess.topk", post.get("topk")),
        batch=_count(path, "batch_size", batch),
        class_names=None if not post.get("class_id_map_file") else Path(str(post["class_id_map_file"])),
        trains="Arch" in document.values,
    )


def read_network(path: Path, overrides: Sequence[str]) -> NetworkConfig:
    """Return which network a config is about; arguments and errors as of `read_infer_config`."""
    document = _read(path, overrides)
    frontend = _frontend(document, _section(document, "Global"), _section(document, "Arch"), [_SIDE, _SIDE])
    weights = frontend["checkpoint"]
    named = frontend.get("model") or Path(str(weights)).name.partition(".")[0].removesuffix(INFERENCE)
    return NetworkConfig(str(named), None if weights in (None, str(AUTO)) else Path(weights))


def read_label_path(path: Path, overrides: Sequence[str]) -> Path:
    """Return the label list of the evaluation images that a config names; path and overrides as there.

    Raises:
        ConfigError: as `read_infer_config`; or it names none, or one that does not exist.
    """
    _, labels = _images(_read(path, overrides))
    if labels is None:
        raise ConfigError(f"{path} DataLoader.Eval: names no label list (cls_label_path); give --val_label FILE")
    if not Path(labels).is_file():
        raise ConfigError(
            f"{path} DataLoader.Eval: {labels}: no such file; give --val_label FILE, or "
            "-o DataLoader.Eval.dataset.cls_label_path=FILE"
        )
    return Path(labels)


def read_config(path: Path, overrides: Sequence[str], *, with_images: bool) -> Document:
    """Return the document of a build file that says what a config says; arguments as of `to_build_document`.

    Raises:
        ConfigError: the file is missing or no config of PaddleClas, or as `to_build_document`.
    """
    return to_build_document(_read(path, overrides), with_images=with_images)


def _read(path: Path, overrides: Sequence[str]) -> Document:
    document = parse_yaml(read_text(path), shown_path(path))
    if not is_paddleclas(document.values):
        raise ConfigError(f"{path}: expected a config of PaddleClas, with the sections Global and Arch or PreProcess")
    apply_overrides(document, overrides)
    raise_faults(document.faults)
    return document


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
    _renew(document)


def _renew(document: Document) -> None:
    """Bring a config from before PaddleClas 2.2 into the form of today's."""
    values = document.values
    if not _is_old(values):
        return
    arch: Any = values["ARCHITECTURE"]
    unused = [name for name in _OLD_TRAINING if name in values]
    document.values = {
        "Global": {key: values.get(key) for key in ("pretrained_model", "image_shape")},
        "Arch": {"name": arch.get("name"), "class_num": values.get("classes_num")},
        "DataLoader": {"Eval": values["VALID"]},
        "Infer": {"PostProcess": {"topk": values.get("topk")}},
    }
    document.notices.append(f"config of PaddleClas: {', '.join(unused)} have no effect here; they are for training")


def to_build_document(document: Document, *, with_images: bool = False) -> Document:
    """Return the document of a build file that says what a config of PaddleClas says.

    Relative paths stay relative to the working directory, as PaddleClas has them.

    Args:
        with_images: name its images although it names no weights: those are given otherwise.

    Raises:
        ConfigError: it names no network and no inference model, or an operator of its preprocessing is unknown here.
    """
    settings, arch = _section(document, "Global"), _section(document, "Arch")
    ops = list(process_ops(document.path, _transforms(document)))
    frontend = _frontend(document, settings, arch, _hw_of(ops, settings))
    built = Document(path=document.path, notices=list(document.notices))
    built.values = {
        "name": str(arch.get("name") or Path(str(frontend["checkpoint"])).name.partition(".")[0]),
        "frontend": frontend,
        "backend": {"quantize": {"calibrate_mode": "percentile"}},
        "dataset": {"process_ops": ops, "preprocess_as": "paddleclas"},
    }
    if with_images or frontend["checkpoint"] is not None:
        images, labels = _images(document)
        built.values["dataset"] |= {"path": images, "val_label": labels}  # type: ignore[operator]
        built.values["evaluation"] = {"path": images, "val_label": labels}
    unused = [name for name in (*_TRAINING, "DataLoader.Train") if _has(document, name)]
    if unused:
        built.notices.append(f"config of PaddleClas: {', '.join(unused)} have no effect here; they are for training")
    return built


def _frontend(
    document: Document, settings: Mapping[str, Any], arch: Mapping[str, Any], hw: list[int]
) -> dict[str, Any]:
    folder = settings.get("inference_model_dir")
    if "Arch" not in document.values and folder:
        return {"type": "paddle", "checkpoint": str(folder), "shape": {"x": [1, 3, *hw]}}
    if not arch.get("name"):
        raise ConfigError(f"{document.path} Arch.name: missing; it says which network this is")
    weights = settings.get("pretrained_model") or arch.get("pretrained")  # true: those that PaddleClas publishes
    classes = settings.get("class_num", arch.get("class_num"))
    return {
        "type": "paddleclas",
        "model": str(arch["name"]),
        "checkpoint": str(AUTO) if weights is True else _weights_file(weights) if isinstance(weights, str) else None,
        "shape": {"x": [1, 3, *hw]},
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
    if images is None or labels is None:
        return None if images is None else str(images), None if labels is None else str(labels)
    return _listed_folder(str(images), Path(str(labels))), str(labels)


def _listed_folder(root: str, labels: Path) -> str:
    """Return the one folder below the root that the list's images lie in, val/ beside train/; else the root."""
    try:
        lines = labels.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):  # the check of the build file says what is wrong with it
        return root
    folders = {line.partition("/")[0] for line in lines if line.strip()}
    inner = Path(root) / next(iter(folders)) if len(folders) == 1 else None
    return str(inner) if inner is not None and inner.is_dir() else root


def _evaluation(document: Document) -> Mapping[str, Any]:
    loader = _section(document, "DataLoader").get("Eval")
    if not isinstance(loader, dict):
        return {}
    dataset = loader.get("dataset")
    return {**loader, **dataset} if isinstance(dataset, dict) else loader


def _transforms(document: Document) -> list[object]:
    """Return the preprocessing of inference, else of evaluation."""
    dataset = _evaluation(document)
    found = (
        _section(document, "PreProcess").get("transform_ops")
        or _section(document, "Infer").get("transforms")
        or dataset.get("transform_ops")
        or dataset.get("transforms")
    )
    if not isinstance(found, list):
        raise ConfigError(f"{document.path}: no preprocessing, in PreProcess.transform_ops or Infer.transforms")
    return found


def _hw_of(ops: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[int]:
    """Return [height, width] of the input: what the preprocessing ends in, else what Global.image_shape says."""
    sizes = {op["type"]: op.get("crop_size", op.get("size")) for op in ops}
    for size in (sizes.get("CenterCrop"), sizes.get("Resize"), settings.get("image_shape")):
        if isinstance(size, int) and "CenterCrop" in sizes:
            return [size, size]
        if isinstance(size, list) and len(size) >= 2 and all(isinstance(side, int) for side in size):
            return size[-2:]
    return [_SIDE, _SIDE]


def _section(document: Document, name: str) -> dict[str, Any]:
    found = document.values.get(name)
    return found if isinstance(found, dict) else {}


def _has(document: Document, name: str) -> bool:
    section, _, key = name.partition(".")
    return key in _section(document, section) if key else section in document.values
