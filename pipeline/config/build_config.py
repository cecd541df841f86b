"""A resolved build file: every key, and the preprocessing that it describes. See `build_file.py`."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path

from pipeline.config.choices import (
    GRAPH_FILES,
    Frontend,
    Precision,
)
from pipeline.config.schema import Document, Fault, raise_faults
from pipeline.config.sections import (
    AUTO,
    Sections,
    declaration,
)
from pipeline.config.vdsp import PreprocessSpec, to_vdsp_dict
from pipeline.errors import ConfigError, describe_absent


@dataclass(frozen=True, kw_only=True)
class BuildConfig(Sections):
    """A build file with every default and override resolved. Relative paths are relative to the current folder."""

    published: Path | None = None  # the checkpoint that `auto` stands for, once it is on this machine; no key
    described: PreprocessSpec | Fault  # from vdsp_params, else from process_ops; Fault: why it cannot be built
    notices: tuple[str, ...] = ()  # keys that were accepted without effect: printed once
    document: Document = field(default_factory=Document, repr=False, compare=False)  # the lines of the keys, for errors

    @property
    def preprocess(self) -> PreprocessSpec:
        """The preprocessing. Raises ConfigError where only the vendor's code defines it."""
        if isinstance(self.described, Fault):
            raise ConfigError(str(self.described))
        return self.described

    @property
    def package_name(self) -> str:
        """Folder name of the package, as the vendor's compiler spells it."""
        precision = self.backend.dtype
        mode = self.backend.quantize.calibrate_mode.value if precision is Precision.INT8 else "none"
        channels, height, width = self.frontend.chw
        return f"{self.name}-{precision.value}-{mode}-{channels}_{height}_{width}-vacc"

    @property
    def uses_sample(self) -> bool:
        """Neither weights nor images are named: the build makes its own sample of both."""
        return self.frontend.checkpoint is None and self.dataset.path is None

    def check_inputs(self) -> None:
        """Raise ConfigError, a line for each: no preprocessing, files missing, real and sample data that would mix."""
        undescribed = [self.described] if isinstance(self.described, Fault) else []
        raise_faults([*undescribed, *self._mixed_inputs(), *self._missing_inputs()])

    def as_typed(self, message: str) -> str:
        """Return an error of a key, `section.key: text`, with the flag in place of the key where one gave its value."""
        key, colon, text = message.partition(": ")
        flag = self.document.flags.get(tuple(key.split("."))) if colon else None
        if flag is None:
            return message
        return f"{f'--set {key}' if flag == '--set' else flag}: {text}"

    def as_dict(self) -> dict[str, object]:
        """The whole resolved file and its preprocessing in plain values: what fingerprints and manifests hold."""
        sections = ("backend", "dataset", "evaluation", "accuracy", "workspace")
        frontend = {
            key: _plain(value) for key, value in vars(self.frontend).items() if key not in ("input_name", "shape")
        }
        extra_op = _plain(self.graph.extra_op)
        return {
            "name": self.name,
            "frontend": {**frontend, "shape": {self.frontend.input_name: list(self.frontend.shape)}},
            "graph": {"extra_ops": {"type": extra_op}},
            **{section: _plain(getattr(self, section)) for section in sections},
            "preprocess": to_vdsp_dict(self.preprocess),
        }

    def _mixed_inputs(self) -> Iterator[Fault]:
        weights, images = self.frontend.checkpoint, self.dataset.path
        calibrates = self.backend.dtype is Precision.INT8
        if weights is None and self.frontend.type in GRAPH_FILES:
            yield self._fault("frontend.checkpoint", f"a frontend of type {self.frontend.type.value} needs a file")
        elif weights is None and images is not None:
            yield self._fault(
                "frontend.checkpoint", "sample weights cannot be calibrated on the images of dataset.path"
            )
        elif weights is None and self.evaluation.path is not None:
            yield self._fault(
                "frontend.checkpoint", "sample weights cannot be measured on the images of evaluation.path"
            )
        if images is None and calibrates and (weights is not None or self.frontend.type in GRAPH_FILES):
            yield self._fault("dataset.path", "real weights cannot be calibrated on sample images")

    def _missing_inputs(self) -> Iterator[Fault]:
        named = (
            (
                "frontend.checkpoint",
                None if self.frontend.checkpoint == AUTO else self.frontend.checkpoint,
                _wrong_path if self.frontend.type is Frontend.PADDLE else _wrong_file,
            ),
            ("dataset.val_label", self.dataset.val_label, _wrong_file),
            ("evaluation.val_label", self.evaluation.val_label, _wrong_file),
            ("dataset.path", self.dataset.path, _wrong_folder),
            ("evaluation.path", self.evaluation.path, _wrong_folder),
        )
        for key, path, check in named:
            wrong = None if path is None else check(path)
            flag = self.document.flags.get(tuple(key.split(".")), "--set")
            if wrong and flag != "--set":
                yield Fault(f"{flag} {path}", None, "", wrong)
            elif wrong:
                yield self._fault(key, f"{path}: {wrong}")

    def _fault(self, key: str, message: str) -> Fault:
        if tuple(key.split(".")) in self.document.flags:  # the flag that gave it is named already
            return self.document.at(tuple(key.split(".")), message)
        declared = declaration(key)
        hint = f"; give {declared.flag} {declared.metavar}" if declared.flag else f"; give --set {key}=FILE"
        return self.document.at(tuple(key.split(".")), message + hint)


def _wrong_file(path: Path) -> str | None:
    try:
        if path.is_file():
            return None
        return "is a folder, expected a file" if path.is_dir() else describe_absent(path)
    except OSError as error:  # a folder without permission, a name too long
        return f"cannot be read: {error.strerror}"


def _wrong_path(path: Path) -> str | None:
    """As `_wrong_file`, where a folder will do."""
    try:
        return None if path.exists() else describe_absent(path, "no such file or folder")
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _wrong_folder(path: Path) -> str | None:
    try:
        if path.is_dir() or (path.is_file() and tarfile.is_tarfile(path)):
            return None
        return "is neither a folder nor a tar file" if path.exists() else "no such folder or tar file"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _plain(value: object) -> object:
    """Convert dataclasses, enums, paths and tuples to the types of YAML and JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)  # paths, and dates among the vendor's compile keys
