"""Int8 image classifiers on CPUs. In Python: `from pipeline import Classifier`; all else is the command line's."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.errors import PipelineError
    from pipeline.run.predict import Classifier
    from pipeline.run.prediction import Prediction

__all__ = ["Classifier", "PipelineError", "Prediction"]


def __getattr__(name: str) -> object:
    """Import what is asked for: the command line starts without numpy and the runtimes."""
    import importlib

    modules = {
        "Classifier": "pipeline.run.predict",
        "Prediction": "pipeline.run.prediction",
        "PipelineError": "pipeline.errors",
    }
    if name not in modules:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(importlib.import_module(modules[name]), name)
