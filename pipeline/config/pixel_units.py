"""Mean and std of a 0..1 image, or of a 0..255 image: one taken for the other makes all images look alike."""

from __future__ import annotations

from pipeline.config.schema import Section


def check_unit(
    section: Section,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    of_share: bool,
    other: str,
    keys: tuple[str, str] = ("mean", "std"),
) -> None:
    """Add a fault where mean and std are of an image of 0..255 in the place of one of 0..1, or the other way round.

    Args:
        of_share: they are said to be of 0..1.
        other: how the section says the other unit.
    """
    wrong = next((key for key, values in zip(keys, (mean, std), strict=True) if max(values) > 1.0), None)
    if of_share and wrong is not None:
        found = mean if wrong == keys[0] else std
        section.fault(wrong, f"expected numbers of a 0..1 image, got {list(found)}; a 0..255 image has {other}")
    if not of_share and wrong is None and max(mean) > 0.0:
        section.fault(keys[0], f"expected numbers of a 0..255 image, got {list(mean)}; a 0..1 image has {other}")
