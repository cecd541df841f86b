"""Images of 16 bits a channel that hold smaller numbers, as cameras and scanners of 10 or 12 bits write them."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image

from pipeline.data.sources import ImageSource

_LARGEST = 4095  # of 12 bits: 15 of 255 once the upper 8 of 16 are taken
_UPPER = 8  # bits that an image of 8 bits has of those of 16


def has_16_bits(image: Image.Image) -> bool:
    """Tell whether a file has 16 bits a channel; of one that is loaded already, only grey ones tell."""
    return image.mode.startswith("I;16") or any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def largest_if_dark(image: Image.Image) -> int | None:
    """Return the largest value of a loaded image of 16 bits a channel, if it fits into 12; None where it does not.

    Of colours Pillow keeps the upper 8 bits alone, of which the largest value that they can mean is returned. An image
    that is black altogether is what it is.
    """
    grey = image.mode.startswith("I")
    bands = image.getextrema() if len(image.getbands()) > 1 else (image.getextrema(),)
    colours = bands[:-1] if image.mode in ("RGBA", "LA") else bands
    largest = int(max(band[1] for band in colours))  # type: ignore[arg-type, index]  # (lowest, highest) of each band
    if not largest:
        return None
    largest = largest if grey else (largest + 1 << _UPPER) - 1
    return largest if largest <= _LARGEST else None


def describe_dark(dark: Mapping[ImageSource, int], images: int) -> str:
    """Return a line that says which images come out nearly black, and what to do.

    Args:
        dark: the largest value of each.
        images: that were looked at.
    """
    first = min(dark, key=lambda source: source.name)
    return (
        f"{len(dark)} of {images} images have 16 bits a channel and no value above {_LARGEST} (first: {first}, largest "
        f"{dark[first]}): the upper 8 bits are taken, as OpenCV does, so that they are nearly black; save them as 8 "
        "bits, scaled as they were for the training"
    )
