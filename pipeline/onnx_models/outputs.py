"""Output of an ONNX classifier: the scores of the classes, among what a file gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from pipeline.errors import DataError
from pipeline.onnx_models.graphs import makers_of, remove_unused, shapes_of
from pipeline.onnx_models.signature import FLOATS, kind_of, shown

_MOVES = ("Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")


def choose_output(model: onnx.ModelProto, path: Path, output: str | None) -> None:
    """Reduce the model to one output, the scores, and what it depends on; in place.

    Args:
        output: its name; None where there is only one.

    Raises:
        DataError: there are several and none is named, there is none of that name, or it holds no scores.
    """
    outputs = {value.name: value for value in model.graph.output}
    listed = ", ".join(f"{name} {shown(value)}" for name, value in outputs.items())
    if output is not None and output not in outputs:
        raise DataError(f"{path}: frontend.output: no output {output!r}; the model has {listed}")
    if output is None and len(outputs) != 1:
        raise DataError(
            f"{path}: {len(outputs)} outputs ({listed}); name the one with the scores of the classes, as in "
            f"--set frontend.output={candidates(model)[-1].name} of build"
        )
    chosen = onnx.ValueInfoProto()
    chosen.CopyFrom(outputs[output or next(iter(outputs))])
    if not _may_be_scores(chosen):
        maker = next((node.op_type for node in model.graph.node if chosen.name in node.output), "the input")
        raise DataError(
            f"{path}: output {chosen.name!r} of {maker} is {kind_of(chosen)}; wanted the scores of the classes as "
            "float32: export the network without what follows them"
        )
    chooser = _chooser(model, chosen.name)
    if chooser is not None:
        raise DataError(
            f"{path}: output {chosen.name!r} is made by {chooser}, which leaves no score of each class; export the "
            "network without what follows the scores"
        )
    del model.graph.output[:]
    model.graph.output.append(chosen)
    if any(chosen.name in node.output for node in model.graph.node):
        remove_unused(model.graph)


def _may_be_scores(value: onnx.ValueInfoProto) -> bool:
    """Tell whether an output is a tensor of floats, or of a type that the file does not say."""
    kind = value.type.WhichOneof("value")
    return kind is None or (
        kind == "tensor_type" and value.type.tensor_type.elem_type in (TensorProto.UNDEFINED, *FLOATS)
    )


def _chooser(model: onnx.ModelProto, name: str) -> str | None:
    """Return the operator that chose among the scores [N, classes]; None where none did, or more was made of it."""
    makers = makers_of(model.graph)
    while (node := makers.get(name)) is not None and node.op_type in _MOVES:
        name = node.input[0]
    if node is None or node.op_type not in ("ArgMax", "ArgMin", "TopK"):
        return None
    return str(node.op_type) if len(shapes_of(model).get(node.input[0], [])) == 2 else None


@dataclass(frozen=True)
class Candidate:
    """An output that may hold the scores."""

    name: str
    classes: int | None  # None where the file does not say


def candidates(model: onnx.ModelProto) -> list[Candidate]:
    """Return the outputs that may be the scores, the most likely one last: [N, classes], which no operator reads.

    Those of an auxiliary head, which is for training, and what was chosen among the scores, as by TopK, are left out
    where there are others. There is at least one.
    """
    graph = model.graph
    read = {name for node in graph.node for name in node.input}
    shapes = shapes_of(model)
    kept = list(graph.output)
    for likely in (  # each where it leaves any
        {value.name for value in kept if _may_be_scores(value)},
        {value.name for value in kept if _classes(shapes.get(value.name)) != 0},
        {value.name for value in kept if _chooser(model, value.name) is None},
        {value.name for value in kept if value.name not in read},
        {value.name for value in kept if "aux" not in value.name.lower()},
    ):
        kept = [value for value in kept if value.name in likely] or kept
    return [Candidate(str(value.name), _classes(shapes.get(value.name)) or None) for value in kept]


def _classes(shape: Sequence[int | str | None] | None) -> int | None:
    """Return the number of classes of an output, None where it is open, and 0 where it is no score of each class."""
    if not shape:
        return None
    if len(shape) == 1:
        return 0
    known = [size for size in shape[1:] if isinstance(size, int)]
    if len(known) < len(shape) - 1:
        return None if len(shape) == 2 else 0
    classes = [size for size in known if size > 1]
    return classes[0] if len(classes) == 1 else 0
