"""What lies beside a model's file about it: how images are prepared, and what its classes are called."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError
from pipeline.models.processors import of_transformers
from pipeline.models.recipe import Recipe, of_timm
from pipeline.prepare.mm_configs import read_mm_config

if TYPE_CHECKING:
    import onnx

_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"


@dataclass(frozen=True)
class Records:
    """What the files say; None of what they do not."""

    recipe: Recipe | None
    labels: tuple[str, ...] | None  # of the classes, in the order of the outputs


def read_records(model: Path, side: int | None) -> Records:
    """Return what lies beside a model: transformers' two files, or timm's one, in its folder or the one above.

    Or a config of OpenMMLab in its folder.

    Args:
        model: the file; optimum puts it into a folder `onnx` below the records.
        side: height and width that the network takes, where that is known.

    Raises:
        ConfigError: a record asks for something that build files cannot say.
    """
    config, where = _find(model, _CONFIG)
    preprocessor, path = _find(model, _PREPROCESSOR)
    recipe = None
    if preprocessor is not None:
        # Which processor it is decides what is left out; since transformers 5 it may be said beside the model alone.
        recipe = of_transformers(preprocessor, side, str(path))
    elif config is not None and (record := _timm_record(config)) is not None:
        recipe = of_timm(record, str(where))
    elif config is None:
        recipe = read_mm_config(model)
    return Records(recipe, _labels(config))


def _timm_record(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return timm's record in a `config.json`: an entry of it, or of 2021 and 2022 the file itself."""
    record = config.get("pretrained_cfg")
    if isinstance(record, dict):
        return record
    return config if "architecture" in config and {"mean", "std", "input_size"} & config.keys() else None


def read_metadata(model: onnx.ModelProto, path: Path) -> Records:
    """Return what an ONNX file says of itself, as Ultralytics' exporter has it write, or a ZipMap of names.

    Raises:
        ConfigError: its network is no classifier.
    """
    said = {entry.key: entry.value for entry in model.metadata_props}
    if said.get("author") != "Ultralytics" or "task" not in said:
        return Records(None, _zipped_names(model))
    if said["task"] != "classify":
        raise ConfigError(f"{path}: is Ultralytics' network for the task {said['task']!r}; wanted one for 'classify'")
    size, names = _literal(said.get("imgsz")), _literal(said.get("names"))
    is_size = isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size)
    recipe = None
    if isinstance(size, list) and is_size:
        # Its classifiers resize the shorter side to the input's, and take images of 0 to 1.
        height, width = size
        resize = height if height == width else (height, width)
        source = f"Ultralytics' metadata in {path}"
        recipe = Recipe((height, width), resize, "BILINEAR_PILLOW", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), source)
    return Records(recipe, _labels({"id2label": names}))


def _zipped_names(model: onnx.ModelProto) -> tuple[str, ...] | None:
    """Return the names under which the network gives the scores; None where there are none, or numbers."""
    from pipeline.onnx_models.label_outputs import zipped_labels

    for output in model.graph.output:
        labels = zipped_labels(model, output.name)
        if labels and all(isinstance(label, str) for label in labels):
            return tuple(labels)
    return None


def _literal(text: str | None) -> object:
    """Return the value that Python's notation says; None of anything else."""
    try:
        return ast.literal_eval(text or "None")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _find(model: Path, name: str) -> tuple[dict[str, Any] | None, Path]:
    """Return a record and where it lies."""
    for folder in (model.parent, model.absolute().parent.parent):
        path = folder / name
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            continue
        except ValueError as err:
            raise ConfigError(f"{path}: not JSON ({err}); remove it, or download it again") from None
        if isinstance(record, dict):
            return record, path
    return None, model.parent / name


def _labels(config: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """Return transformers' `id2label` in the order of its numbers, or timm's `label_names`.

    None where there is neither, or only names made up from numbers.
    """
    said = config or {}
    within = said.get("pretrained_cfg")
    timm = said.get("label_names") or (within.get("label_names") if isinstance(within, dict) else None)
    names = said.get("id2label") or timm
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict):
        return None
    try:
        found = {int(number): str(name) for number, name in names.items()}
    except ValueError:
        return None
    if sorted(found) != list(range(len(found))) or all(name == f"LABEL_{number}" for number, name in found.items()):
        return None
    return tuple(found[number] for number in range(len(found)))
