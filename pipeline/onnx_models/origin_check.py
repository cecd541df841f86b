"""The float32 model compared with the file, or the network, that it was made of: a check that both agree."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from pipeline.errors import DataError
from pipeline.onnx_models.raw_file import RawFile
from pipeline.onnx_models.run import relative_error, run_in_chunks

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tolerance:
    """Largest difference, as a share of the largest output: up to `good` rounding, beyond `wrong` another function.

    Measured on files of opset 9 to 13 and in torch, against their float32 models: at most 1.4e-6, on ResNets of 18, 50
    layers with trained weights (16 images), of 152, 200 layers and an iResNet of 200 with random ones (4 images).
    A linear Upsample that samples at other points: 0.17 (one of a small network). Networks that amplify rounding differ
    more, and `with_own_rounding` allows them more.
    """

    good: float
    wrong: float


SINGLE = Tolerance(good=1e-5, wrong=2e-2)
# A file in half precision rounds each activation to 1/2048 of its value, and its float32 model does not: 3.6e-4 in a
# network of three layers.
HALF = Tolerance(good=2e-2, wrong=1e-1)
# Times the difference between two float32 computations of one model. Between torch and ONNX Runtime it was 0.7 to 2.1
# times, on random networks of nine families (8 images), whose own differences go from 2.6e-7 to 5.6e-5 (inception_v3).
_OWN_ROUNDING = 8.0


@dataclass(frozen=True)
class OriginCheck:
    """The float32 model's outputs compared with those of its origin: `given.json`."""

    source: str  # "file", "torch" or "keras"
    images: int
    same_answers: int
    sqnr_db: float | None  # None: no difference
    largest_difference: float
    largest_output: float
    verdict: str  # "good" or "suspicious"
    cause: str | None = None

    def as_dict(self) -> dict[str, object]:
        """Return what is written to the artefact."""
        return asdict(self)


def compare(source: str, expected: Float32, found: Float32, tolerance: Tolerance = SINGLE) -> tuple[OriginCheck, bool]:
    """Compare two outputs [images, classes]; return the comparison without a cause, and whether the functions differ.

    Figures are rounded, so that equal builds on one machine write equal bytes.
    """
    error = found.astype(np.float64) - expected
    largest = float(np.abs(expected).max())
    difference = float(np.abs(error).max())
    share = difference / max(largest, 1e-12)
    noise, signal = float(np.square(error).sum()), float(np.square(expected.astype(np.float64)).sum())
    is_good = share <= tolerance.good  # False for NaN too
    given = OriginCheck(
        source=source,
        images=len(expected),
        same_answers=int((expected.argmax(axis=1) == found.argmax(axis=1)).sum()),
        sqnr_db=round(10 * math.log10(max(signal, 1e-300) / noise), 1) if noise > 0 else None,
        largest_difference=_rounded(difference),
        largest_output=_rounded(largest),
        verdict="good" if is_good else "suspicious",
    )
    return given, not share <= tolerance.wrong


def with_own_rounding(
    tolerance: Tolerance, model: onnx.ModelProto, images_nchw: Float32, expected: Float32, found: Float32
) -> Tolerance:
    """Return a tolerance for a network that amplifies rounding: what float32 itself does to the model's outputs.

    That is how far they are from those of the same model computed node by node, whose sums and fusions are others. It
    is computed only where the difference is beyond the tolerance, and never allows more than a tenth of `wrong`.

    Args:
        found: the model's outputs for the images, [images, classes]; `expected` what they are compared with.
    """
    if expected.shape != found.shape or relative_error(expected, found) <= tolerance.good:
        return tolerance
    own = _OWN_ROUNDING * relative_error(found, run_in_chunks(model, images_nchw, optimized=False))
    return replace(tolerance, good=max(tolerance.good, min(own, tolerance.wrong / 10)))


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")


def check_origin(path: Path, output: str | None, model: onnx.ModelProto, images_nchw: Float32) -> OriginCheck:
    """Compare the float32 model with the file that it was made of.

    Args:
        output: name of the file's output with the scores; None where there is one.
        model: what `onnx_classifier.load` made of it.
        images_nchw: float32 [N, C, H, W], prepared images.

    Raises:
        DataError: the model computes another function; the operator that changed is named where it is found.
    """
    try:
        file = RawFile(path, output)
        images = file.representable(images_nchw[: file.most_images])
        expected = file.answers(images)
    except DataError as err:
        cause = f"{err}: nothing shows that the float32 model means the same; export the network again with opset 17"
        return OriginCheck("file", 0, 0, None, 0.0, 0.0, "suspicious", cause)
    file.close()
    found = run_in_chunks(model, images)
    tolerance = with_own_rounding(HALF if file.is_half else SINGLE, model, images, expected, found)
    if expected.shape != found.shape:
        raise DataError(
            f"{path}: the file gives {expected.shape[1]} scores an image as it is, and the model made of it "
            f"{found.shape[1]}; export it again with opset 17"
        )
    given, is_another = compare("file", expected, found, tolerance)
    if given.verdict == "good":
        return given
    operator = file.first_change(model, images[0], tolerance.good)
    where = f"; the first operator that changed is {operator}" if operator else ""
    what = (
        f"differs from the file by {given.largest_difference:.2g} on outputs of up to {given.largest_output:.2g} "
        f"({given.same_answers} of {given.images} answers the same){where}"
    )
    if is_another:
        raise DataError(f"{path}: the float32 model made of it {what}; export it again with opset 17, and report this")
    cause = f"the float32 model {what}, which is more than rounding; compare with an export of opset 17"
    return OriginCheck(**{**asdict(given), "cause": cause})
