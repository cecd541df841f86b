"""The enums of a build file's keys, and the vendor's keys that have no effect here."""

from __future__ import annotations

from enum import Enum


class Frontend(Enum):
    TIMM = "timm"
    TORCHVISION = "torchvision"
    OFFICIAL = "official"
    PADDLECLAS = "paddleclas"
    PADDLE = "paddle"
    ONNX = "onnx"
    PYTORCH = "pytorch"
    KERAS = "keras"
    TENSORFLOW = "tensorflow"
    CAFFE = "caffe"
    DARKNET = "darknet"


# Frontends whose file holds the graph itself; the others build a named model and need its name.
GRAPH_FILES = (
    Frontend.ONNX,
    Frontend.PADDLE,
    Frontend.PYTORCH,
    Frontend.KERAS,
    Frontend.TENSORFLOW,
    Frontend.CAFFE,
    Frontend.DARKNET,
)


class PreprocessAs(Enum):
    """Whose arithmetic: what sizes come to, where a centred crop begins, whether EXIF turns an image.

    Sources: torchvision's `resize` and `center_crop` (functional.py); PaddleClas's `ResizeImage` and `CropImage`
    (ppcls/data/preprocess/ops/operators.py), and OpenCV's `imdecode`, by which it decodes; transformers'
    `get_resize_output_image_size`, `center_crop` (image_transforms.py) and `load_image`, which its pipelines call.
    """

    TORCHVISION = "torchvision"  # the longer side is cut to an integer, half a pixel goes to the even one; EXIF ignored
    PADDLECLAS = "paddleclas"  # both sides are rounded, half a pixel is left out; EXIF obeyed, see `preprocess.decode`
    TRANSFORMERS = "transformers"  # the longer side is cut to an integer, half a pixel is left out; EXIF obeyed


class Precision(Enum):
    INT8 = "int8"
    FP16 = "fp16"
    FP32 = "fp32"


class CalibrateMode(Enum):
    PERCENTILE = "percentile"
    KL_DIVERGENCE = "kl_divergence"
    MAX = "max"
    MSE = "mse"
    MEASURED = "measured"  # of several percentiles, the one whose int8 model answers most like float32


class WeightRounding(Enum):
    SECOND_ORDER = "second_order"  # minimises the error of each layer's output
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


# Keys for the accelerator's compiler, from the vendor's model zoo. Each is accepted and reported once.
UNUSED_QUANTIZE = (
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
UNUSED_WORKSPACE = ("enable_ir", "env_recheck", "pyenv", "save_log", "work_dir", "workers")
