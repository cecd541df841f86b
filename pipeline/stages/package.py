"""Package: everything that running the model needs, in one folder."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.artefacts import write_json
from pipeline.config.build_config import BuildConfig
from pipeline.config.choices import CalibrateMode, Precision, Target
from pipeline.config.vdsp import to_vdsp_dict
from pipeline.host.hardware import instruction_sets
from pipeline.packages import package as packages
from pipeline.stages import artefact_names as names

_VERSIONS_OF = ("numpy", "onnx", "onnxruntime", "openvino", "pillow", "torch")


@dataclass(frozen=True, kw_only=True)
class Settings:
    name: str
    precision: Precision
    input_chw: tuple[int, int, int]
    mode: CalibrateMode
    percentile: float | None  # share of values kept, in %; None: chosen by stage `thresholds`
    uses_sample: bool
    preprocess: Mapping[str, object]  # as a vdsp_params file has it
    build_file: Mapping[str, object]  # all of it, resolved: the package tells how it was made
    versions: Mapping[str, str]  # of Python and the libraries
    instruction_sets: tuple[str, ...]  # of this CPU


def take_settings(cfg: BuildConfig) -> Settings:
    """Return what this stage's outcome depends on beside its inputs."""
    return Settings(
        name=cfg.name,
        precision=cfg.backend.dtype,
        input_chw=cfg.frontend.chw,
        mode=cfg.backend.quantize.calibrate_mode,
        percentile=cfg.backend.quantize.percentile,
        uses_sample=cfg.uses_sample,
        preprocess=to_vdsp_dict(cfg.preprocess),
        build_file=cfg.as_dict(),
        versions=_versions(),
        instruction_sets=tuple(instruction_sets()),
    )


def run(settings: Settings, inputs: Mapping[str, Path], out: Path) -> None:
    """Fill the folder. It holds neither the time nor the machine's name: equal builds give equal bytes."""
    converted = inputs["quantize" if "quantize" in inputs else "convert"]
    labelled = inputs["calibset" if "calibset" in inputs else "export"]
    shutil.copyfile(converted / names.MODEL, out / f"{settings.name}.onnx")
    shutil.copyfile(labelled / names.CLASSES, out / packages.CLASSES)
    if "calibset" in inputs:
        shutil.copyfile(inputs["calibset"] / names.CALIBRATION, out / packages.CALIBRATION)
    if "thresholds" in inputs:
        shutil.copyfile(names.thresholds_file(inputs), out / packages.THRESHOLDS)
    if "trial" in inputs:
        measured = json.loads((inputs["trial"] / names.FIGURES).read_text(encoding="utf-8"))
        placed = json.loads((inputs["place"] / names.FIGURES).read_text(encoding="utf-8"))
        write_json(out / packages.SPEED, {**measured, names.TRIALS: placed[names.TRIALS]})
    write_json(out / packages.PREPROCESS, settings.preprocess)
    write_json(out / packages.BUILD_FILE, settings.build_file)
    report = json.loads((inputs["prove"] / names.CHECK).read_text(encoding="utf-8"))
    if "quantize" in inputs:
        report |= json.loads((inputs["quantize"] / names.CHECK).read_text(encoding="utf-8"))
    write_json(out / packages.REPORT, report)
    write_json(out / packages.FACTS, _facts(settings, inputs, report))


def _facts(settings: Settings, inputs: Mapping[str, Path], report: Mapping[str, Any]) -> dict[str, Any]:
    calibration: dict[str, Any] = {"calibrate_mode": settings.mode.value, "target": Target.ANY.value}
    if settings.mode is CalibrateMode.PERCENTILE and "thresholds" in inputs:
        calibration["percentile"] = settings.percentile or names.read_percentile(inputs)
    batch = names.read_batch(inputs["export"])
    workspace = {"float32_model": inputs["export"] / names.MODEL}
    if "quantize" in inputs:
        workspace["quantized_from"] = names.float32_model(inputs)
    if "image2npz" in inputs:
        workspace["datalist"] = inputs["image2npz"] / names.DATALIST
        workspace["val_label"] = inputs["image2npz"] / names.VAL_LABEL
    return {
        "name": settings.name,
        "dtype": settings.precision.value,
        "input": list(settings.input_chw),
        **({} if batch is None else {"batch": batch}),
        "input_dtype": report.get("input", "float32"),
        "scores": names.read_scores(inputs["export"]).value,
        **(calibration if settings.precision is Precision.INT8 else {"calibrate_mode": "none"}),
        "sample": settings.uses_sample,
        "checked_on": list(settings.instruction_sets),
        "proven": {
            name: {key: each[key] for key in ("version", "instruction_sets", "verdict", "cause")}
            for name, each in report["proof"]["runtimes"].items()
        },
        "versions": dict(settings.versions),
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
