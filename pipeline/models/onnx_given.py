"""The float32 model beside the file, or the network, that it was made of: what shows that its meaning was kept."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from pipeline.errors import DataError
from pipeline.models.onnx_raw import RawFile
from pipeline.models.onnx_run import run_in_chunks

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tolerance:
    """Largest difference, as a share of the largest output: up to `good` rounding, beyond `wrong` another function.

    Measured as the largest difference between a file and its float32 model over the tests' operators, tiny networks,
    ResNets of 18 to 101 layers and a ViT: 1e-7 to 3e-5, with outputs of up to 20. Another sampling point of one
    Resize, or another axis of one softmax: 5e-2 and more.
    """

    good: float
    wrong: float


SINGLE = Tolerance(good=1e-3, wrong=2e-2)
# A file that computes in half precision rounds each activation to 1/2048 of it, and its float32 model does not.
HALF = Tolerance(good=2e-2, wrong=1e-1)


@dataclass(frozen=True)
class Given:
    """How the float32 model answers beside what it was made of: `given.json`."""

    source: str  # "file" or "torch"
    images: int
    same_answers: int
    sqnr_db: float | None  # None: equal
    largest_difference: float
    largest_output: float
    verdict: str  # "good" or "suspicious"
    cause: str | None = None

    def as_dict(self) -> dict[str, object]:
        """Return what is written to the artefact."""
        return asdict(self)


def compare(source: str, expected: Float32, found: Float32, tolerance: Tolerance = SINGLE) -> tuple[Given, bool]:
    """Return the comparison of two answers [images, classes] without a cause, and whether it is of two functions.

    Figures are rounded, so that equal builds on one machine write equal bytes.
    """
    error = found.astype(np.float64) - expected
    largest = float(np.abs(expected).max())
    difference = float(np.abs(error).max())
    share = difference / max(largest, 1e-12)
    noise, signal = float(np.square(error).sum()), float(np.square(expected.astype(np.float64)).sum())
    is_good = share <= tolerance.good  # False for NaN too
    given = Given(
        source=source,
        images=len(expected),
        same_answers=int((expected.argmax(axis=1) == found.argmax(axis=1)).sum()),
        sqnr_db=round(10 * math.log10(max(signal, 1e-300) / noise), 1) if noise > 0 else None,
        largest_difference=_rounded(difference),
        largest_output=_rounded(largest),
        verdict="good" if is_good else "suspicious",
    )
    return given, not share <= tolerance.wrong


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")


def check_given(
    path: Path, output: str | None, model: onnx.ModelProto, images_nchw: Float32, cut: int | None = None
) -> Given:
    """Compare the float32 model with the file that it was made of.

    Args:
        output: name of the file's output with the scores; None where there is one.
        model: what `onnx_classifier.load` made of it.
        images_nchw: float32 [N, C, H, W], prepared images.
        cut: index of the class, 0 or -1, that was cut off the model.

    Raises:
        DataError: the model computes another function; the operator that changed is named where it is found.
    """
    try:
        file = RawFile(path, output)
        images = images_nchw[: file.most_images]
        expected = file.answers(images)
    except DataError as err:
        cause = f"{err}: nothing shows that the float32 model means the same; export the network again with opset 17"
        return Given("file", 0, 0, None, 0.0, 0.0, "suspicious", cause)
    found = run_in_chunks(model, images)
    tolerance = HALF if file.is_half else SINGLE
    if cut is not None:
        expected = _without_class(expected, cut, found)
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
    return Given(**{**asdict(given), "cause": cause})


def _without_class(expected: Float32, cut: int, found: Float32) -> Float32:
    """Return the file's scores without one class; probabilities add up to 1 again, as those of the model do."""
    kept = expected[:, 1:] if cut == 0 else expected[:, :-1]
    if (expected >= 0).all() and np.allclose(expected.sum(axis=1), 1, atol=1e-2):
        kept = kept / kept.sum(axis=1, keepdims=True)
    elif (expected <= 0).all() and np.allclose(np.exp(expected).sum(axis=1), 1, atol=1e-2):
        kept = kept - np.log(np.exp(kept).sum(axis=1, keepdims=True))
    return kept
