"""Init: a build file for one's own weights and images, with what can be found out about them filled in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

from pipeline.artefacts import whole_file
from pipeline.config.build_file import load_build_file
from pipeline.data import class_order
from pipeline.data.imagenet import list_dataset
from pipeline.data.labels import IMAGE_SUFFIXES
from pipeline.data.sources import scan
from pipeline.errors import ConfigError, DataError
from pipeline.models import zoo
from pipeline.models.zoo import Model

_JPEG = (".jpg", ".jpeg")
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_CALIBRATION = 1000
_RESIZE = 256 / 224  # shorter side over the crop, as ImageNet's networks are measured


@dataclass(frozen=True)
class Given:
    """The flags of `init`."""

    out: Path
    weights: Path
    dataset: Path
    evaluation: Path | None = None
    model: str | None = None  # library/name
    size: int | None = None  # px


def write(given: Given) -> list[str]:
    """Write the build file; return what was found out, a line each.

    Raises:
        PipelineError: the file is there already, no network fits the weights, or the images cannot be listed.
    """
    if given.out.exists():
        raise ConfigError(f"{given.out}: is there already; give another name, or remove it")
    if given.out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{given.out}: expected a name that ends in .yaml")
    suffix = _suffix(given.dataset)
    dataset = list_dataset(given.dataset, suffix)
    images, classes = len(dataset.samples), len(dataset.classes)
    notes = [f"{images} {suffix} images of {classes} classes in {given.dataset}"]
    order = class_order.note([known.id for known in dataset.classes]) if dataset.has_folder_classes else None
    if order is not None:
        notes.append(f"{order}; build measures which it is")
    frontend, size, found = _frontend(given, classes)
    notes.append(found)
    document = {
        "name": given.out.stem,
        "frontend": frontend,
        "dataset": {
            "path": str(given.dataset),
            "sampler": {"suffix": suffix, "get_data_num": min(_CALIBRATION, images)},
            "process_ops": [
                {"type": "DecodeImage"},
                {"type": "Resize", "size": round(size * _RESIZE)},
                {"type": "CenterCrop", "crop_size": size},
                {"type": "Normalize", "mean": _MEAN, "std": _STD},
                {"type": "ToTensor"},
            ],
        },
        "evaluation": {"path": None if given.evaluation is None else str(given.evaluation)},
    }
    notes.append(
        f"Resize {round(size * _RESIZE)}, CenterCrop {size}, ImageNet's mean and std: change them in the file "
        "where the network was trained otherwise"
    )
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    with whole_file(given.out) as scratch:
        scratch.write_text(text, encoding="utf-8")
    load_build_file(given.out).check_inputs()
    return notes


def _suffix(path: Path) -> str:
    """Return the most frequent kind of image, as `dataset.sampler.suffix` names it."""
    found = Counter(Path(file.name).suffix.lower() for file in scan(path).files)
    kinds: Counter[str] = Counter()
    for suffix, count in found.items():
        if suffix in IMAGE_SUFFIXES:
            kinds["JPEG" if suffix in _JPEG else suffix.lstrip(".")] += count
    if not kinds:
        raise DataError(f"{path}: no images; give a folder with a folder a class, or a tar of one")
    return kinds.most_common(1)[0][0]


def _frontend(given: Given, classes: int) -> tuple[dict[str, object], int, str]:
    """Return the section, the side of the input in px, and what was found out."""
    if given.weights.suffix == ".onnx":
        return _onnx_frontend(given)
    from pipeline.models import checkpoints, identify

    state = checkpoints.read_state_dict(given.weights)
    rows, outputs = identify.networks_of(state, given.weights)
    row = _choose(given, rows)
    if outputs != classes:
        raise DataError(
            f"{given.weights}: has {outputs} classes, but {given.dataset} has {classes}; give the images that it was "
            "trained on"
        )
    size = given.size or row.size
    others = [f"{other.library}/{other.name}" for other in rows if other is not row]
    section: dict[str, object] = {
        "type": row.library,
        "model": row.name,
        "checkpoint": str(given.weights),
        "shape": {"input": [1, 3, size, size]},
        "num_classes": outputs,
    }
    also = f" (or {', '.join(others)}: --model says which)" if others else ""
    return section, size, f"{given.weights} fits {row.library}/{row.name}{also}, {outputs} classes"


def _choose(given: Given, rows: list[Model]) -> Model:
    if given.model is not None:
        library, _, name = given.model.partition("/")
        wanted = zoo.find_model(library, name)
        if wanted not in rows:
            fitting = ", ".join(f"{row.library}/{row.name}" for row in rows) or "none of the table"
            raise DataError(f"{given.weights}: is not of {given.model}; it fits {fitting}")
        return wanted
    if not rows:
        raise DataError(
            f"{given.weights}: fits no network of the table (`models` lists them); export it to ONNX and give that file"
        )
    return rows[0]


def _onnx_frontend(given: Given) -> tuple[dict[str, object], int, str]:
    import onnx

    try:
        model = onnx.load(given.weights, load_external_data=False)
    except Exception as err:  # protobuf meets a damaged file with errors of its own
        raise DataError(f"{given.weights}: not an ONNX model ({' '.join(str(err).split())})") from None
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    axes: list[int] = [axis.dim_value for axis in inputs[0].type.tensor_type.shape.dim] if len(inputs) == 1 else []
    side = axes[2] if len(axes) == 4 and axes[2] == axes[3] else 0
    size = given.size or side
    if len(inputs) != 1 or len(axes) != 4 or not size:
        raise DataError(
            f"{given.weights}: expected one input [N, 3, H, W] of equal sides; give --size where they are open"
        )
    section: dict[str, object] = {
        "type": "onnx",
        "checkpoint": str(given.weights),
        "shape": {inputs[0].name: [1, 3, size, size]},
    }
    return section, size, f"{given.weights}: input {inputs[0].name!r}, {size} px"
