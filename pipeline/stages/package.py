"""Package: everything that running the model needs, in one folder."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.artefacts import write_json
from pipeline.config.build_file import BuildConfig, Precision, Target
from pipeline.config.vdsp import to_vdsp_dict
from pipeline.host.hardware import instruction_sets
from pipeline.packages import package as packages
from pipeline.stages import artefact_names as names

_VERSIONS_OF = ("numpy", "onnx", "onnxruntime", "openvino", "pillow", "torch")


def identity(cfg: BuildConfig) -> object:
    """Return what this stage's outcome depends on beside its inputs."""
    return [cfg.as_dict(), _versions(), instruction_sets()]


def run(cfg: BuildConfig, inputs: Mapping[str, Path], out: Path) -> None:
    """Fill the folder. Nothing in it tells the time or the machine's name: equal builds give equal bytes."""
    converted = inputs["quantize" if "quantize" in inputs else "convert"]
    labelled = inputs["calibset" if "calibset" in inputs else "export"]
    shutil.copyfile(converted / names.MODEL, out / f"{cfg.name}.onnx")
    shutil.copyfile(labelled / names.CLASSES, out / packages.CLASSES)
    if "calibset" in inputs:
        shutil.copyfile(inputs["calibset"] / names.CALIBRATION, out / packages.CALIBRATION)
    if "thresholds" in inputs:
        shutil.copyfile(inputs["thresholds"] / names.THRESHOLDS, out / packages.THRESHOLDS)
    if "trial" in inputs:
        shutil.copyfile(inputs["trial"] / names.FIGURES, out / packages.SPEED)
    write_json(out / packages.PREPROCESS, to_vdsp_dict(cfg.preprocess))
    write_json(out / packages.BUILD_FILE, cfg.as_dict())
    report = json.loads((inputs["prove"] / names.CHECK).read_text(encoding="utf-8"))
    if "quantize" in inputs:
        report |= json.loads((inputs["quantize"] / names.CHECK).read_text(encoding="utf-8"))
    write_json(out / packages.REPORT, report)
    write_json(out / packages.FACTS, _facts(cfg, inputs, report))


def _facts(cfg: BuildConfig, inputs: Mapping[str, Path], report: Mapping[str, Any]) -> dict[str, Any]:
    quantize = cfg.backend.quantize
    calibration = {
        "calibrate_mode": quantize.calibrate_mode.value,
        "percentile": quantize.percentile,
        "target": Target.ANY.value,
    }
    workspace = {"float32_model": inputs["export"] / names.MODEL}
    if "quantize" in inputs:
        workspace["quantized_from"] = names.float32_model(inputs)
    if "image2npz" in inputs:
        workspace["datalist"] = inputs["image2npz"] / names.DATALIST
        workspace["val_label"] = inputs["image2npz"] / names.VAL_LABEL
    return {
        "name": cfg.name,
        "dtype": cfg.backend.dtype.value,
        "input": list(cfg.frontend.chw),
        "input_dtype": report.get("input", "float32"),
        "scores": names.read_scores(inputs["export"]).value,
        **(calibration if cfg.backend.dtype is Precision.INT8 else {"calibrate_mode": "none"}),
        "sample": cfg.uses_sample,
        "checked_on": instruction_sets(),
        "proven": {
            name: {key: each[key] for key in ("version", "instruction_sets", "verdict", "cause")}
            for name, each in report["proof"]["runtimes"].items()
        },
        "versions": _versions(),
        # From the package's folder in the workspace; they exist only where it was built.
        "workspace": {key: str(Path("..") / path.relative_to(path.parents[3])) for key, path in workspace.items()},
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _VERSIONS_OF:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
