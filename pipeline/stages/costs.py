"""About how long each stage takes, for the time that is left of a build. No result depends on it.

Seconds are those of 2 cores of an AMD EPYC (Zen 5), half of the CPU seconds of a build of resnet18. What a
run measures of its own stages corrects them (`terminal.remaining`), so that only their ratios matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from pipeline.config.choices import Frontend
from pipeline.config.sections import FrontendConfig
from pipeline.data.calibration_list import EQUALIZING_IMAGES, FITTING_IMAGES
from pipeline.errors import is_our_bug
from pipeline.models import zoo
from pipeline.onnx_models.files import structure
from pipeline.proof.agreement import choose_further
from pipeline.quant.work import COLLECTING, NetworkWork, measure_network
from pipeline.terminal import console

_CORES = 2  # of the machine that the seconds are of


# Where nothing is known: resnet50.
_USUAL = NetworkWork.guess(4.1e9, 25.6e6)


@dataclass(frozen=True, kw_only=True)
class BuildWork:
    """What a build has to do."""

    network: NetworkWork
    images: int  # calibration images
    evaluation_images: int
    makes_weights: bool  # of the sample
    trial_s: float
    tuning_s: float  # that the search for accuracy may take, 0: there is none
    cores: int
    bfloat16: bool  # activations are read in it; else in float32
    rounds: bool = True  # stage `round` runs: without bfloat16, an int8 model can then read further images


def _round(work: BuildWork) -> float:
    network = work.network
    collecting = COLLECTING * (network.macs + 0.003 * network.rounding)  # an image; see stages/rounding.py
    further = len(choose_further(work.images)) if work.tuning_s else 0
    return 0.002e-9 * ((_fitting(work) + further) * collecting + network.rounding)


def _reading(work: BuildWork, preparing: float) -> float:
    """Return what reading the activations of an image takes, beside what preparing and counting it does."""
    return preparing + (0.0028e-9 if work.bfloat16 else 0.0055e-9) * work.network.macs


def _reading_others(work: BuildWork) -> float:
    """Return what an image takes that rounding has not counted; of a network with gates or attention, more."""
    if work.rounds and not work.bfloat16:
        return 0.0016 + 0.0017e-9 * work.network.macs
    return _reading(work, 0.0022)


def _fitting(work: BuildWork) -> int:
    return min(work.images, FITTING_IMAGES)


_SECONDS: Mapping[str, Callable[[BuildWork], float]] = {
    "sample": lambda work: 3.0,
    "calibset": lambda work: 0.2 + 0.0006 * work.images,
    "image2npz": lambda work: 0.5 + 0.004 * work.evaluation_images,
    "export": lambda work: (
        0.6 + 0.1e-6 * work.network.params + (0.0005e-9 * work.images * work.network.macs if work.makes_weights else 0)
    ),
    "pixels": lambda work: 0.03e-6 * work.network.params,
    "equalize": lambda work: (
        0.035e-6 * work.network.params + min(work.images, EQUALIZING_IMAGES) * _reading(work, 0.0012)
    ),
    "arrange": lambda work: 0.15e-6 * work.network.params,
    # Without the images that rounding has counted.
    "calibrate": lambda work: 0.3 + (work.images - _fitting(work)) * _reading_others(work),
    "thresholds": lambda work: 0.5,
    "round": _round,
    # Gates, which are measured both ways, are not known before the export; most networks have none.
    "place": lambda work: 0.01e-6 * work.network.params,
    # 200 images in float32; three models or four, each made and run on them.
    "ranges": lambda work: 2 + 3 * (0.6 + 0.03e-6 * work.network.params) + 200 * _reading(work, 0.001),
    "tune": lambda work: work.tuning_s / 2,  # it ends where the goal is reached
    "quantize": lambda work: 0.075e-6 * work.network.params,
    "convert": lambda work: 0.03e-6 * work.network.params,
    "prove": lambda work: 3 + 64 * 0.007e-9 * work.network.macs,
    "trial": lambda work: work.trial_s + 0.1e-6 * work.network.params,
    "package": lambda work: 0.1,
}
# Stages that take as long on any number of cores.
_SERIAL = frozenset(
    {"pixels", "arrange", "thresholds", "quantize", "convert", "trial", "tune", "ranges", "place", "package"}
)


def expected_seconds(stages: Iterable[str], work: BuildWork) -> dict[str, float]:
    """Return about how many seconds each of some stages takes."""
    scale = _CORES / max(1, min(work.cores, 8))  # beyond, one image at a time gains little
    return {name: _SECONDS[name](work) * (1.0 if name in _SERIAL else scale) for name in stages}


def guess_work(frontend: FrontendConfig) -> NetworkWork:
    """Return about what a network costs, before it is exported."""
    try:
        if frontend.type is Frontend.ONNX and frontend.checkpoint is not None:
            return measure_network(structure(frontend.checkpoint))
        from pipeline.models import cost

        row = zoo.find_model(frontend.type.value, frontend.model or "")
        known = cost.estimate(row)
    except Exception as err:
        if is_our_bug(err):
            raise
        console.detail(
            f"the time that is left is a guess: {err}"
        )  # whatever is wrong with the file, the export says it
        return _USUAL
    height, width = frontend.chw[1:]
    return NetworkWork.guess(known.macs * height * width / row.size**2, known.params)
