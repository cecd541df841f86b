"""How a model made from a float32 one answers beside it, in every installed runtime. Builds keep no model unchecked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline import preprocess
from pipeline.config.vdsp import PreprocessSpec
from pipeline.data.imagenet import Sample
from pipeline.errors import DataError
from pipeline.hardware import available_cores
from pipeline.progress import progress_bar
from pipeline.runtimes.base import Batch, Runtime, installed_runtimes, open_backend, place

IMAGES = 64  # that a model is checked on
_BATCH = 8
# Sound int8 models of ResNets agree with float32 on 95% and more; below this the model is of no use to anybody.
_LEAST = 0.5

Float32 = npt.NDArray[np.float32]


def prepare(images: Sequence[Sample], spec: PreprocessSpec, *, raw: bool = False) -> list[Batch]:
    """Return the first `IMAGES` images in batches [n, C, H, W], float32, or `raw` uint8 pixels."""
    chosen = images[:IMAGES]
    return [
        np.stack([preprocess.load(spec, image.source.content(), raw=raw) for image in part])
        for part in (chosen[start : start + _BATCH] for start in range(0, len(chosen), _BATCH))
    ]


def noise(spec: PreprocessSpec) -> list[Batch]:
    """Return one batch of synthetic images, where a build has no others."""
    return [np.stack([preprocess.apply(spec, preprocess.synthetic(spec, seed)) for seed in range(_BATCH)])]


def check(
    model: Path, batches: Sequence[Batch], expected: Float32, *, what: str, advice: str
) -> dict[str, dict[str, int]]:
    """Return for each installed runtime how many images get the answer of float32.

    Args:
        model: takes batches of up to 8 images.
        batches: as `prepare` gave them.
        expected: float32 [images, classes], the float32 model's outputs.
        what, advice: name the model in the error, and what to change.

    Raises:
        DataError: an output is not finite, or most answers differ: the model is of no use.
    """
    found = {}
    for runtime in installed_runtimes():
        outputs = infer(runtime, model, batches)
        agreeing = int((outputs.argmax(axis=1) == expected.argmax(axis=1)).sum())
        if not np.isfinite(outputs).all() or agreeing < _LEAST * len(expected):
            raise DataError(
                f"the {what} model collapsed: in {runtime.value} it gives the answer of float32 on {agreeing} of "
                f"{len(expected)} calibration images; {advice}"
            )
        found[runtime.value] = {"images": len(expected), "agreeing": agreeing}
    return found


def infer(runtime: Runtime, model: Path, batches: Sequence[Batch]) -> Float32:
    """Return the model's outputs, float32 [images, classes]."""
    placement = place(1, available_cores())
    outputs = []
    with (
        open_backend(runtime, model, batch=_BATCH, placement=placement) as backend,
        progress_bar(sum(map(len, batches)), f"check in {runtime.value}", "img") as progress,
    ):
        for batch in batches:
            outputs.append(backend.infer(batch))
            progress.update(len(batch))
    return np.concatenate(outputs)
