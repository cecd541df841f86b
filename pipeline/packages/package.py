"""A package on disk: the folder that `build` makes and that everything after it reads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline import artefacts
from pipeline.config.spec_comparison import same_normalisation
from pipeline.config.vdsp import PreprocessSpec, load_vdsp
from pipeline.data.labels import ClassInfo, read_classes
from pipeline.errors import ArtefactError, DataError
from pipeline.host.hardware import instruction_sets, saturates
from pipeline.onnx_models.scores import Scores, find_scores
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import version_of

PREPROCESS = "preprocess.json"  # a vdsp_params file
CLASSES = "classes.tsv"  # a line per class, in index order: id, name
BUILD_FILE = "build.json"  # the whole build file, resolved
REPORT = "report.json"  # what each stage measured
CALIBRATION = "calibration.txt"  # the images it was calibrated and checked on; float packages may have none
THRESHOLDS = "thresholds.json"  # the range of every quantized activation, of int8 packages
SPEED = "figures.json"  # what the build measured of its speed, and on which machine; differs from build to build
FACTS = "package.json"  # name, dtype, input, versions, ...

DEFAULT_WORKSPACE = Path("deploy_weights")
_SUFFIX = "-vacc"
_ANY_MODEL = "mod"  # what the vendor's model zoo calls every model: deploy_weights/NAME/mod
_NEEDED_FACTS = ("name", "input", "sample", "workspace")


@dataclass(frozen=True)
class Package:
    """A verified package. `folder` may lie anywhere; `workspace` files exist only where it was built."""

    folder: Path
    facts: dict[str, Any]
    digest: str  # sha256 of the model

    @property
    def name(self) -> str:
        return str(self.facts["name"])

    @property
    def prefix(self) -> Path:
        """What `-m` takes: the folder, then the model's name."""
        return self.folder / self.name

    @property
    def heading(self) -> str:
        """The line that a command begins its figures with."""
        return f"package {self.prefix}{' (sample weights, sample images)' if self.uses_sample else ''}"

    @property
    def model(self) -> Path:
        return self.folder / f"{self.name}.onnx"

    @property
    def input_chw(self) -> tuple[int, int, int]:
        channels, height, width = self.facts["input"]
        return channels, height, width

    @property
    def precision(self) -> str:
        """What the model computes in, as build files spell it: int8, fp16, fp32."""
        return str(self.facts.get("dtype", "int8"))

    @property
    def batch(self) -> int | None:
        """The model's fixed batch, 1; None: any number of images. Runtimes here accept any number, and loop."""
        return self.facts.get("batch")

    @property
    def takes_pixels(self) -> bool:
        """Whether the model reads uint8 pixels, resized and cropped, and contains the normalisation."""
        return self.facts.get("input_dtype") == "uint8"

    @property
    def scores(self) -> Scores | None:
        """What the outputs are; None for a package of an earlier version on a machine without onnx to read its graph.

        Raises:
            ArtefactError: the package is of a later version, which knows other kinds.
        """
        value = self.facts.get("scores")
        if value is None:
            return _scores_in(self.model, self.digest)
        try:
            return Scores(value)
        except ValueError:
            known = ", ".join(each.value for each in Scores)
            raise ArtefactError(
                f"{self.folder / FACTS}: scores: {value!r}, expected one of {known}; install the version that made it"
            ) from None

    @property
    def uses_sample(self) -> bool:
        """Whether weights and images are the embedded sample's."""
        return bool(self.facts["sample"])

    @property
    def has_wide_weights(self) -> bool:
        """Whether sums of its int8 products need 32 bits, as in packages of earlier versions."""
        return self.precision == "int8" and self.facts.get("target", "vnni") == "vnni"

    def proven_in(self, runtime: Runtime) -> dict[str, Any] | None:
        """Return version, instruction sets, verdict and cause of the proof of a runtime; None where there was none.

        Earlier builds kept neither verdict nor cause: they ended where a runtime failed.
        """
        if "proven" in self.facts:
            found: dict[str, Any] | None = self.facts["proven"].get(runtime.value)
            return found
        if "checked_on" not in self.facts:
            return None
        version = self.facts.get("versions", {}).get(runtime.value)
        return {"version": version, "instruction_sets": self.facts["checked_on"], "verdict": "good", "cause": ""}

    def misfit(self, runtime: Runtime) -> str | None:
        """Return a warning about running this package in a runtime on this CPU; None: there is none."""
        if self.has_wide_weights and saturates(runtime.value):
            if runtime is Runtime.ONNXRUNTIME:
                return (
                    f"{self.prefix} has 8-bit weights, and this CPU (no VNNI, no AMX) sums their products in 16 bits: "
                    "ONNX Runtime takes exact kernels, which are slower; packages built now are exact everywhere"
                )
            return (
                f"{self.prefix} has 8-bit weights, and this CPU (no VNNI, no AMX) sums their products in 16 bits: "
                "large sums are cut off, and answers may be wrong; add --runtime onnxruntime, which is exact, or build "
                "it again: packages that are built now are exact everywhere"
            )
        proof = self.proven_in(runtime)
        if proof is None:
            known = "proven" in self.facts
            return (
                f"{self.prefix} was not proven in {runtime.value}; build it where that is installed" if known else None
            )
        if proof["verdict"] == "lost":
            return f"{self.prefix}: {runtime.value} {proof['cause']} when the package was built; use another --runtime"
        if proof["verdict"] != "good":
            return f"{self.prefix}: {proof['verdict']} in {runtime.value} when it was built: {proof['cause']}"
        here = (version_of(runtime), instruction_sets(runtime.value))
        if here == (proof["version"], proof["instruction_sets"]):
            return None
        return (
            f"{self.prefix} was proven with {_setting(runtime, proof['version'], proof['instruction_sets'])}, and here "
            f"is {_setting(runtime, *here)}: answers may differ; build it here, or compare by bench and eval"
        )

    def speed(self) -> dict[str, Any] | None:
        """Return the speeds that the build measured; None where it measured none."""
        found: dict[str, Any] | None = self._measured().get("speed")
        return found

    def placements(self) -> dict[str, dict[str, Any]]:
        """Return which parts the build ran in int8 and in float32: what was chosen, what it brought and cost."""
        found: dict[str, dict[str, Any]] = self._measured().get("placements", {})
        return found

    def _measured(self) -> dict[str, Any]:
        path = self.folder / SPEED
        if not path.is_file():
            return {}
        measured: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return measured

    def preprocess(self) -> PreprocessSpec:
        return load_vdsp(self.folder / PREPROCESS)

    def classes(self) -> tuple[ClassInfo, ...]:
        return read_classes(self.folder / CLASSES)

    @property
    def has_images(self) -> bool:
        """Whether the build had images to check the model on."""
        return (self.folder / CALIBRATION).is_file()

    def report(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / REPORT).read_text(encoding="utf-8"))
        return loaded

    def workspace_file(self, key: str) -> Path | None:
        """Return a file of the build's workspace, by its key in the facts, or None where it does not exist."""
        relative = self.facts["workspace"].get(key)
        path = (self.folder / relative).resolve() if relative else None
        return path if path is not None and path.is_file() else None


@lru_cache(maxsize=8)
def _scores_in(model: Path, digest: str) -> Scores | None:
    """Return what the graph shows for a package without the key; the digest is for the cache."""
    try:
        import onnx
    except ImportError:
        return None
    return find_scores(onnx.load(model, load_external_data=False))


def open_package(prefix: str | os.PathLike[str] | None = None) -> Package:
    """Return a package after comparing its files with their digests.

    >>> package = pipeline.open_package("deploy_weights/flowers-int8-percentile-3_32_32-vacc/flowers")
    >>> package.name, package.precision, package.input_chw
    ('flowers', 'int8', (3, 32, 32))

    Args:
        prefix: what `-m` takes: `folder/name`, or the folder. One that does not exist here is looked for in
            deploy_weights/, where `build` puts it. None: the package built last under deploy_weights/.

    Raises:
        ArtefactError: there is none, or a file of it is missing or changed.
    """
    prefix = None if prefix is None else Path(prefix)
    folder = _newest() if prefix is None else _find(prefix)
    files = artefacts.verify(folder)["files"]
    if FACTS not in files:
        raise ArtefactError(f"{folder}: not a package, it has no {FACTS}; give -m folder/name of one that build made")
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    lacking = [key for key in _NEEDED_FACTS if key not in facts] or [
        name for name in (f"{facts['name']}.onnx", PREPROCESS, CLASSES) if name not in files
    ]
    if lacking:
        raise ArtefactError(f"{folder}: not a whole package, it has no {lacking[0]}; run the build again")
    package = Package(folder, facts, digest=files[f"{facts['name']}.onnx"]["sha256"])
    if prefix is not None and prefix.name not in (package.name, folder.name, _ANY_MODEL):
        raise ArtefactError(f"-m {prefix}: {folder} holds the model {package.name!r}; give {package.prefix}")
    return package


def _setting(runtime: Runtime, version: str | None, sets: list[str]) -> str:
    return f"{runtime.value} {version or '(version unknown)'} on {', '.join(sets) or 'no int8 instructions'}"


def packages_in(workspace: Path) -> Iterator[Path]:
    """Yield the complete package folders of a workspace, by name."""
    return (path for path in sorted(workspace.glob(f"*{_SUFFIX}")) if (path / artefacts.MANIFEST).is_file())


def _newest() -> Path:
    found = sorted(packages_in(DEFAULT_WORKSPACE), key=lambda path: (path / artefacts.MANIFEST).stat().st_mtime)
    if not found:
        raise ArtefactError(
            f"no package in {DEFAULT_WORKSPACE}/; build one (python -m pipeline build timm_wideres.yaml) or give -m "
            "folder/name"
        )
    return found[-1]


def _find(prefix: Path) -> Path:
    candidates = [root / path for root in (Path(), DEFAULT_WORKSPACE) for path in (prefix.parent, prefix)]
    for folder in candidates:
        if (folder / artefacts.MANIFEST).is_file():
            return folder
    if prefix.name == _ANY_MODEL:
        return _of_build(prefix)
    known = ", ".join(str(path) for path in packages_in(DEFAULT_WORKSPACE)) or "none"
    raise ArtefactError(f"-m {prefix}: no package there; packages in {DEFAULT_WORKSPACE}/: {known}")


def _of_build(prefix: Path) -> Path:
    """Return the one package of a build file by its name, as the vendor's model zoo writes it: WORKSPACE/NAME/mod."""
    workspaces = dict.fromkeys((prefix.parent.parent, DEFAULT_WORKSPACE))
    found = [path for workspace in workspaces for path in packages_in(workspace) if _is_of(path, prefix.parent.name)]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(map(str, found or packages_in(DEFAULT_WORKSPACE))) or "none"
    what = (
        f"{len(found)} packages of {prefix.parent.name}" if found else f"no package of {prefix.parent.name}; here are"
    )
    raise ArtefactError(f"-m {prefix}: {what}: {shown}; give one of them")


def _is_of(folder: Path, name: str) -> bool:
    return folder.name.startswith(f"{name}-") and (folder / f"{name}.onnx").is_file()


def check_fits(package: Package, spec: PreprocessSpec, source: object) -> None:
    """Raise DataError unless `spec` prepares images as the package's model takes them."""
    if package.takes_pixels and not same_normalisation(package.preprocess(), spec):
        raise DataError(
            f"{source}: other means, deviations or colour order than those of {package.prefix}, whose model holds "
            "them; build with this file, or build --set backend.quantize.pixel_input=false to choose at every run"
        )
    height, width = spec.output_hw
    if (height, width) != package.input_chw[1:]:
        # The vendor's file of timm's wide_resnet50_2 says 224, and its documents name a package of 256.
        way = f"--size {height} of build" if height == width else f"a frontend.shape of {height}x{width}"
        raise DataError(
            f"{source}: prepares images of {height}x{width}, but {package.prefix} takes "
            f"{package.input_chw[1]}x{package.input_chw[2]}; leave --vdsp_params out (the package has its own), or "
            f"build the package with {way}"
        )
