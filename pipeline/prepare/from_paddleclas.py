"""Init with a config of PaddleClas: a build file that says what the config says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.config.build_file import load_build_file
from pipeline.config.documents import apply_override
from pipeline.config.paddleclas import read_config
from pipeline.config.schema import Document
from pipeline.errors import ConfigError
from pipeline.prepare.found_network import is_onnx
from pipeline.prepare.new_build_file import check_out, written_to
from pipeline.weights import paddle_inference


def write(given_out: Path, config: Path, overrides: Sequence[str], keys: Mapping[str, object]) -> list[str]:
    """Write a build file; return what the user should know of it, a line each.

    Args:
        given_out: the file, - for standard output.
        config: of PaddleClas.
        overrides: `Section.key=value` of the config.
        keys: of the build file, which win over the config; None: not given.

    Raises:
        ConfigError: the file is there already, the config is wrong, or says what cannot be built here.
    """
    out = check_out(given_out)
    given = {key: str(value) for key, value in keys.items() if value is not None}
    document = read_config(config, overrides, with_images="frontend.checkpoint" in given)
    _apply(document, given)
    notes = list(document.notices)
    with written_to(out, given_out, document.values) as scratch:
        built = load_build_file(scratch)
        try:
            built.check_inputs()
        except ConfigError as error:  # the places that a config names are often those of another machine
            faults = str(error).replace(f"{built.document.path}:", "line ").splitlines()
            notes += [f"before a build, change {fault}" for fault in faults]
    return notes


def _apply(document: Document, given: Mapping[str, str]) -> None:
    weights = given.get("frontend.checkpoint")
    if weights is not None and is_onnx(Path(weights)):
        raise ConfigError(f"--weights {weights}: is a whole network, not weights of the config's; leave -c out")
    for key, value in given.items():
        apply_override(document, key, value, "--set")
    if "dataset.path" in given and "dataset.val_label" not in given:
        apply_override(document, "dataset.val_label", None, "--set")  # the config's is of its own images
    if "evaluation.path" in given:
        apply_override(document, "evaluation.val_label", None, "--set")
    if weights is not None and paddle_inference.is_inference_model(Path(weights)):
        shape = document.values["frontend"]["shape"]  # type: ignore[index]
        document.values["frontend"] = {"type": "paddle", "checkpoint": weights, "shape": shape}
