"""What leaving an activation in float32 buys: its own quantizer, and the int8 weights of the layers that read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx

from pipeline.data.calibration_list import choose_evenly
from pipeline.data.preprocess import Prepared
from pipeline.quant import placement
from pipeline.quant.graphs import WEIGHTED
from pipeline.quant.qmath import Range
from pipeline.quant.sensitivity import Kind, Sensitivity
from pipeline.terminal import console
from pipeline.terminal.progress import progress_bar

_IMAGES = 64  # whose gradients are taken: few images, those of doubtful answers, have most of the divergence
_IMAGES_RUN = 16  # where the network is run for each quantizer

Costs = dict[tuple[Kind, str], float]  # divergence that each quantizer causes alone; weights by layer


class _NotInTorchError(Exception):
    """The gradients of a network cannot be had."""


def measure_costs(
    float32: onnx.ModelProto,
    int8: onnx.ModelProto,
    ranges: Mapping[str, Range],
    images: Sequence[Prepared],
    expected: npt.NDArray[np.float32],
) -> dict[str, float]:
    """Return by quantized activation the divergence of the answers, nats per image, that would go with its quantizer.

    From gradients, or, of a network that torch cannot compute here, by running it for each quantizer.

    Args:
        float32: the model.
        int8: its QDQ model.
        ranges: by name for every tensor of `placement.observed_tensors(float32)`.
        images: prepared, [C, H, W].
        expected: float32 [images, classes], what the model answers.
    """
    shown = choose_evenly(len(images), _IMAGES)
    try:
        costs = _by_gradients(float32, int8, ranges, [images[at] for at in shown], expected[shown])
    except _NotInTorchError as err:
        console.detail(f"the network is run for each quantizer, since gradients are not known: {err}")
        costs = _by_runs(float32, int8, ranges, [images[at] for at in choose_evenly(len(images), _IMAGES_RUN)])
    sources = placement.range_sources(float32)
    found = {name: cost for (kind, name), cost in costs.items() if kind is Kind.ACTIVATION}
    for node in float32.graph.node:
        source = sources.get(node.input[0]) if node.op_type in WEIGHTED else None
        if source in found:
            found[source] += costs.get((Kind.WEIGHTS, node.name), 0.0)
    return found


def _by_gradients(
    float32: onnx.ModelProto,
    int8: onnx.ModelProto,
    ranges: Mapping[str, Range],
    images: Sequence[Prepared],
    expected: npt.NDArray[np.float32],
) -> Costs:
    """Raises _NotInTorchError: there is no torch, or it does not compute this network."""
    try:
        from pipeline.learn import fisher
        from pipeline.learn.operators import UnsupportedError
        from pipeline.models.torch_threads import one_thread
    except ImportError as err:
        raise _NotInTorchError(str(err)) from err
    with progress_bar(len(images), "sensitivity", "img", span=(0, 0.2)) as progress, one_thread():
        try:
            return fisher.divergences(float32, int8, ranges, images, expected, progress.update)
        except UnsupportedError as err:
            raise _NotInTorchError(str(err)) from err


def _by_runs(
    float32: onnx.ModelProto, int8: onnx.ModelProto, ranges: Mapping[str, Range], images: Sequence[Prepared]
) -> Costs:
    sensitivity = Sensitivity(float32, int8, ranges)
    with progress_bar(len(sensitivity), "sensitivity", "quantizer", span=(0, 0.2)) as progress:
        return {(cost.kind, cost.name): cost.kl for cost in sensitivity.measure(images, progress.update)}
