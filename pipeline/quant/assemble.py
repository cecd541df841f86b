"""The int8 model, from what calibration and rounding found."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from pipeline.quant import qdq
from pipeline.quant.bias_correction import Float64, correct_biases
from pipeline.quant.float_sums import keep_sums_in_float
from pipeline.quant.int8_weights import install_weights
from pipeline.quant.qmath import Range
from pipeline.quant.rounding import Rounded
from pipeline.runtimes.float_arithmetic import allow_bfloat16
from pipeline.runtimes.own_placement import add_placement


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything an int8 model is made of beside the float32 one."""

    ranges: Mapping[str, Range]  # of every observed tensor
    per_channel: bool
    rounded: Mapping[str, Rounded] = field(default_factory=dict)  # by layer; others are rounded to the nearest
    means: Mapping[str, Float64] | None = None  # mean inputs of the layers, for bias correction; None: no correction
    float_layers: Collection[str] = ()
    float_activations: frozenset[str] = frozenset()  # observed ones, and with them the layers that read them
    gates_in_float: bool = False  # see `float_parts`
    onnxruntime_gates: bool = False  # they are int8 in ONNX Runtime nevertheless, see `own_placement`
    scores_in_int8: bool = False  # see `attention_scores`
    float_sums: tuple[str, ...] = ()  # additions whose sums stay in float32, see `float_sums`
    bfloat16: bool = False  # where a runtime may compute what is float32, see `runtimes.float_arithmetic`

    def leaving(self, activations: Collection[str]) -> Parts:
        """Return the parts of a model that leaves more activations in float32."""
        return replace(self, float_activations=self.float_activations | frozenset(activations))

    def adding_in_float(self, additions: Iterable[str]) -> Parts:
        """Return the parts of a model in which more additions, names of nodes, sum in float32."""
        return replace(self, float_sums=tuple(dict.fromkeys([*self.float_sums, *additions])))


@dataclass(frozen=True)
class Assembled:
    """The int8 model and what was done to it."""

    model: onnx.ModelProto
    rounded_weights: int  # layers
    corrected_biases: int


def assemble(float32: onnx.ModelProto, parts: Parts) -> Assembled:
    """Return the QDQ model of a float32 one, which is not changed; raises as `qdq.insert_qdq`."""
    made = _assemble(float32, parts)
    if parts.gates_in_float and parts.onnxruntime_gates:
        add_placement(made.model, _assemble(float32, replace(parts, gates_in_float=False)).model)
    return made


def _assemble(float32: onnx.ModelProto, parts: Parts) -> Assembled:
    model = qdq.insert_qdq(
        float32,
        parts.ranges,
        per_channel=parts.per_channel,
        float_layers=parts.float_layers,
        float_activations=parts.float_activations,
        gates_in_float=parts.gates_in_float,
        scores_in_int8=parts.scores_in_int8,
        installed_later=parts.rounded.keys(),
    )
    keep_sums_in_float(model, float32, parts.float_sums)
    rounded = {name: (each.weights, each.scales) for name, each in parts.rounded.items()}
    installed = install_weights(model, float32, rounded)
    corrected: dict[str, float] = {}
    if parts.means is not None:
        errors = {name: parts.rounded[name].mean_error for name in installed}
        known = {name: np.where(installed[name], error, np.nan) for name, error in errors.items() if error is not None}
        corrected = correct_biases(model, float32, parts.means, known)
    if parts.bfloat16:
        allow_bfloat16(model)
    return Assembled(model, len(installed), len(corrected))
