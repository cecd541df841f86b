"""Init: a build file for one's own weights and images, with what can be found out about them filled in."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import yaml

from pipeline.artefacts import is_written_through, whole_file
from pipeline.config.build_file import load_build_file
from pipeline.data import class_order
from pipeline.data.image_kinds import ANY, count_kinds, describe
from pipeline.data.imagenet import imagenet_classes, list_dataset
from pipeline.errors import ConfigError, DataError
from pipeline.models import zoo
from pipeline.models.zoo import Model
from pipeline.weights import paddle_inference
from pipeline.weights.file_kinds import FileKind, kind_of

if TYPE_CHECKING:
    import onnx

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
    checkpoint_key: str | None = None  # which weights of the checkpoint
    suffix: str = ANY  # of the image files
    val_label: Path | None = None  # the labels of `dataset`: lines `name index`


def write(given: Given) -> list[str]:
    """Write the build file; return what was found out, a line each.

    Raises:
        PipelineError: the file is there already, no network fits the weights, or the images cannot be listed.
    """
    out = check_out(given.out)
    is_file = not is_written_through(out)
    frontend, size, outputs, found = _frontend(given)
    dataset = list_dataset(given.dataset, given.suffix, given.val_label, class_count=outputs)
    images, classes = len(dataset.samples), len(dataset.classes)
    if outputs not in (None, classes) and frontend["type"] not in (
        "onnx",
        "paddle",
    ):
        raise DataError(
            f"{given.weights}: has {outputs} classes, but {given.dataset} has {classes}; give the images that it was "
            "trained on"
        )
    kinds = count_kinds(sample.source.name for sample in dataset.samples)
    what = f"{next(iter(kinds))} images" if len(kinds) == 1 else f"images ({describe(kinds)})"
    notes = [f"{images} {what} of {classes} classes in {given.dataset}"]
    order = class_order.note([known.id for known in dataset.classes]) if dataset.has_folder_classes else None
    if order is not None:
        notes.append(f"{order}; build measures which it is")
    notes.append(found)
    document = {
        "name": re.sub(r"[^A-Za-z0-9._-]", "_", (out if is_file else given.weights).stem).lstrip("."),
        "frontend": frontend,
        "dataset": {
            "path": str(given.dataset),
            **({} if given.val_label is None else {"val_label": str(given.val_label)}),
            "sampler": {
                **({} if given.suffix == ANY else {"suffix": given.suffix}),
                "get_data_num": min(_CALIBRATION, images),
            },
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
    with written_to(out, given.out, document) as scratch:
        load_build_file(scratch).check_inputs()
    return notes


def check_out(given: Path) -> Path:
    """Return where a build file is written: the path, or standard output for `-`.

    Raises:
        ConfigError: the file is there already, or has another suffix.
    """
    out = Path("/dev/stdout") if given == Path("-") else given
    if not is_written_through(out) and out.exists():
        raise ConfigError(f"{given}: is there already; give another name, or remove it")
    if not is_written_through(out) and out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{given}: expected a name that ends in .yaml")
    return out


@contextmanager
def written_to(out: Path, given: Path, document: Mapping[str, object]) -> Iterator[Path]:
    """Yield a scratch file that holds the document as YAML, and becomes `out` if the block ends well.

    Raises:
        ConfigError: it cannot be written.
    """
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    try:
        with whole_file(out) as scratch:
            scratch.write_text(text, encoding="utf-8")
            yield scratch
    except OSError as err:
        raise ConfigError(f"{given}: cannot be written ({err.strerror}); give another name") from None


def _frontend(given: Given) -> tuple[dict[str, object], int, int | None, str]:
    """Return the section, the side of the input in px, the number of classes if it is known, and what was found out."""
    if is_onnx(given.weights):
        return _onnx_frontend(given)
    if paddle_inference.is_inference_model(given.weights):
        return _paddle_frontend(given)
    from pipeline.weights import checkpoints

    state = checkpoints.read_state_dict(given.weights, given.checkpoint_key)
    rows, outputs = checkpoints.networks_of(state)
    if not rows and given.model is None:
        nearest = checkpoints.describe_nearest(state)
        raise DataError(
            f"{given.weights}: fits no network of the table (`models` lists them)"
            + (f"; {nearest}; save a state dict of the network alone" if nearest else "")
            + (", or export it to ONNX and give that file" if nearest else "; export it to ONNX and give that file")
        )
    row = _choose(given, rows)
    size = given.size or row.size
    others = [f"{other.library}/{other.name}" for other in rows if other is not row]
    section: dict[str, object] = {
        "type": row.library,
        "model": row.name,
        "checkpoint": str(given.weights),
        **({"checkpoint_key": given.checkpoint_key} if given.checkpoint_key else {}),
        "shape": {"input": [1, 3, size, size]},
        "num_classes": outputs,
    }
    also = f" (or {', '.join(others)}: --model says which)" if others else ""
    return section, size, outputs, f"{given.weights} fits {row.library}/{row.name}{also}, {outputs} classes"


def _paddle_frontend(given: Given) -> tuple[dict[str, object], int, int | None, str]:
    with TemporaryDirectory(prefix="init-") as folder:
        converted = Path(folder) / "model.onnx"
        paddle_inference.to_onnx(given.weights, converted)
        try:
            section, size, outputs, found = _onnx_frontend(replace(given, weights=converted))
        except DataError as err:
            raise DataError(str(err).replace(str(converted), str(given.weights))) from err
    section |= {"type": "paddle", "checkpoint": str(given.weights)}
    return section, size, outputs, found.replace(str(converted), str(given.weights))


def is_onnx(path: Path) -> bool:
    """Tell whether the file is a whole model: by its content, and by its name where that is no file of another kind."""
    try:
        kind = kind_of(path)
    except OSError:  # it is not there, as the reader will say
        return path.suffix == ".onnx"
    return kind is FileKind.ONNX or (kind is FileKind.UNKNOWN and path.suffix == ".onnx")


def _choose(given: Given, rows: list[Model]) -> Model:
    if given.model is not None:
        library, _, name = given.model.partition("/")
        wanted = zoo.find_model(library, name, "--model")
        if wanted not in rows:
            fitting = ", ".join(f"{row.library}/{row.name}" for row in rows) or "none of the table"
            raise DataError(f"{given.weights}: is not of {given.model}; it fits {fitting}")
        return wanted
    return rows[0]


def _onnx_frontend(given: Given) -> tuple[dict[str, object], int, int | None, str]:
    import onnx

    from pipeline.onnx_models import signature

    try:
        model = onnx.load(given.weights, load_external_data=False)
    except Exception as err:  # protobuf meets a damaged file with errors of its own
        raise DataError(f"{given.weights}: not an ONNX model ({' '.join(str(err).split())})") from None
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    hw = signature.describe_input(model)
    size = given.size or (hw[0] if hw is not None and hw[0] == hw[1] else None)
    if hw is None or not size:
        raise DataError(
            f"{given.weights}: expected one input [N, 3, H, W] of equal sides; give --size where they are open"
        )
    section: dict[str, object] = {
        "type": "onnx",
        "checkpoint": str(given.weights),
        "shape": {inputs[0].name: [1, 3, size, size]},
    }
    return section, size, _outputs_of(model), f"{given.weights}: input {inputs[0].name!r}, {size} px"


def _outputs_of(model: onnx.ModelProto) -> int | None:
    """Return how many classes the only output has; None where that is open, or 1000 and a background."""
    dims = model.graph.output[0].type.tensor_type.shape.dim if len(model.graph.output) == 1 else []
    count = math.prod(int(axis.dim_value) for axis in dims[1:]) if len(dims) > 1 else 0
    return count if count > 1 and count != 1 + len(imagenet_classes()) else None
