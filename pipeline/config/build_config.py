"""What a build file says, as one frozen dataclass per section. `build_file.py` makes them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path

from pipeline.config.schema import Document, Fault, raise_faults
from pipeline.config.vdsp import PreprocessSpec, to_vdsp_dict
from pipeline.errors import ConfigError

# Keys with a flag of their own -> that flag, to name it in errors.
FLAGS = {
    "frontend.checkpoint": "--weights",
    "dataset.path": "--dataset",
    "evaluation.path": "--evaluation",
    "backend.target": "--target",
    "dataset.skip_bad": "--skip_bad",
}

# In place of a checkpoint's path: the file that the library publishes for the network.
AUTO = Path("auto")


class Frontend(Enum):
    TIMM = "timm"
    TORCHVISION = "torchvision"
    OFFICIAL = "official"
    PADDLECLAS = "paddleclas"
    ONNX = "onnx"
    PYTORCH = "pytorch"
    KERAS = "keras"
    TENSORFLOW = "tensorflow"
    CAFFE = "caffe"
    DARKNET = "darknet"


# Frontends whose file holds the graph itself; the others build a named model and need its name.
GRAPH_FILES = (
    Frontend.ONNX,
    Frontend.PYTORCH,
    Frontend.KERAS,
    Frontend.TENSORFLOW,
    Frontend.CAFFE,
    Frontend.DARKNET,
)


class Precision(Enum):
    INT8 = "int8"
    FP16 = "fp16"
    FP32 = "fp32"


class CalibrateMode(Enum):
    PERCENTILE = "percentile"
    KL_DIVERGENCE = "kl_divergence"
    MAX = "max"
    MSE = "mse"


class WeightRounding(Enum):
    SECOND_ORDER = "second_order"  # by what each layer's output loses
    NEAREST = "nearest"


class ExtraOp(Enum):
    SOFTMAX = "softmax"


class BackgroundClass(Enum):
    """Where an ONNX file has one class more than the data set, which no image shows: TensorFlow's 1001 of ImageNet."""

    FIRST = "first"
    LAST = "last"


class BackendType(Enum):
    TVM_VACC = "tvm_vacc"


class Target(Enum):
    """The least CPU that a package is for. Accepted, without effect: every package is exact on all of them."""

    ANY = "any"
    VNNI = "vnni"
    AVX2 = "avx2"


class ClassOrder(Enum):
    """Which output is which class folder."""

    TEXT = "text"  # as torchvision sorts: 0, 1, 10, 2
    NUMERIC = "numeric"  # 0, 1, 2, 10


class DatasetType(Enum):
    TVM = "tvm"


@dataclass(frozen=True, kw_only=True)
class FrontendConfig:
    """Section `frontend:`, what to export."""

    type: Frontend
    model: str | None = None  # None only for frontends whose checkpoint is the graph
    checkpoint: Path | None = None
    checkpoint_key: str | None = None  # which of several state dicts of the checkpoint; None: the averaged, or the only
    input_name: str = "input"
    shape: tuple[int, int, int, int]  # [N, C, H, W]; N is 1 or, for any batch, -1
    dtype: Precision = Precision.FP32
    num_classes: int | None = None  # None: as the model says
    output: str | None = None  # of an ONNX file with several, the one with the scores; None: its only one
    background: BackgroundClass | None = None  # a class of an ONNX file that is cut off

    @property
    def chw(self) -> tuple[int, int, int]:
        return self.shape[1:]


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """Section `backend.quantize:`."""

    calibrate_mode: CalibrateMode = CalibrateMode.PERCENTILE
    percentile: float = 99.9999  # share of values kept, in %, in (50, 100]
    quantize_per_channel: bool = True  # weights: one scale per output channel, or one per tensor
    pixel_input: bool = True  # the model reads uint8 pixels and normalises by itself, where it can
    equalization: bool = True  # rescale channels that share a scale to like ranges
    weight_rounding: WeightRounding = WeightRounding.SECOND_ORDER
    float_classifier: bool = True  # the last layer and the activation it reads stay float32
    bias_correction: bool = True  # take from each bias what rounding the weights adds to the mean output
    skip_conv_layers: tuple[int | str, ...] = ()  # convolutions left in float: all by number or all by node name
    exclude_layers: tuple[int | str, ...] = ()  # layers of any kind left in float: likewise


@dataclass(frozen=True, kw_only=True)
class AccuracyConfig:
    """Section `accuracy:`, ours: how near to float32 the int8 model has to be, and at what price. At least one goal."""

    max_drop: float | None = None  # top-1 accuracy lost, in points, >= 0
    min_agreement: float | None = None  # answers of float32, in %, in (0, 100]
    min_speed: float = 0.85  # images/s over those of the plain int8 model, in (0, 1]
    budget_minutes: float = 15.0  # > 0


@dataclass(frozen=True, kw_only=True)
class BackendConfig:
    """Section `backend:`."""

    type: str = BackendType.TVM_VACC.value
    dtype: Precision = Precision.INT8
    target: Target = Target.ANY  # accepted, without effect
    compile: Mapping[str, object] = field(default_factory=dict)  # the vendor's hardware keys; without effect here
    quantize: QuantizeConfig = QuantizeConfig()


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """Section `graph:`."""

    extra_op: ExtraOp | None = None  # `extra_ops.type`, appended to the network's output


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Section `dataset.sampler:`."""

    suffix: str = "any"  # of the image files; JPEG takes .jpg and .jpeg, any every kind
    get_data_num: int = 1000  # calibration images, >= 1
    seed: int = 0
    cover_classes: bool = True  # refuse a choice without an image of every class


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Section `dataset:`, the calibration images."""

    type: str = DatasetType.TVM.value
    path: Path | None = None  # folder or tar
    val_label: Path | None = None  # lines `name index`, for a folder without class folders
    class_order: ClassOrder | None = None  # of class folders, also the evaluation's; None: text, and a line about it
    vdsp_params: str | None = None  # a path, or a file name in vdsp_params/
    sampler: SamplerConfig = SamplerConfig()
    process_ops: tuple[Mapping[str, object], ...] = ()  # as written; what they mean is BuildConfig.preprocess
    skip_bad: bool = False  # images that cannot be decoded: others of the same class, and a line about them


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Section `evaluation:`, ours: the images that the accuracy is measured on."""

    path: Path | None = None  # folder or tar
    val_label: Path | None = None  # lines `name index`, for a folder without class folders
    num: int | None = None  # images, >= 1; None: all


@dataclass(frozen=True, kw_only=True)
class WorkspaceConfig:
    """Section `workspace:`."""

    path: Path = Path("deploy_weights")  # where packages go


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """A build file with every default and override resolved. Relative paths are relative to the current folder."""

    name: str  # safe as the name of a folder
    frontend: FrontendConfig
    backend: BackendConfig = BackendConfig()
    graph: GraphConfig = GraphConfig()
    dataset: DatasetConfig = DatasetConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    accuracy: AccuracyConfig | None = None  # None: the plain int8 model
    workspace: WorkspaceConfig = WorkspaceConfig()
    published: Path | None = None  # the checkpoint that `auto` stands for, once it is on this machine; no key
    described: PreprocessSpec | Fault  # from vdsp_params, else from process_ops; Fault: why only a build refuses it
    notices: tuple[str, ...] = ()  # keys that were accepted and do nothing: to be told to the user once
    document: Document = field(default_factory=Document, repr=False, compare=False)  # where each key stands, for errors

    @property
    def preprocess(self) -> PreprocessSpec:
        """What is done to an image. Raises ConfigError where the file loads, but only the vendor's code knows it."""
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
                _wrong_file,
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
        flag = FLAGS.get(key)
        metavar = "FILE" if key == "frontend.checkpoint" else "DIR"
        hint = f"; give {flag} {metavar}" if flag else f"; give --set {key}=FILE"
        return self.document.at(tuple(key.split(".")), message + hint)


def _wrong_file(path: Path) -> str | None:
    try:
        if path.is_file():
            return None
        return "is a folder, expected a file" if path.is_dir() else "no such file"
    except OSError as error:  # a folder that may not be entered, a name too long
        return f"cannot be read: {error.strerror}"


def _wrong_folder(path: Path) -> str | None:
    try:
        if path.is_dir() or (path.is_file() and tarfile.is_tarfile(path)):
            return None
        return "is neither a folder nor a tar file" if path.exists() else "no such folder or tar file"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _plain(value: object) -> object:
    """Dataclasses, enums, paths and tuples -> what YAML and JSON know."""
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
