"""The errors a user can fix. Every other exception is our bug and keeps its traceback."""

from __future__ import annotations


class PipelineError(Exception):
    """Something the user can fix. The message says where, what was found, what was wanted, and what to do.

    >>> try:
    ...     pipeline.load_build_file("flowers.yaml", ["backend.quantize.percentile=0.9999"])
    ... except pipeline.PipelineError as error:
    ...     print(error)
    --set backend.quantize.percentile: must be in (50, 100], got 0.9999
    """


class ConfigError(PipelineError):
    """A build file, vdsp_params file or flag is wrong. May hold several faults, one a line."""


class DataError(PipelineError):
    """An image, list, label file, checkpoint or result is missing or wrong."""


class ArtefactError(PipelineError):
    """A package or a stage's output is missing, incomplete or changed."""


class BackendError(PipelineError):
    """A runtime is missing, or refused a model."""
