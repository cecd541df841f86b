"""Read a build file: apply overrides, check everything, resolve the preprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.config.build_config import BuildConfig
from pipeline.config.choices import (
    GRAPH_FILES,
    Frontend,
    Precision,
    Target,
)
from pipeline.config.dataset_section import read_dataset
from pipeline.config.documents import apply_override, find_file, parse_yaml, read_text, shown_path
from pipeline.config.input_size import is_side, with_size
from pipeline.config.keys import declarations, read_keys, walk
from pipeline.config.kinds import MAX_SIDE
from pipeline.config.paddleclas import apply_overrides, is_override, is_paddleclas, to_build_document
from pipeline.config.schema import MISSING, Document, Fault, Section, raise_faults, shown
from pipeline.config.sections import (
    AccuracyConfig,
    BackendConfig,
    FrontendConfig,
    Sections,
    declared_keys,
)
from pipeline.config.vdsp import PreprocessSpec
from pipeline.errors import ConfigError

BUILD_FOLDER = "build_configs"
SECTIONS = tuple(name for name, _ in declarations(Sections))
_SHAPE = "frontend.shape"
# Keys with a flag of `build` -> that flag, to name it in errors.
FLAGS = {name: declared.flag for name, declared in declared_keys() if declared.flag is not None}


def load_build_file(
    config: str | Path, overrides: Sequence[str] = (), *, extra: Mapping[str, object] | None = None
) -> BuildConfig:
    """Read a build file, apply overrides, check everything.

    >>> cfg = pipeline.load_build_file("flowers.yaml", ["backend.quantize.percentile=99.99"])
    >>> cfg.name, cfg.backend.quantize.percentile
    ('flowers', 99.99)

    Args:
        config: a path, or else a file whose name (the last component) is in build_configs/; a config of PaddleClas
            will do too.
        overrides: `section.key=value`, the value in YAML; of a config of PaddleClas its own keys as well.
        extra: dotted key -> value, of flags such as `--weights FILE`; a None is a flag that was not given. Of
            `frontend.shape` one number, the height and width of the input: the preprocessing follows it.

    Raises:
        ConfigError: every fault of the file, of its vdsp_params file and of the overrides, a line for each.
        TypeError: `overrides` is one text, whose letters would be taken one by one, or a mapping.
    """
    if isinstance(overrides, str | Mapping):
        raise TypeError(f"overrides: expected a list of 'section.key=value', got {type(overrides).__name__}")
    path = find_file(config, BUILD_FOLDER)
    document = parse_yaml(read_text(path), shown_path(path))
    if not Path(config).is_file() and Path(config).name != str(config):
        document.notices.append(f"{config}: no such file; using {shown_path(path)}")
    given = {key: value for key, value in (extra or {}).items() if value is not None}
    if is_paddleclas(document.values):
        apply_overrides(document, [override for override in overrides if is_override(override)])
        raise_faults(document.faults)
        document = to_build_document(document, with_images="frontend.checkpoint" in given)
        overrides = [override for override in overrides if not is_override(override)]
    side = given.pop(_SHAPE, None)
    for override in overrides:
        _apply_text(document, override)
    for key, value in given.items():
        apply_override(document, key, value, FLAGS.get(key, "--set"))
    if side is not None and not is_side(side):
        document.faults.append(Fault(FLAGS[_SHAPE], None, "", f"must be in 1..{MAX_SIDE}, got {shown(side)}"))
    built = _read(document, side if is_side(side) else None)
    raise_faults(document.faults)
    assert built is not None
    return built


def _apply_text(document: Document, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        document.faults.append(Fault("--set", None, override, "expected section.key=value"))
        return
    known = [name for name, _ in walk(Sections)]
    if below := [name for name in known if name.endswith(f".{key.strip()}") and key.strip() not in known]:
        document.faults.append(Fault("--set", None, key.strip(), f"unknown key; did you mean {' or '.join(below)}?"))
        return
    try:
        parsed = parse_yaml(f"value: {text}", "")
    except ConfigError:
        parsed = Document()
    if set(parsed.values) != {"value"} or parsed.faults:
        document.faults.append(Fault("--set", None, key.strip(), f"not a YAML value: {shown(text)}"))
        return
    apply_override(document, key.strip(), parsed.values["value"], "--set")


def _read(document: Document, side: int | None) -> BuildConfig | None:
    """The config, or None where the document has faults."""
    root = document.root()
    if document.values and not set(SECTIONS) & document.values.keys():
        found = ", ".join(list(document.values)[:4])
        document.faults.append(
            Fault(document.path, None, "", f"not a build file: expected {', '.join(SECTIONS)}, found {found}, ...")
        )
        return None
    by_hand = ("frontend", "dataset")
    values = {name: one.read(root, name) for name, one in declarations(Sections) if name not in by_hand}
    backend: BackendConfig = values["backend"]
    values["frontend"] = frontend = _read_frontend(root.section("frontend", required=True))
    values["dataset"], described = read_dataset(root.section("dataset"), frontend, backend)
    root.done()
    _check_across(root, backend, values["accuracy"])
    if isinstance(described, PreprocessSpec) and not document.faults and side is None:
        _check_output_size(root.section("frontend"), frontend, described)
    if described is None or document.faults:
        return None
    built = BuildConfig(**values, described=described, document=document)
    if side is not None:
        built = with_size(built, side)
    return replace(built, notices=tuple(document.notices))


def _check_across(root: Section, backend: BackendConfig, accuracy: AccuracyConfig | None) -> None:
    """Faults and notices that involve several keys."""
    if backend.target is not Target.ANY:
        root.document.notices.append("backend.target has no effect: int8 packages are exact on every CPU")
    goals = root.values.get("accuracy")
    if isinstance(goals, dict) and not any(
        goals.get(key) is not None for key in ("max_drop", "max_kl", "min_agreement")
    ):
        root.fault(
            "accuracy", "has no goal; give max_kl (nats), min_agreement (% of answers) or max_drop (points of top-1)"
        )
    if accuracy is not None and backend.dtype is not Precision.INT8:
        root.document.notices.append(f"accuracy has no effect on a package of {backend.dtype.value}")


def _read_frontend(section: Section) -> FrontendConfig:
    values = read_keys(FrontendConfig, section)
    kind = values["type"]
    if values["model"] is None and section.values.get("model") is None and kind not in GRAPH_FILES:
        section.fault("model", f"missing; a frontend of type {kind.value} needs the model's name")
    values["input_name"], values["shape"] = _read_shape(section, kind)
    section.done()
    return FrontendConfig(**values)


def _read_shape(section: Section, kind: Frontend) -> tuple[str, tuple[int, int, int, int]]:
    """Name and [N, C, H, W] of the one input; an ONNX file's may be given as [N, H, W, C], as the file has it."""
    value = section.take("shape", required=True)
    name, shape = "input", (1, 3, 1, 1)
    wanted = "one input as {name: [N, C, H, W]}"
    if value is MISSING:
        return name, shape
    if not isinstance(value, dict) or len(value) != 1:
        section.fault("shape", f"expected {wanted}, got {shown(value)}")
        return name, shape
    name, sizes = next(iter(value.items()))
    if not isinstance(sizes, list) or len(sizes) != 4 or not all(type(size) is int for size in sizes):
        section.fault_below("shape", name, f"expected 4 integers [N, C, H, W], got {shown(sizes)}")
        return name, shape
    batch, channels, height, width = sizes
    if kind is Frontend.ONNX and width == 3 and channels != 3:
        channels, height, width = width, channels, height
    if batch not in (1, -1):
        section.fault_below("shape", name, f"expected N of 1, or -1 for any batch, got {shown(sizes)}")
    elif channels != 3 and not (kind is Frontend.ONNX and channels == 1):
        section.fault_below("shape", name, f"expected C of 3 (RGB), got {shown(sizes)}")
    elif not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        section.fault_below("shape", name, f"expected H and W in 1..{MAX_SIDE}, got {shown(sizes)}")
    return name, (batch, 3, height, width)  # also of networks of grey images: they read the luminance of RGB


def _check_output_size(section: Section, frontend: FrontendConfig, preprocess: PreprocessSpec) -> None:
    wanted, made = list(frontend.shape[2:]), list(preprocess.output_hw)
    if wanted != made:
        shape = [*frontend.shape[:2], *made]
        section.fault_below(
            "shape",
            frontend.input_name,
            f"H, W are {wanted}, but the preprocessing makes {made}; set it to {shape}, or the crop to {wanted}",
        )
