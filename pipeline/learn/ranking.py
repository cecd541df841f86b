"""What each activation costs: its own quantizer, and the int8 weights of the layers that read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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

Divergences = dict[tuple[Kind, str], float]  # that each quantizer causes alone; weights by layer


@dataclass(frozen=True)
class Costs:
    """What quantizers cost, in nats per image."""

    rounding: dict[str, float]  # by quantized activation, what its own quantizer does
    weights: dict[str, float]  # by activation, what the int8 weights of the layers that read it do


class _NotInTorchError(Exception):
    """The gradients of a network cannot be had."""


def measure_costs(
    float32: onnx.ModelProto,
    int8: onnx.ModelProto,
    ranges: Mapping[str, Range],
    images: Sequence[Prepared],
    expected: npt.NDArray[np.float32],
) -> Costs:
    """Return what each quantized activation costs.

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
    rounding = {name: cost for (kind, name), cost in costs.items() if kind is Kind.ACTIVATION}
    weights = dict.fromkeys(rounding, 0.0)
    for node in float32.graph.node:
        source = sources.get(node.input[0]) if node.op_type in WEIGHTED else None
        if source in weights:
            weights[source] += costs.get((Kind.WEIGHTS, node.name), 0.0)
    return Costs(rounding, weights)


def _by_gradients(
    float32: onnx.ModelProto,
    int8: onnx.ModelProto,
    ranges: Mapping[str, Range],
    images: Sequence[Prepared],
    expected: npt.NDArray[np.float32],
) -> Divergences:
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
) -> Divergences:
    sensitivity = Sensitivity(float32, int8, ranges)
    with progress_bar(len(sensitivity), "sensitivity", "quantizer", span=(0, 0.2)) as progress:
        return {(cost.kind, cost.name): cost.kl for cost in sensitivity.measure(images, progress.update)}
