"""Init: what Keras's own networks are given, which their files do not say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.onnx_models.input_units import InputUnit

if TYPE_CHECKING:
    import onnx

_PRODUCER = "tf2onnx"
_CONVENTIONS = (
    "the file does not say how images are prepared; what preprocess_input of Keras does must stand in process_ops: "
    "mean and std 0.5 (MobileNet, MobileNetV2, Inception, Xception, NASNet, ResNetV2: --mean 0.5 --std 0.5), "
    "ImageNet's (DenseNet), or for VGG and ResNet {type: CvtColor, code: COLOR_RGB2BGR}, {type: Normalize, "
    "mean: [103.939, 116.779, 123.68], std: [1, 1, 1], div255: false}"
)


def describe(model: onnx.ModelProto, unit: InputUnit | None, *, is_recorded: bool) -> str:
    """Return what to put into a build file for a model that TensorFlow made, after "; "; "" where it is known.

    Args:
        unit: of the images, where the network normalises them itself.
        is_recorded: the preprocessing is known from files beside the model.
    """
    return "" if model.producer_name != _PRODUCER or unit is not None or is_recorded else f"; {_CONVENTIONS}"
