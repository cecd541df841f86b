"""Int8 image classifiers on CPUs: build a package, classify with it, measure its speed and its accuracy.

>>> import pipeline
>>> built = pipeline.build(pipeline.load_build_file("flowers.yaml"))
>>> with pipeline.Classifier(built.prefix) as classifier:
...     prediction = next(classifier.predict("photos/rose.jpg"))
>>> prediction.labels[0]
'rose'

docs/python.md explains every name. Nothing is printed; warnings go to standard error.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

# ONNX Runtime 1.29 and later report models and runs to Microsoft on Linux too, from the import on, and keep an
# identifier in the home folder; `disable_telemetry_events` comes too late. Read when the library is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from pipeline.building import build
    from pipeline.config.build_file import load_build_file
    from pipeline.errors import PipelineError
    from pipeline.measure.bench import bench
    from pipeline.measure.bench_options import BenchOptions
    from pipeline.measure.evaluate import evaluate
    from pipeline.packages.package import open_package
    from pipeline.run.predict import Classifier
    from pipeline.run.prediction import Prediction

__version__: str

__all__ = [
    "BenchOptions",
    "Classifier",
    "PipelineError",
    "Prediction",
    "__version__",
    "bench",
    "build",
    "evaluate",
    "load_build_file",
    "open_package",
]

_MODULES = {
    "BenchOptions": "pipeline.measure.bench_options",
    "Classifier": "pipeline.run.predict",
    "PipelineError": "pipeline.errors",
    "Prediction": "pipeline.run.prediction",
    "bench": "pipeline.measure.bench",
    "build": "pipeline.building",
    "evaluate": "pipeline.measure.evaluate",
    "load_build_file": "pipeline.config.build_file",
    "open_package": "pipeline.packages.package",
}


def __getattr__(name: str) -> object:
    """Import what is asked for: the command line starts without numpy and the runtimes."""
    import importlib

    if name == "__version__":
        from pipeline.version import version

        return version()
    if name not in _MODULES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
