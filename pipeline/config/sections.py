"""What a build file says: one frozen dataclass a section, with the declaration of each key (see `keys.py`).

Reader, JSON Schema, `config keys`, docs/build-files.md and the flags of `build` are generated from what stands here:
after a change, `python -m pipeline config schema` and `config docs docs/build-files.md` renew the two files.
"""
# ruff: noqa: RUF009  (`key` and `section` are `dataclasses.field` with metadata)

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.choices import (
    UNUSED_QUANTIZE,
    UNUSED_WORKSPACE,
    BackendType,
    BackgroundClass,
    CalibrateMode,
    ExtraOp,
    Frontend,
    Precision,
    Target,
    WeightRounding,
)
from pipeline.config.image_sections import DatasetConfig, EvaluationConfig
from pipeline.config.keys import REQUIRED, Key, key, optional_section, section, walk
from pipeline.config.kinds import SHAPE, ByHand, Integer, Layers, Number, PathTo, Switch, Text, Unused, choice

# In place of a checkpoint's path: the file that the library publishes for the network.
AUTO = Path("auto")


@dataclass(frozen=True, kw_only=True)
class FrontendConfig:
    """Section `frontend:`, what to export."""

    type: Frontend = key(
        REQUIRED,
        choice(Frontend, fallback=Frontend.ONNX),
        "library of the network (`official`: iduta/iresnet), or `onnx` for a file that holds the whole network; "
        "`pytorch`: TorchScript or a program of torch.export; `keras`: a whole `.keras` or `.h5`; the other values are "
        "read and refused by the build",
    )
    model: str | None = key(None, Text(), "name of the network, as `models` lists it; null for `onnx`")
    checkpoint: Path | None = key(
        None,
        PathTo(),
        "PyTorch, safetensors, PaddlePaddle, Keras or ONNX file; `auto`: download the one that the library publishes; "
        "null: generated sample weights",
        flag="--weights",
        metavar="FILE",
    )
    checkpoint_key: str | None = key(
        None,
        Text(),
        "which weights of a checkpoint that holds several sets; null: the averaged ones (EMA), else the plain ones",
        example="model_ema",
    )
    input_name: str = "input"
    shape: tuple[int, int, int, int] = key(  # [N, C, H, W]; N is 1 or, for any batch, -1
        REQUIRED,
        ByHand(SHAPE, "{name: [1, 3, H, W]}"),
        "the input: its name in the ONNX model, and its shape; for an ONNX file with channels last also `[1, H, W, 3]`",
        flag="--size",
        metavar="PX",
        flag_means="height and width of the input; the preprocessing is scaled to match",
        example="{input: [1, 3, 224, 224]}",
    )
    dtype: Precision = key(
        Precision.FP32,
        choice((Precision.FP32, Precision.FP16)),
        "precision of the checkpoint; the vendor's key, without effect",
    )
    num_classes: int | None = key(None, Integer(1), "number of classes of the checkpoint; null: that of the data set")
    output: str | None = key(
        None, Text(), "the output with the scores, for an ONNX file with several outputs; null: its only one"
    )
    background: BackgroundClass | None = key(
        None,
        choice(BackgroundClass),
        "background class of an ONNX file (as in TensorFlow's 1001 classes), which is cut off",
    )

    @property
    def chw(self) -> tuple[int, int, int]:
        return self.shape[1:]


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """Section `backend.quantize:`."""

    calibrate_mode: CalibrateMode = key(
        CalibrateMode.PERCENTILE,
        choice(CalibrateMode),
        "how the range of each activation is chosen; `measured`: of several percentiles, the one whose int8 model "
        "is nearest to float32 on calibration images",
        misspelt="alibrate_mode",  # in files of the vendor's model zoo
    )
    percentile: float | None = key(
        None,
        Number(above=50, most=100),
        "calibrate_mode `percentile`: the range leaves (100 - P)% of the values outside at either end; "
        "null: 99.9999, or less where the histograms promise clearly less noise so",
        flag="--percentile",
        metavar="P",
        example="99.99",
    )
    quantize_per_channel: bool = key(
        True, Switch(), "weights: one scale per output channel (true) or per tensor (false)"
    )
    pixel_input: bool = key(True, Switch(), "the model reads uint8 pixels and normalises them itself, where it can")
    equalization: bool = key(True, Switch(), "channels that share a scale are rescaled to similar ranges")
    weight_rounding: WeightRounding = key(
        WeightRounding.SECOND_ORDER,
        choice(WeightRounding),
        "`second_order`: weights are rounded so that each layer's output loses least",
    )
    float_classifier: bool = key(True, Switch(), "the last layer and the activation it reads stay float32")
    bias_correction: bool = key(
        True,
        Switch(),
        "the shift that rounding the weights causes in a layer's mean output is subtracted from its bias",
    )
    skip_conv_layers: tuple[int | str, ...] = key((), Layers(), "convolutions left in float", example="[0, 3]")
    exclude_layers: tuple[int | str, ...] = key(
        (), Layers(), "layers of any kind left in float", example="[/fc/Gemm, /layer1/*]"
    )


@dataclass(frozen=True, kw_only=True)
class AccuracyConfig:
    """Section `accuracy:`, ours: how near to float32 the int8 model has to be, and at what price. At least one goal."""

    min_agreement: float | None = key(
        None, Number(above=50, most=100, unit="%"), "goal: same answer as float32, in % of the images", example="99.5"
    )
    max_kl: float | None = key(
        None, Number(above=0, unit="nats"), "goal: KL divergence from float32, in nats per image"
    )
    max_drop: float | None = key(
        None, Number(least=0, most=100, unit="points"), "goal: top-1 accuracy that may be lost, in points"
    )
    min_speed: float = key(
        0.85, Number(above=0, most=1, unit="a share"), "least throughput, as a share of the plain int8 model's"
    )
    budget_minutes: float = key(15.0, Number(above=0, unit="minutes"), "time for the search, in minutes")


@dataclass(frozen=True, kw_only=True)
class BackendConfig:
    """Section `backend:`."""

    type: BackendType = key(BackendType.TVM_VACC, choice(BackendType), "the vendor's value, without effect")
    dtype: Precision = key(
        Precision.INT8, choice(Precision), "precision of the package; fp16 and fp32 are not calibrated"
    )
    target: Target = key(
        Target.ANY,
        choice(Target),
        "accepted, without effect: packages are exact on every CPU",
        flag="--target",
        metavar="CPU",
    )
    compile: Mapping[str, object] = key({}, Unused(), "the vendor's hardware keys, reported and without effect")
    quantize: QuantizeConfig = section(
        QuantizeConfig,
        "how it is quantized",
        unused=UNUSED_QUANTIZE,
    )


@dataclass(frozen=True, kw_only=True)
class ExtraOps:
    """Section `graph.extra_ops:`."""

    type: ExtraOp | None = key(
        None, choice(ExtraOp), "appended to the network's output, unless that ends in probabilities already"
    )


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """Section `graph:`."""

    extra_ops: ExtraOps = section(ExtraOps, "one op")

    @property
    def extra_op(self) -> ExtraOp | None:
        return self.extra_ops.type


@dataclass(frozen=True, kw_only=True)
class WorkspaceConfig:
    """Section `workspace:`."""

    path: Path = key(
        Path("deploy_weights"),
        PathTo(),
        "folder of packages, and of the cached artefacts of the stages",
        flag="--output",
        metavar="DIR",
    )


@dataclass(frozen=True, kw_only=True)
class Sections:
    """A build file with every default and override resolved. Relative paths are relative to the current folder."""

    name: str = key(
        REQUIRED,
        Text(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", "letters, digits, '.', '_' and '-', not starting with '.'"),
        "name of the model; the package is `{name}-{dtype}-{calibrate_mode}-{C}_{H}_{W}-vacc/{name}`",
    )
    frontend: FrontendConfig = section(FrontendConfig, "what to export", required=True)
    backend: BackendConfig = section(BackendConfig, "precision and quantization")
    graph: GraphConfig = section(GraphConfig, "what is appended to the network")
    dataset: DatasetConfig = section(DatasetConfig, "calibration images and their preprocessing")
    evaluation: EvaluationConfig = section(
        EvaluationConfig, "images that are decoded into npz files, and that `bench` predicts"
    )
    accuracy: AccuracyConfig | None = optional_section(
        AccuracyConfig,
        "split the activations that cost most, or leave them in float32, until a goal is reached; null: the plain int8 "
        "model",
    )
    workspace: WorkspaceConfig = section(
        WorkspaceConfig,
        "where packages and the artefacts of the stages go",
        unused=UNUSED_WORKSPACE,
    )


def declared_keys() -> Iterator[tuple[str, Key]]:
    """Yield dotted name and declaration of every key of a build file."""
    return walk(Sections)


def declaration(name: str) -> Key:
    """Return the declaration of a dotted key. Raises KeyError where there is no such key."""
    return dict(declared_keys())[name]
