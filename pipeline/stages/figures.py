"""What a stage measured of itself, from its artefact, in words."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.stages.artefact_names import FIGURES
from pipeline.terminal import console

# In the line of the stage, and with --verbose.
_IN_LINE = {"images": "{} images", "layers": "{} layers", "resumed_at": "resumed at image {}", "input": "reads {}"}
_IN_DETAIL = {
    "tensors": "{} activations observed",
    "streams": "{} groups of channels changed",
    "widest": "channels scaled by up to {}",
    "peak_memory_mib": "up to {} MiB of memory",
}


def describe(folder: Path) -> list[str]:
    """Return what a stage measured of itself, in words, for its line; the rest is printed with --verbose.

    Args:
        folder: the stage's artefact.
    """
    path = folder / FIGURES
    if not path.is_file():
        return []
    figures = json.loads(path.read_text(encoding="utf-8"))
    known = {key: value for key, value in figures.items() if value}
    for key, words in _IN_DETAIL.items():
        if key in known:
            console.detail(words.format(known[key]))
    return [words.format(known[key]) for key, words in _IN_LINE.items() if key in known]
