"""A model at an opset that all libraries here support: older ones are raised to 17, those beyond 21 lowered to 21.

Operators are rewritten here one by one, not by onnx's version converter, which gives a linear Resize of opset 10 the
defaults of opset 11 with other sampling points, changes Hardmax over several axes, and skips If branches.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import defs

from pipeline.errors import DataError
from pipeline.onnx_models import first_opsets, upgrades
from pipeline.onnx_models.graphs import Names, graphs_of, remove_attributes, shapes_of

OPSET = 17
# Later ones are lowered to 21, which recent runtimes support, or to the first after it that has all operators.
# ONNX Runtime 1.32.0 loads 28, and has none of the operators that 28 changed.
_LOWERED_TO, _LATEST = 21, 27
_OLDEST = 7  # `upgrades` begins here; ONNX Runtime gives no guarantee for older opsets


def version_of(model: onnx.ModelProto) -> int:
    """Return the opset of standard ONNX that the model declares."""
    return next(int(opset.version) for opset in model.opset_import if opset.domain == "")


def raise_version(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Return the model at opset 17, or unchanged if it is of a later one. It may be changed in place.

    Args:
        model: whose input shape is declared, since some operators depend on the rank of their input.

    Raises:
        DataError: an operator has no equivalent in opset 17; it is named.
    """
    if version_of(model) < _OLDEST:
        try:
            first_opsets.raise_to_7(model, version_of(model))
        except first_opsets.NotRaisedError as err:
            raise DataError(f"{path}: {err}") from None
    version = version_of(model)
    if version >= OPSET:
        return model
    shapes, names = shapes_of(model), Names(model)
    for graph in reversed(list(graphs_of(model.graph))):  # inner ones first: outer nodes are copied
        try:
            upgrades.upgrade(graph, version, shapes, names)
        except upgrades.NoEqualError as err:
            raise DataError(
                f"{path}: {err} of opset {version} has no equal in opset {OPSET}; export it with opset {OPSET}"
            ) from None
    _declare(model, OPSET)
    return model


def lower(model: onnx.ModelProto, path: Path) -> None:
    """Declare opset 21, or the first after it that has every operator of the model, in place; older ones stay.

    From 21 to 28 the operators that both have differ in the types they take and in attributes whose defaults keep the
    earlier meaning; a model that uses none of these computes the same in both.

    Raises:
        DataError: some operator needs an opset that no runtime here has.
    """
    version = version_of(model)
    if version <= _LOWERED_TO:
        return
    if version > defs.onnx_opset_version():
        raise DataError(
            f"{path}: is of opset {version}, the latest known here is {defs.onnx_opset_version()}; export it with "
            f"opset {_LOWERED_TO}"
        )
    for target in range(_LOWERED_TO, min(version, _LATEST) + 1):
        obstacle = _obstacle(model, version, target)
        if obstacle is None:
            _remove_later_attributes(model, target)
            _declare(model, target)
            return
    raise DataError(
        f"{path}: is of opset {version}, and {obstacle} is in no opset up to {_LATEST}, the latest whose operators "
        f"ONNX Runtime has; export it with opset {_LOWERED_TO}"
    )


def _obstacle(model: onnx.ModelProto, version: int, target: int) -> str | None:
    """Return what the model uses that opset `target` lacks."""
    for graph in graphs_of(model.graph):
        for node in graph.node:
            used = f"{node.op_type} (node {node.name!r})"
            try:
                own = defs.get_schema(node.op_type, version, "")
                other = defs.get_schema(node.op_type, target, "")
            except defs.SchemaError:
                return used
            if len(node.input) > other.max_input or len(node.output) > other.max_output:
                return used
            for attribute in node.attribute:
                if attribute.name not in other.attributes and not _is_default(attribute, own):
                    return f"{used} with {attribute.name}"
    return None


def _is_default(attribute: onnx.AttributeProto, schema: defs.OpSchema) -> bool:
    known = schema.attributes.get(attribute.name)
    if known is None or not known.default_value.name:
        return False
    return bool(onnx.helper.get_attribute_value(attribute) == onnx.helper.get_attribute_value(known.default_value))


def _remove_later_attributes(model: onnx.ModelProto, target: int) -> None:
    for graph in graphs_of(model.graph):
        for node in graph.node:
            known = defs.get_schema(node.op_type, target, "").attributes
            remove_attributes(node, *(each.name for each in node.attribute if each.name not in known))


def _declare(model: onnx.ModelProto, version: int) -> None:
    for opset in model.opset_import:
        if opset.domain == "":
            opset.version = version
