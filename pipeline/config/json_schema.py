"""Build files as a JSON Schema, for editors: it completes keys and values and shows what each is for.

It is looser than `load_build_file` where that compares keys with one another; what loads is valid here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

from pipeline.config.build_config import (
    AccuracyConfig,
    BackendType,
    BackgroundClass,
    CalibrateMode,
    ClassOrder,
    DatasetConfig,
    DatasetType,
    ExtraOp,
    Frontend,
    Precision,
    QuantizeConfig,
    SamplerConfig,
    Target,
    WeightRounding,
    WorkspaceConfig,
)
from pipeline.config.vdsp import MAX_SIDE, ResizeFilter

Schema = dict[str, Any]

_SIDE: Schema = {"type": "integer", "minimum": 1, "maximum": MAX_SIDE}
_TRIPLE: Schema = {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3}
_NAME = "^[A-Za-z0-9_-][A-Za-z0-9._-]*$"


def build_file_schema() -> Schema:
    """Return the schema, draft 2020-12, as plain values."""
    sections = {
        "name": _text("the package is {name}-{dtype}-{calibrate_mode}-{C}_{H}_{W}-vacc/{name}", pattern=_NAME),
        "frontend": _frontend(),
        "backend": _section(
            "precision and quantization",
            type=_choice(BackendType, "the vendor's word", BackendType.TVM_VACC),
            dtype=_choice(Precision, "of the package; fp16 and fp32 are not calibrated", Precision.INT8),
            target=_choice(Target, "accepted, without effect: packages are exact on every CPU (--target)", Target.ANY),
            compile={"type": ["object", "null"], "description": "the vendor's hardware keys; without effect here"},
            quantize=_quantize(),
        ),
        "graph": _section(
            "what is added to the network",
            extra_ops=_section(
                "one op", type={"enum": [*_values(ExtraOp)["enum"], None], "description": "appended to the output"}
            ),
        ),
        "dataset": _dataset(),
        "evaluation": _section(
            "images that become npz, and that bench answers",
            path=_path("folder a class, flat folder with a label list, or a tar of either (--evaluation)"),
            val_label=_path("label list of a flat folder, lines 'name index'"),
            num=_nullable({"type": "integer", "minimum": 1, "description": "so many of them; null: all"}),
        ),
        "accuracy": _accuracy(),
        "workspace": _workspace(),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "build file of the int8 pipeline",
        "type": "object",
        "properties": sections,
        "required": ["name", "frontend"],
        "additionalProperties": False,
    }


def key_names(schema: Schema | None = None, prefix: str = "") -> Iterator[str]:
    """Return the dotted name of each key that holds a value: what `--set` takes."""
    for name, below in (schema or build_file_schema())["properties"].items():
        if "properties" in below:
            yield from key_names(below, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def lookup(key: str) -> Schema:
    """Return what the schema says of a dotted key; nothing where there is no such key."""
    schema = build_file_schema()
    for part in key.split("."):
        schema = schema.get("properties", {}).get(part, {})
    return schema


def values(key: str) -> list[str]:
    """Return the values that a key chooses from, or none where it takes any."""
    schema = lookup(key)
    found = schema.get("enum") or (["true", "false"] if schema.get("type") == "boolean" else [])
    return [str(value) for value in found if value is not None]


def _frontend() -> Schema:
    shape = {
        "type": "object",
        "description": "the one input: {name: [1, 3, H, W]}, of an ONNX file also [1, H, W, 3]",
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": {
            "type": "array",
            "anyOf": [
                {"prefixItems": [{"enum": [1, -1]}, {"const": 3}, _SIDE, _SIDE]},
                {"prefixItems": [{"enum": [1, -1]}, _SIDE, _SIDE, {"const": 3}]},
            ],
            "minItems": 4,
            "maxItems": 4,
        },
    }
    section = _section(
        "what to export",
        type={**_values(Frontend), "description": "the library of the network, or onnx"},
        model=_nullable(_text("the network's name, as `models` lists it")),
        checkpoint=_path(
            "PyTorch, safetensors, PaddlePaddle or ONNX file, auto: the published one, null: the sample (--weights)"
        ),
        checkpoint_key=_nullable(_text("which weights of the checkpoint; null: the averaged (EMA), or all there are")),
        shape=shape,
        dtype=_choice((Precision.FP32, Precision.FP16), "of the checkpoint; without effect", Precision.FP32),
        num_classes=_nullable({"type": "integer", "minimum": 1, "description": "null: as the model says"}),
        output=_nullable(_text("of an ONNX file with several outputs, the one with the scores")),
        background={
            "enum": [*_values(BackgroundClass)["enum"], None],
            "description": "a class of an ONNX file that no image shows and that is cut off",
        },
    )
    return {**section, "type": "object", "required": ["type", "shape"]}


def _quantize() -> Schema:
    default = QuantizeConfig()
    layers = {
        "type": ["array", "null"],
        "items": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}]},
    }
    flags = {
        "quantize_per_channel": "weights: one scale an output channel",
        "pixel_input": "the model reads uint8 pixels and normalises by itself, where it can",
        "equalization": "rescale channels that share a scale to like ranges",
        "bias_correction": "take from each bias what rounding the weights adds to the mean output",
        "float_classifier": "the last layer stays float32",
    }
    section = _section(
        "how it is quantized",
        calibrate_mode=_choice(CalibrateMode, "how thresholds are chosen", CalibrateMode.PERCENTILE),
        percentile={
            "type": "number",
            "exclusiveMinimum": 50,
            "maximum": 100,
            "default": default.percentile,
            "description": "% of an activation's values kept at either end",
        },
        weight_rounding=_choice(WeightRounding, "how weights are rounded", WeightRounding.SECOND_ORDER),
        skip_conv_layers={**layers, "description": "convolutions left in float: numbers from 0, or names"},
        exclude_layers={**layers, "description": "layers of any kind left in float: numbers from 0, or names"},
        **{key: _flag(text, getattr(default, key)) for key, text in flags.items()},
    )
    return {**section, "additionalProperties": True}  # the vendor's other keys are accepted and have no effect


def _dataset() -> Schema:
    ops = {"type": ["array", "null"], "items": {"oneOf": list(_ops())}, "description": "DecodeImage, Resize, ..."}
    return _section(
        "calibration images and their preprocessing",
        type=_choice(DatasetType, "the vendor's word", DatasetType.TVM),
        path=_path("folder a class, flat folder with a label list, or a tar of either (--dataset)"),
        val_label=_path("label list of a flat folder, lines 'name index'"),
        class_order={
            "enum": [*_values(ClassOrder)["enum"], None],
            "description": "of class folders that are numbers: text (0, 1, 10, 2) or numeric; null: text, and a line",
        },
        vdsp_params=_nullable(_text("preprocessing as a vdsp_params file; must agree with process_ops")),
        sampler=_section(
            "which images",
            suffix=_text("of the image files; JPEG takes .jpg and .jpeg, any every kind", default=SamplerConfig.suffix),
            get_data_num={
                "type": "integer",
                "minimum": 1,
                "default": SamplerConfig.get_data_num,
                "description": "calibration images",
            },
            seed={"type": "integer", "minimum": 0, "default": SamplerConfig.seed, "description": "of their choice"},
            cover_classes=_flag("a class without an image is an error", SamplerConfig.cover_classes),
        ),
        process_ops=ops,
        transform_ops=ops,
        skip_bad=_flag("images that cannot be decoded are left out and named (--skip_bad)", DatasetConfig.skip_bad),
    )


def _ops() -> Iterator[Schema]:
    pair = {"type": "array", "items": _SIDE, "minItems": 2, "maxItems": 2}
    filters = {"enum": [*_values(ResizeFilter)["enum"], None]}
    yield _op("DecodeImage")
    yield _op("Resize", {"size": {"anyOf": [_SIDE, pair]}, "interpolation": filters}, ["size"])
    yield _op("CenterCrop", {"crop_size": {"anyOf": [_SIDE, pair]}}, ["crop_size"])
    yield _op("Normalize", {"mean": _TRIPLE, "std": _TRIPLE, "div255": {"type": "boolean"}}, ["mean", "std"])
    yield _op("ToTensor")
    yield _op("CvtColor", {"code": {"enum": ["COLOR_RGB2BGR", "COLOR_BGR2RGB"]}}, ["code"])
    yield {**_op("CustomFunc"), "additionalProperties": True}  # loads; a build says what to give in its place


def _op(name: str, properties: Mapping[str, Schema] | None = None, required: Iterable[str] = ()) -> Schema:
    return {
        "type": "object",
        "properties": {"type": {"const": name}, **(properties or {})},
        "required": ["type", *required],
        "additionalProperties": False,
    }


def _accuracy() -> Schema:
    percent = {"type": ["number", "null"], "minimum": 0, "maximum": 100}
    return _section(
        "leave in float what costs most, until a goal is reached",
        min_agreement={**percent, "description": "goal: % of the answers of float32"},
        max_drop={**percent, "description": "goal: top-1 accuracy that may be lost, in points"},
        min_speed={
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": 1,
            "default": AccuracyConfig.min_speed,
            "description": "of the plain int8 model",
        },
        budget_minutes={
            "type": "number",
            "exclusiveMinimum": 0,
            "default": AccuracyConfig.budget_minutes,
            "description": "of the search",
        },
    )


def _workspace() -> Schema:
    section = _section(
        "where packages and the artefacts of the steps go",
        path={"type": "string", "default": f"./{WorkspaceConfig.path}/", "description": "folder"},
    )
    return {**section, "additionalProperties": True}  # keys of the vendor's, without effect


def _section(text: str, **properties: Schema) -> Schema:
    return {
        "type": ["object", "null"],
        "description": text,
        "properties": properties,
        "additionalProperties": False,
    }


def _choice(members: Iterable[Enum], text: str, default: Enum) -> Schema:
    return {**_values(members), "default": default.value, "description": text}


def _values(members: Iterable[Enum]) -> Schema:
    return {"enum": [member.value for member in members]}


def _flag(text: str, default: bool) -> Schema:
    return {"type": "boolean", "default": default, "description": text}


def _text(text: str, **more: object) -> Schema:
    return {"type": "string", "minLength": 1, "description": text, **more}


def _path(text: str) -> Schema:
    return _nullable(_text(text))


def _nullable(schema: Schema) -> Schema:
    return {**schema, "type": [schema["type"], "null"]}
