"""Section `accuracy:` of a build file."""

from __future__ import annotations

from pipeline.config.build_config import AccuracyConfig
from pipeline.config.schema import Section


def read_accuracy(parent: Section) -> AccuracyConfig | None:
    """Return the section of a build file's root, or None where it is absent; its faults go to the document."""
    if parent.values.get("accuracy") is None:
        parent.take("accuracy")
        return None
    section = parent.section("accuracy")
    config = AccuracyConfig(
        max_drop=section.number_within("max_drop", None, "points in [0, 100]", lambda value: 0 <= value <= 100),
        min_agreement=section.number_within("min_agreement", None, "% in (0, 100]", lambda value: 0 < value <= 100),
        min_speed=section.number_within(
            "min_speed", AccuracyConfig.min_speed, "a share in (0, 1]", lambda value: 0 < value <= 1
        ),
        budget_minutes=section.number_within(
            "budget_minutes", AccuracyConfig.budget_minutes, "minutes > 0", lambda value: value > 0
        ),
    )
    if not any(section.values.get(key) is not None for key in ("max_drop", "min_agreement")):
        parent.fault("accuracy", "has no goal; give max_drop (points of top-1) or min_agreement (% of answers)")
    section.done()
    return config
