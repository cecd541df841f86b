"""Init: the network of the weights that were given, or of the name; what is known of its input, images and classes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipeline.config.sections import AUTO
from pipeline.data.labels import imagenet_classes
from pipeline.errors import ConfigError, DataError, describe_absent, in_a_line
from pipeline.host.extras import install_command
from pipeline.models import libraries, zoo
from pipeline.models.recipe import Recipe
from pipeline.models.record_values import Numbers
from pipeline.models.zoo import Model
from pipeline.onnx_models import input_units
from pipeline.onnx_models.input_units import InputUnit
from pipeline.prepare import checkpoint_origin, keras_conventions
from pipeline.prepare.records import Records, read_metadata, read_records
from pipeline.weights import keras_models, paddle_inference, torch_programs
from pipeline.weights.file_kinds import FileKind, kind_of

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

    from pipeline.onnx_models.outputs import Candidate

# Names of outputs of image encoders: CLIP's and those of transformers.
_EMBEDDING = re.compile(r"embed|feature|hidden_state|pooler")


@dataclass(frozen=True)
class Wanted:
    """What the flags of `init` say of the network."""

    weights: Path | None  # None: what the library publishes, or without images the sample's
    model: str | None  # library/name
    size: int | None  # px
    checkpoint_key: str | None


@dataclass(frozen=True)
class FoundNetwork:
    """A network, as a build file names it."""

    section: dict[str, object]  # `frontend:`
    hw: tuple[int, int]  # of the input, px
    classes: int | None  # None: the file leaves it open, or the build looks at them
    recipe: Recipe | None  # how images are prepared, where somebody recorded it
    labels: tuple[str, ...] | None  # of the classes, where a file names them
    note: str
    unit: InputUnit | None = None  # of the images that it normalises itself; None: it takes normalised ones
    own_layer: tuple[Numbers, Numbers] | None = None  # mean and std of a layer that is left out, of a 0..1 image
    outputs: tuple[Candidate, ...] = ()  # those that may be the scores, of a file with several; the likeliest last
    output_count: int = 1  # of the file

    def with_output(self, classes: int | None) -> FoundNetwork:
        """Return the network with one output named as the scores, and the note that says which, where it has several.

        Args:
            classes: of the images; None: they have no labels.
        """
        if not self.outputs:
            return self
        fitting = [each for each in self.outputs if classes is not None and each.classes == classes] or self.outputs
        taken = fitting[-1]
        others = ", ".join(repr(each.name) for each in fitting[:-1])
        may_be = f"; where the scores are {others}, set it to that" if others else ""
        return replace(
            self,
            section={**self.section, "output": taken.name},
            classes=taken.classes,
            note=f"{self.note}; of {self.output_count} outputs {taken.name!r} is taken (frontend.output){may_be}",
            outputs=(),
        )


def find_network(wanted: Wanted) -> FoundNetwork:
    """Return the network.

    Raises:
        PipelineError: the file cannot be read, or fits no network; or there is none of that name.
    """
    if wanted.weights is None:
        return _published(wanted)
    if wanted.weights == AUTO:
        raise ConfigError("--weights auto: give --model LIBRARY/NAME alone for the weights that its library publishes")
    if not wanted.weights.exists():
        raise ConfigError(f"--weights {wanted.weights}: {describe_absent(wanted.weights)}")
    if is_onnx(wanted.weights):
        return _from_onnx(wanted, wanted.weights)
    if paddle_inference.is_inference_model(wanted.weights):
        return _from_converted(wanted, wanted.weights, "paddle", paddle_inference.to_onnx)
    if torch_programs.is_program(wanted.weights):
        return _from_program(wanted, wanted.weights)
    if keras_models.is_keras_model(wanted.weights):
        return _from_converted(wanted, wanted.weights, "keras", keras_models.to_onnx)
    return _from_checkpoint(wanted, wanted.weights)


def _published(wanted: Wanted) -> FoundNetwork:
    assert wanted.model is not None, "checked by the caller"
    row = _row(wanted.model)
    recipe = _library_recipe(row, None)
    section = _section(row, wanted, None)
    classes = recipe.classes if recipe is not None else None
    return _with_size(FoundNetwork(section, (0, 0), classes, recipe, None, ""), row, wanted, f"network {wanted.model}")


def _row(name: str) -> Model:
    library, slash, model = name.partition("/")
    if not slash:
        raise ConfigError(f"--model {name}: expected LIBRARY/NAME, as torchvision/resnet18; `models` lists them")
    return zoo.find_model(library, model, "--model")


def _section(row: Model, wanted: Wanted, classes: int | None) -> dict[str, object]:
    return {
        "type": row.library,
        "model": row.name,
        "checkpoint": str(wanted.weights or AUTO),
        **({"checkpoint_key": wanted.checkpoint_key} if wanted.checkpoint_key else {}),
        **({} if classes is None else {"num_classes": classes}),
    }


def _with_size(found: FoundNetwork, row: Model, wanted: Wanted, note: str) -> FoundNetwork:
    hw = found.recipe.crop_hw if found.recipe is not None else (row.size, row.size)
    hw = (wanted.size, wanted.size) if wanted.size else hw
    section = {**found.section, "shape": {"input": [1, 3, *hw]}}
    return replace(found, section=section, hw=hw, note=note)


def _library_recipe(row: Model, weights: Path | None) -> Recipe | None:
    """Return the library's record of the weights that a file's name tells, else of those it takes itself."""
    if not libraries.is_installed(row.library):
        return None
    architecture, _, tag = row.name.partition(".")
    if architecture not in libraries.names_of(row.library):  # PaddleClas's and others' are no library's here
        return None
    named = None if weights is None or tag else libraries.tag_of_file(row.library, architecture, weights)
    try:
        return libraries.recipe(row.library, f"{architecture}.{named}" if named else row.name)
    except ConfigError:
        return None


def _from_checkpoint(wanted: Wanted, weights: Path) -> FoundNetwork:
    from pipeline.weights import checkpoints, library_search, matching

    content = checkpoints.read(weights, wanted.checkpoint_key)
    rows, classes = matching.networks_of(state := content.tensors)
    if wanted.model is not None:
        row = _row(wanted.model)
        others: list[str] = []
        if row.design is zoo.Design.INSTALLED:
            fitting = library_search.classes_in(row, state)
            if fitting is None:
                network = zoo.build_network(row)
                matching.load_strictly(network, state, weights, wanted.model)  # says what does not fit
            classes = fitting or 0
        elif row not in rows:
            listed = ", ".join(f"{row.library}/{row.name}" for row in rows) or "none of the table"
            raise DataError(f"{weights}: is not of {wanted.model}; it fits {listed}")
    elif rows:
        row, others = rows[0], [f"{other.library}/{other.name}" for other in rows[1:]]
    else:
        row, classes, others = _search(weights, state)
    also = f" (or {', '.join(others)}: --model says which)" if others else ""
    beside = read_records(weights, wanted.size)
    recipe = beside.recipe or _library_recipe(row, weights)
    section, labels = _section(row, wanted, classes), beside.labels or content.class_names
    found = FoundNetwork(section, (0, 0), classes, recipe, labels, "", own_layer=content.normalization)
    fits = f"{weights} fits {row.library}/{row.name}{also}, {classes} classes"
    return _with_size(found, row, wanted, fits + library_search.describe_renamed(row, state))


def _search(weights: Path, state: Mapping[str, Tensor]) -> tuple[Model, int, list[str]]:
    """Look for the network of a checkpoint that fits none of the table in the installed libraries."""
    from pipeline.weights import library_near, library_search, matching

    origin = checkpoint_origin.describe(weights, state) or library_near.describe(state)
    if origin is not None:
        raise DataError(f"{weights}: {origin}")
    found = library_search.find(weights, state)
    if len(found) == 1:
        return found[0].row, found[0].classes, []
    if found:
        listed = ", ".join(f"{each.row.library}/{each.row.name}" for each in found)
        raise DataError(
            f"{weights}: fits {listed}, which have the same weights and may compute otherwise; give --model with the "
            "one it was trained as"
        )
    nearest = matching.describe_nearest(state)
    missing = [library for library in libraries.LIBRARIES if not libraries.is_installed(library)]
    advice = f"; {nearest}" if nearest else ""
    if missing:
        advice += f"; with {' or '.join(missing)} installed ({install_command(missing[0])}), theirs are tried too"
    known = "of the table (`models` lists them)" + ("" if len(missing) == 2 else ", or of the libraries here")
    advice += "" if advice.endswith("to ONNX and give that file") else "; or export it to ONNX and give that file"
    raise DataError(f"{weights}: fits no network {known}{advice}")


def is_onnx(path: Path) -> bool:
    """Tell whether the file is a whole model: by its content, and by its name where that is no file of another kind."""
    try:
        kind = kind_of(path)
    except OSError:  # it is not there, as the reader will say
        return path.suffix == ".onnx"
    return kind is FileKind.ONNX or (kind is FileKind.UNKNOWN and path.suffix == ".onnx")


def _from_converted(wanted: Wanted, weights: Path, kind: str, to_onnx: Callable[[Path, Path], object]) -> FoundNetwork:
    with TemporaryDirectory(prefix="init-") as folder:
        converted = Path(folder) / "model.onnx"
        to_onnx(weights, converted)
        try:
            found = _from_onnx(wanted, converted)
        except DataError as err:
            raise DataError(str(err).replace(str(converted), str(weights))) from err
    section = {**found.section, "type": kind, "checkpoint": str(weights)}
    return replace(found, section=section, note=found.note.replace(str(converted), str(weights)))


def _from_program(wanted: Wanted, weights: Path) -> FoundNetwork:
    beside = read_records(weights, wanted.size)
    usual = torch_programs.input_hw(weights) or (beside.recipe.crop_hw if beside.recipe is not None else None)
    hw = (wanted.size, wanted.size) if wanted.size else usual
    if hw is None:
        keeps_none = kind_of(weights) is FileKind.TORCHSCRIPT
        why = "is TorchScript, which does not keep the size of its input" if keeps_none else "takes images of any size"
        raise DataError(f"{weights}: {why}; give --size")
    with TemporaryDirectory(prefix="init-") as folder:
        converted = Path(folder) / "model.onnx"
        torch_programs.to_onnx(weights, converted, (3, *hw))
        found = _from_onnx(replace(wanted, size=None), converted)
    section = {**found.section, "type": "pytorch", "checkpoint": str(weights)}
    note = found.note.replace(str(converted), str(weights))
    return replace(found, section=section, recipe=beside.recipe, labels=beside.labels, note=note)


def _from_onnx(wanted: Wanted, weights: Path) -> FoundNetwork:
    import onnx

    from pipeline.onnx_models import classifier, files, outputs, signature

    try:
        model = onnx.load(weights, load_external_data=False)
    except Exception as err:  # protobuf meets a damaged file with errors of its own
        raise DataError(f"{weights}: not an ONNX model ({in_a_line(err)})") from None
    name, sizes = signature.describe_input(model, weights)
    classifier.check(weights)
    tidy = files.structure(weights)
    beside = read_records(weights, wanted.size or (sizes[0] if sizes[0] == sizes[1] else None))
    within = read_metadata(model, weights)
    beside = Records(beside.recipe or within.recipe, beside.labels or within.labels)
    usual = beside.recipe.crop_hw if beside.recipe is not None else (None, None)
    height, width = (size or wanted.size or other for size, other in zip(sizes, usual, strict=True))
    if wanted.size is not None and (height, width) != (wanted.size, wanted.size):
        raise DataError(f"{weights}: takes images of {height}x{width} px only, --size says {wanted.size}; leave it out")
    if not height or not width:
        raise DataError(f"{weights}: leaves height and width open; give --size")
    section: dict[str, object] = {
        "type": "onnx",
        "checkpoint": str(weights),
        "shape": {name: [1, 3, height, width]},
    }
    shown = f"{height} px" if height == width else f"{height}x{width} px"
    note = f"{weights}: input {name!r}, {shown}"
    unit = input_units.unit_of(model)
    note += f", {unit.value} that the network normalises itself" if unit else ""
    note += keras_conventions.describe(model, unit, is_recorded=beside.recipe is not None)
    names = [value.name for value in tidy.graph.output]
    is_embedding = len(names) == 1 and _EMBEDDING.search(names[0].lower())
    note += f"; output {names[0]!r} is named like an embedding, which is no scores of classes" if is_embedding else ""
    found = FoundNetwork(section, (height, width), _outputs_of(tidy), beside.recipe, beside.labels, note, unit)
    if len(names) < 2:
        return found
    return replace(found, outputs=tuple(outputs.candidates(tidy)), output_count=len(names))


def _outputs_of(model: onnx.ModelProto) -> int | None:
    """Return how many classes the only output has; None where that is open, or 1000 and a background."""
    dims = model.graph.output[0].type.tensor_type.shape.dim if len(model.graph.output) == 1 else []
    count = math.prod(int(axis.dim_value) for axis in dims[1:]) if len(dims) > 1 else 0
    return count if count > 1 and count != 1 + len(imagenet_classes()) else None
