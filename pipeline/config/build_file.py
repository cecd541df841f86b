"""Read a build file: apply overrides, check everything, resolve the preprocessing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.config.accuracy_section import read_accuracy
from pipeline.config.build_config import (
    FLAGS,
    GRAPH_FILES,
    AccuracyConfig,
    BackendConfig,
    BackendType,
    BackgroundClass,
    BuildConfig,
    CalibrateMode,
    ClassOrder,
    DatasetConfig,
    DatasetType,
    EvaluationConfig,
    ExtraOp,
    Frontend,
    FrontendConfig,
    GraphConfig,
    Precision,
    QuantizeConfig,
    SamplerConfig,
    Target,
    WeightRounding,
    WorkspaceConfig,
)
from pipeline.config.documents import apply_override, find_data_file, find_file, parse_yaml, read_text, shown_path
from pipeline.config.process_ops import ProcessOps, custom_op, read_process_ops, spec_from_process_ops
from pipeline.config.schema import MISSING, Document, Fault, Section, raise_faults, shown
from pipeline.config.vdsp import FOLDER as VDSP_FOLDER
from pipeline.config.vdsp import MAX_SIDE, PreprocessSpec, difference, read_vdsp
from pipeline.errors import ConfigError

__all__ = [
    "GRAPH_FILES",
    "AccuracyConfig",
    "BackendConfig",
    "BackgroundClass",
    "BuildConfig",
    "CalibrateMode",
    "ClassOrder",
    "DatasetConfig",
    "EvaluationConfig",
    "ExtraOp",
    "Frontend",
    "FrontendConfig",
    "GraphConfig",
    "Precision",
    "QuantizeConfig",
    "SamplerConfig",
    "Target",
    "WeightRounding",
    "WorkspaceConfig",
    "find_data_file",
    "load_build_file",
]

BUILD_FOLDER = "build_configs"
SECTIONS = ("name", "frontend", "backend", "graph", "dataset", "evaluation", "accuracy", "workspace")

# Vendor keys that steer the accelerator's compiler. Met in its model zoo; each is accepted and reported once.
_IGNORED_QUANTIZE = (
    "calibrate_chunk_by",
    "calibrate_range",
    "dense_special_config",
    "nearest_interpol_on_dsp",
    "ops_usingfp",
    "output_ddr",
    "overflow_adaptive",
    "quantize_dsp_ops",
    "quantize_mode",
    "quantize_operators",
    "requant_suppress",
    "skip_matmul_layers",
    "stream_mode",
    "weight_scale",
)
# A misspelling that files of its model zoo have, and what it means.
_MISSPELT_MODE = "alibrate_mode"
_IGNORED_WORKSPACE = ("enable_ir", "env_recheck", "pyenv", "save_log", "work_dir", "workers")


_NO_PREPROCESS = "missing, and vdsp_params too; give one (as in --set dataset.vdsp_params=FILE)"


def load_build_file(
    config: str | Path, overrides: Sequence[str] = (), *, extra: Mapping[str, object] | None = None
) -> BuildConfig:
    """Read a build file, apply overrides, check everything.

    Args:
        config: a path, or else a file whose name (the last component) is in build_configs/.
        overrides: `section.key=value`, the value in YAML.
        extra: dotted key -> value, of flags such as `--weights FILE`; a None is a flag that was not given.

    Raises:
        ConfigError: every fault of the file, of its vdsp_params file and of the overrides, a line for each.
    """
    path = find_file(config, BUILD_FOLDER)
    document = parse_yaml(read_text(path), shown_path(path))
    for override in overrides:
        _apply_text(document, override)
    for key, value in (extra or {}).items():
        if value is not None:
            apply_override(document, key, value, FLAGS.get(key, "--set"))
    notices = []
    if not Path(config).is_file() and Path(config).name != str(config):
        notices.append(f"{config}: no such file; using {shown_path(path)}")
    built = _read(document, notices)
    raise_faults(document.faults)
    assert built is not None
    return built


def _apply_text(document: Document, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        document.faults.append(Fault("--set", None, override, "expected section.key=value"))
        return
    try:
        parsed = parse_yaml(f"value: {text}", "")
    except ConfigError:
        parsed = Document()
    if set(parsed.values) != {"value"} or parsed.faults:
        document.faults.append(Fault("--set", None, key.strip(), f"not a YAML value: {shown(text)}"))
        return
    apply_override(document, key.strip(), parsed.values["value"], "--set")


def _read(document: Document, notices: list[str]) -> BuildConfig | None:
    """The config, or None where the document has faults."""
    root = document.root()
    if document.values and not set(SECTIONS) & document.values.keys():
        found = ", ".join(list(document.values)[:4])
        document.faults.append(
            Fault(document.path, None, "", f"not a build file: expected {', '.join(SECTIONS)}, found {found}, ...")
        )
        return None
    name = root.text("name", "", required=True)
    if name and not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        root.fault("name", f"expected letters, digits, '.', '_' and '-', not starting with '.', got {shown(name)}")
    frontend = _read_frontend(root.section("frontend", required=True))
    backend = _read_backend(root.section("backend"), notices)
    graph = _read_graph(root.section("graph"))
    dataset, described = _read_dataset(root.section("dataset"), frontend, backend, notices)
    evaluation = _read_evaluation(root.section("evaluation"))
    accuracy = read_accuracy(root)
    if accuracy is not None and backend.dtype is not Precision.INT8:
        notices.append(f"accuracy has no effect on a package of {backend.dtype.value}")
    workspace = _read_workspace(root.section("workspace"), notices)
    root.done()
    if isinstance(described, PreprocessSpec) and not document.faults:
        _check_output_size(root.section("frontend"), frontend, described)
    if described is None or document.faults:
        return None
    return BuildConfig(
        name=name,
        frontend=frontend,
        backend=backend,
        graph=graph,
        dataset=dataset,
        evaluation=evaluation,
        accuracy=accuracy,
        workspace=workspace,
        described=described,
        notices=tuple(notices),
        document=document,
    )


def _read_frontend(section: Section) -> FrontendConfig:
    kind = section.choice("type", Frontend, Frontend.ONNX, required=True)
    model = section.text("model", None)
    if model is None and kind not in GRAPH_FILES:
        section.fault("model", f"missing; a frontend of type {kind.value} needs the model's name")
    input_name, shape = _read_shape(section, kind)
    config = FrontendConfig(
        type=kind,
        model=model,
        checkpoint=section.path("checkpoint", None),
        checkpoint_key=section.text("checkpoint_key", None),
        input_name=input_name,
        shape=shape,
        dtype=section.choice("dtype", (Precision.FP32, Precision.FP16), Precision.FP32),
        num_classes=section.integer("num_classes", None, low=1),
        output=section.text("output", None),
        background=section.choice("background", BackgroundClass, None),
    )
    section.done()
    return config


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
    elif channels != 3:
        section.fault_below("shape", name, f"expected C of 3 (RGB), got {shown(sizes)}")
    elif not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        section.fault_below("shape", name, f"expected H and W in 1..{MAX_SIDE}, got {shown(sizes)}")
    return name, (batch, channels, height, width)


def _read_backend(section: Section, notices: list[str]) -> BackendConfig:
    section.choice("type", BackendType, BackendType.TVM_VACC)
    dtype = section.choice("dtype", Precision, Precision.INT8)
    target = section.choice("target", Target, Target.ANY)
    if target is not Target.ANY:
        notices.append("backend.target has no effect: int8 packages are exact on every CPU")
    compile_section = section.section("compile")
    notices.extend(compile_section.ignored(compile_section.values))
    quantize = _read_quantize(section.section("quantize"), notices)
    section.done()
    return BackendConfig(dtype=dtype, target=target, compile=compile_section.values, quantize=quantize)


def _read_quantize(section: Section, notices: list[str]) -> QuantizeConfig:
    percentile = section.number("percentile", QuantizeConfig.percentile)
    if not 50.0 < percentile <= 100.0:
        section.fault("percentile", f"must be in (50, 100], got {shown(section.values['percentile'])}")
    mode_key = "calibrate_mode"
    if _MISSPELT_MODE in section and mode_key not in section:
        mode_key = _MISSPELT_MODE
        notices.append(f"backend.quantize.{_MISSPELT_MODE} is read as calibrate_mode")
    config = QuantizeConfig(
        calibrate_mode=section.choice(mode_key, CalibrateMode, CalibrateMode.PERCENTILE),
        percentile=percentile,
        quantize_per_channel=section.boolean("quantize_per_channel", True),
        pixel_input=section.boolean("pixel_input", True),
        equalization=section.boolean("equalization", True),
        weight_rounding=section.choice("weight_rounding", WeightRounding, WeightRounding.SECOND_ORDER),
        float_classifier=section.boolean("float_classifier", True),
        bias_correction=section.boolean("bias_correction", True),
        skip_conv_layers=_read_layers(section, "skip_conv_layers"),
        exclude_layers=_read_layers(section, "exclude_layers"),
    )
    notices.extend(section.ignored(_IGNORED_QUANTIZE))
    section.done()
    return config


def _read_layers(section: Section, key: str) -> tuple[int | str, ...]:
    value = section.take(key)
    if value is MISSING or value is None:
        return ()
    items = value if isinstance(value, list) else [None]
    if all(type(item) is int and item >= 0 for item in items) or all(isinstance(item, str) for item in items):
        return tuple(items)
    section.fault(key, f"expected a list of numbers >= 0 or a list of names, got {shown(value)}")
    return ()


def _read_graph(section: Section) -> GraphConfig:
    extra_ops = section.section("extra_ops")
    config = GraphConfig(extra_op=extra_ops.choice("type", ExtraOp, None))
    extra_ops.done()
    section.done()
    return config


def _read_dataset(
    section: Section, frontend: FrontendConfig, backend: BackendConfig, notices: list[str]
) -> tuple[DatasetConfig, PreprocessSpec | Fault | None]:
    """The section and the preprocessing; a Fault where only a build has to refuse it, None after a fault."""
    section.choice("type", DatasetType, DatasetType.TVM)
    sampler = section.section("sampler")
    spellings = [key for key in ("process_ops", "transform_ops") if section.take(key) is not MISSING]
    if len(spellings) > 1:
        section.fault("transform_ops", "another spelling of process_ops, and both are given; expected one of them")
    ops_key = spellings[0] if spellings else "process_ops"
    custom = custom_op(section, ops_key)
    ops = read_process_ops(section, ops_key) if custom is None else None
    config = DatasetConfig(
        path=section.path("path", None),
        val_label=section.path("val_label", None),
        class_order=section.choice("class_order", ClassOrder, None),
        vdsp_params=section.text("vdsp_params", None),
        sampler=SamplerConfig(
            suffix=sampler.text("suffix", SamplerConfig.suffix),
            get_data_num=sampler.integer("get_data_num", SamplerConfig.get_data_num, low=1),
            seed=sampler.integer("seed", SamplerConfig.seed, low=0),
            cover_classes=sampler.boolean("cover_classes", SamplerConfig.cover_classes),
        ),
        process_ops=tuple(item.values for item in section.sections(ops_key)) if ops or custom else (),
        skip_bad=section.boolean("skip_bad", DatasetConfig.skip_bad),
    )
    sampler.done()
    described: PreprocessSpec | Fault | None
    described = _resolve_preprocess(section, ops_key, ops, config.vdsp_params, frontend.chw[1:])
    missing = config.vdsp_params is None and not section.values.get(ops_key)
    if missing and backend.dtype is Precision.INT8:
        section.fault("process_ops", _NO_PREPROCESS)
    elif missing:  # the vendor's files of float packages leave it to the runner's flag
        described = section.document.at((*section.key, "process_ops"), _NO_PREPROCESS)
    elif custom is not None and config.vdsp_params is None:
        described = custom
    elif custom is not None:
        notices.append(f"{custom.key.removesuffix('.type')} (CustomFunc) has no effect here: vdsp_params says it all")
    section.done()
    return config, described


def _resolve_preprocess(
    dataset: Section, ops_key: str, ops: ProcessOps | None, vdsp_params: str | None, input_hw: tuple[int, int]
) -> PreprocessSpec | None:
    """The one preprocessing that the vdsp file and the ops describe. None where there is neither, or after a fault."""
    if vdsp_params is None:
        return None if ops is None else spec_from_process_ops(ops)
    try:
        path = find_file(vdsp_params, VDSP_FOLDER)
        spec, faults = read_vdsp(path, input_hw)
    except ConfigError as error:
        dataset.fault("vdsp_params", str(error))
        return None
    dataset.document.faults.extend(faults)
    if spec is not None and ops is not None:
        differs = difference(spec_from_process_ops(ops, spec.filter), spec)
        if differs:
            dataset.fault(ops_key, f"disagrees with {shown_path(path)}: {differs}")
    return spec


def _read_evaluation(section: Section) -> EvaluationConfig:
    config = EvaluationConfig(
        path=section.path("path", None),
        val_label=section.path("val_label", None),
        num=section.integer("num", None, low=1),
    )
    section.done()
    return config


def _read_workspace(section: Section, notices: list[str]) -> WorkspaceConfig:
    config = WorkspaceConfig(path=section.path("path", WorkspaceConfig.path))
    notices.extend(section.ignored(_IGNORED_WORKSPACE))
    section.done()
    return config


def _check_output_size(section: Section, frontend: FrontendConfig, preprocess: PreprocessSpec) -> None:
    wanted, made = list(frontend.shape[2:]), list(preprocess.output_hw)
    if wanted != made:
        shape = [*frontend.shape[:2], *made]
        section.fault_below(
            "shape",
            frontend.input_name,
            f"H, W are {wanted}, but the preprocessing makes {made}; set it to {shape}, or the crop to {wanted}",
        )
