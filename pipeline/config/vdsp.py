"""What is done to an image before the network sees it, as data: `PreprocessSpec`, from a vdsp_params JSON file.

The JSON keys are the vendor's. `"ResizeMode"` is ours: absent, the vendor's meaning holds, which is to stretch the
image to ResizeHeight x ResizeWidth whatever its aspect; `"SHORTER_SIDE"` scales its shorter side to that length, as
torchvision's `Resize(256)` does; `"NONE"` crops the image as it is. A file without any size takes the network's: the
vendor's programs then scale the shorter side to 256/224 of the input and crop the centre. `"PreprocessAs"` is ours too:
absent, in a package or alone, sizes and corners are computed as torchvision does; a build file may decide otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pipeline.config.choices import PreprocessAs
from pipeline.config.documents import find_file, parse_json, read_text, shown_path
from pipeline.config.kinds import MAX_SIDE
from pipeline.config.pixel_units import check_unit
from pipeline.config.schema import Document, Fault, Section, raise_faults

Triple = tuple[float, float, float]

FOLDER = "vdsp_params"
USUAL_HW = (224, 224)  # taken where a file has no sizes and nobody says what the network takes
# Keys that say how large something is or how it is resized; a file has several of them, or leaves all to the network.
_SIZES = {"OimageHeight", "OimageWidth", "ResizeHeight", "ResizeWidth", "CropY", "CropX", "ResizeMode"}


class ResizeMode(Enum):
    STRETCH = "STRETCH"  # to height x width, aspect ignored
    SHORTER_SIDE = "SHORTER_SIDE"  # aspect kept; what the longer side comes to, `PreprocessAs` says
    NONE = "NONE"


class ResizeFilter(Enum):
    BILINEAR_CV = "BILINEAR_CV"  # OpenCV's INTER_LINEAR: two taps an axis at any scale, so it aliases when it shrinks
    BILINEAR_PILLOW = "BILINEAR_PILLOW"  # Pillow's filters widen with the scale: antialiased
    BICUBIC_PILLOW = "BICUBIC_PILLOW"
    LANCZOS_PILLOW = "LANCZOS_PILLOW"
    NEAREST_PILLOW = "NEAREST_PILLOW"  # rounds otherwise than OpenCV's, hence the name


class ColourOrder(Enum):
    RGB = "RGB"
    BGR = "BGR"


class NormType(Enum):
    """How a vdsp file writes the normalisation of a value x in 0..255."""

    DIV255_MINUSMEAN_DIVSTD = "DIV255_MINUSMEAN_DIVSTD"  # (x / 255 - mean) / std
    MINUSMEAN_DIVSTD = "MINUSMEAN_DIVSTD"  # (x - mean) / std
    DIV255 = "DIV255"  # x / 255
    DIV1275_MINUSONE = "DIV1275_MINUSONE"  # x / 127.5 - 1
    EQUAL = "EQUAL"  # x


# Norm types that leave no choice: mean and std in 0..1 units.
_FIXED_NORMS: Mapping[NormType, tuple[float, float]] = {
    NormType.DIV255: (0.0, 1.0),
    NormType.DIV1275_MINUSONE: (0.5, 0.5),
    NormType.EQUAL: (0.0, 1.0 / 255.0),
}


class OpType(Enum):
    CROP = "FUSION_OP_RGB_RESIZE_CVTCOLOR_CROP_NORM_TENSOR"
    NO_CROP = "FUSION_OP_RGB_RESIZE_CVTCOLOR_NORM_TENSOR"


class _ImageFormat(Enum):
    RGB_PLANAR = "RGB_PLANAR"


class _ColourCode(Enum):
    """Images here are RGB, so both exchanges mean that the network gets BGR."""

    NO_CHANGE = "NO_CHANGE"
    RGB2BGR = "RGB2BGR"
    BGR2RGB = "BGR2RGB"


@dataclass(frozen=True, kw_only=True)
class PreprocessSpec:
    """uint8 RGB image of any size -> float32 [3, *crop_hw]. Sizes are (height, width) in pixels."""

    resize: ResizeMode
    resize_hw: tuple[int, int] | None  # SHORTER_SIDE: (size, size); NONE: None
    filter: ResizeFilter = ResizeFilter.BILINEAR_CV
    crop_hw: tuple[int, int]
    crop_yx: tuple[int, int] | None  # top left corner of a STRETCH crop; None: the centre of whatever size there is
    mean: Triple = (0.0, 0.0, 0.0)  # units of a 0..1 image, in the order of `colour`
    std: Triple = (1.0, 1.0, 1.0)  # the same, > 0
    colour: ColourOrder = ColourOrder.RGB  # what the network gets
    norm: NormType = NormType.DIV255_MINUSMEAN_DIVSTD  # how a vdsp file writes mean and std; no other effect
    preprocess_as: PreprocessAs = PreprocessAs.TORCHVISION
    synthetic_hw: tuple[int, int]  # images made up for a pure performance run

    @property
    def output_hw(self) -> tuple[int, int]:
        return self.crop_hw


def load_vdsp(
    path_or_name: str | Path,
    input_hw: tuple[int, int] = USUAL_HW,
    unsaid: PreprocessAs = PreprocessAs.TORCHVISION,
) -> PreprocessSpec:
    """Read a vdsp_params file: a path, or the name of a file in vdsp_params/. Raises ConfigError with every fault.

    Args:
        input_hw: height and width that the network takes, for files without sizes.
        unsaid: whose arithmetic it is, for files that do not say.
    """
    spec, faults = read_vdsp(find_file(path_or_name, FOLDER), input_hw, unsaid)
    raise_faults(faults)
    assert spec is not None
    return spec


def read_vdsp(
    path: Path, input_hw: tuple[int, int] = USUAL_HW, unsaid: PreprocessAs = PreprocessAs.TORCHVISION
) -> tuple[PreprocessSpec | None, list[Fault]]:
    """The spec of a file, or None and what is wrong with it. Raises ConfigError where it is no JSON at all."""
    return spec_from_vdsp_document(parse_json(read_text(path), shown_path(path)), input_hw, unsaid)


def spec_from_vdsp_dict(values: Mapping[str, object], name: str) -> PreprocessSpec:
    """The inverse of `to_vdsp_dict`. `name` says in errors where the mapping came from."""
    spec, faults = spec_from_vdsp_document(Document(path=name, values=dict(values)))
    raise_faults(faults)
    assert spec is not None
    return spec


def spec_from_vdsp_document(
    document: Document, input_hw: tuple[int, int] = USUAL_HW, unsaid: PreprocessAs = PreprocessAs.TORCHVISION
) -> tuple[PreprocessSpec | None, list[Fault]]:
    root = document.root()
    op_type = root.choice("OpType", OpType, OpType.CROP, required=True)
    config = root.section("OpConfig", required=True)
    root.done()
    if not document.faults:
        spec = _read_op_config(config, op_type, input_hw, unsaid)
        if not document.faults:
            return spec, []
    return None, document.faults


def _read_op_config(
    config: Section, op_type: OpType, input_hw: tuple[int, int], unsaid: PreprocessAs
) -> PreprocessSpec:
    config.choice("IimageFormat", _ImageFormat, _ImageFormat.RGB_PLANAR)
    # A pitch is the row length of a device buffer: numpy has its own.
    config.ignored(("IimageWidthPitch", "IimageHeightPitch"))
    code = config.choice("ColorCvtCode", _ColourCode, _ColourCode.NO_CHANGE)
    norm = config.choice("NormaType", NormType, NormType.EQUAL, required=True)
    mean, std = _read_norm(config, norm)
    preprocess_as = config.choice("PreprocessAs", PreprocessAs, unsaid)
    sized = bool(config.values.keys() & _SIZES)
    crop_hw = _read_hw(config, "OimageHeight", "OimageWidth", None) if sized else input_hw
    resize, resize_hw, crop_yx = (
        _read_geometry(config, op_type, crop_hw, preprocess_as) if sized else _geometry_of_input(input_hw)
    )
    spec = PreprocessSpec(
        resize=resize,
        resize_hw=resize_hw,
        filter=config.choice("ResizeType", ResizeFilter, ResizeFilter.BILINEAR_CV),
        crop_hw=crop_hw,
        crop_yx=crop_yx,
        mean=mean,
        std=std,
        colour=ColourOrder.RGB if code is _ColourCode.NO_CHANGE else ColourOrder.BGR,
        norm=norm,
        preprocess_as=preprocess_as,
        synthetic_hw=_read_hw(config, "IimageHeight", "IimageWidth", resize_hw or crop_hw),
    )
    config.done()
    return spec


def _read_hw(config: Section, height: str, width: str, default: tuple[int, int] | None) -> tuple[int, int]:
    needed = default is None
    tall, wide = default or (1, 1)
    return (
        config.integer(height, tall, low=1, high=MAX_SIDE, required=needed),
        config.integer(width, wide, low=1, high=MAX_SIDE, required=needed),
    )


def _read_norm(config: Section, norm: NormType) -> tuple[Triple, Triple]:
    """Mean and std in 0..1 units. Files whose norm type has none often keep them all the same: checked, not used."""
    free = norm not in _FIXED_NORMS
    if free:
        for key in ("Mean", "Std"):
            if key not in config:
                config.fault(key, f"missing, and {norm.value} needs it")
    mean = _triple(config.numbers("Mean", (0.0, 0.0, 0.0)))
    std = _triple(config.numbers("Std", (1.0, 1.0, 1.0), positive=True))
    if not free:
        fixed_mean, fixed_std = _FIXED_NORMS[norm]
        return (fixed_mean,) * 3, (fixed_std,) * 3
    of_share = norm is NormType.DIV255_MINUSMEAN_DIVSTD
    other = NormType.MINUSMEAN_DIVSTD if of_share else NormType.DIV255_MINUSMEAN_DIVSTD
    check_unit(config, mean, std, of_share=of_share, other=f"NormaType {other.value}", keys=("Mean", "Std"))
    unit = 1.0 if of_share else 255.0
    return _triple(tuple(x / unit for x in mean)), _triple(tuple(x / unit for x in std))


def _triple(values: tuple[float, ...]) -> Triple:
    first, second, third = values
    return first, second, third


def _read_geometry(
    config: Section, op_type: OpType, crop_hw: tuple[int, int], preprocess_as: PreprocessAs
) -> tuple[ResizeMode, tuple[int, int] | None, tuple[int, int] | None]:
    """Resize mode, resize size and crop corner."""
    mode = config.choice("ResizeMode", ResizeMode, ResizeMode.STRETCH)
    if mode is ResizeMode.NONE:
        return mode, None, None
    whole = op_type is OpType.NO_CROP
    resize_hw = _read_hw(config, "ResizeHeight", "ResizeWidth", crop_hw if whole else None)
    highest = (resize_hw[0] - crop_hw[0], resize_hw[1] - crop_hw[1])
    if min(highest) < 0 or (whole and highest != (0, 0)):
        config.fault(
            "OimageHeight",
            f"the output {list(crop_hw)} does not fit the resized image {list(resize_hw)} [height, width]",
        )
        for key in ("CropY", "CropX"):  # nothing to hold them against
            config.take(key)
        return mode, resize_hw, None
    if mode is ResizeMode.STRETCH:
        top = config.integer("CropY", 0, low=0, high=highest[0], required=not whole)
        return mode, resize_hw, (top, config.integer("CropX", 0, low=0, high=highest[1], required=not whole))
    if resize_hw[0] != resize_hw[1]:
        config.fault(
            "ResizeHeight", f"SHORTER_SIDE is one length: expected ResizeWidth {resize_hw[1]}, got {resize_hw[0]}"
        )
    for key, room in (("CropY", highest[0]), ("CropX", highest[1])):
        centre = centre_offset(room, preprocess_as)
        if config.integer(key, centre, low=0) != centre:
            config.fault(key, f"SHORTER_SIDE crops at the centre: expected {centre}, or no such key")
    return mode, resize_hw, None


def _geometry_of_input(input_hw: tuple[int, int]) -> tuple[ResizeMode, tuple[int, int], None]:
    side = max(input_hw) * 256 // 224
    return ResizeMode.SHORTER_SIDE, (side, side), None


def centre_offset(room: int, preprocess_as: PreprocessAs) -> int:
    """First pixel of a centred crop that leaves `room` pixels over."""
    return round(room / 2.0) if preprocess_as is PreprocessAs.TORCHVISION else room // 2


def to_vdsp_dict(spec: PreprocessSpec) -> dict[str, object]:
    """The JSON form of a spec, as written into packages. `spec_from_vdsp_dict` gives the same spec back."""
    unit = 255.0 if spec.norm is NormType.MINUSMEAN_DIVSTD else 1.0
    tall, wide = spec.synthetic_hw
    config: dict[str, object] = {
        "IimageFormat": _ImageFormat.RGB_PLANAR.value,
        "IimageWidth": wide,
        "IimageHeight": tall,
        "OimageWidth": spec.crop_hw[1],
        "OimageHeight": spec.crop_hw[0],
    }
    if spec.resize_hw is not None:
        top, left = spec.crop_yx or tuple(
            centre_offset(full - crop, spec.preprocess_as)
            for full, crop in zip(spec.resize_hw, spec.crop_hw, strict=True)
        )
        config.update(CropX=left, CropY=top, ResizeWidth=spec.resize_hw[1], ResizeHeight=spec.resize_hw[0])
    config["IimageWidthPitch"], config["IimageHeightPitch"] = wide, tall
    if spec.norm not in _FIXED_NORMS:
        # Twelve digits give back the number that the file had: 123.6875 / 255 * 255 is not quite 123.6875.
        config["Mean"] = [float(f"{x * unit:.12g}") if unit != 1.0 else x for x in spec.mean]
        config["Std"] = [float(f"{x * unit:.12g}") if unit != 1.0 else x for x in spec.std]
    colour = _ColourCode.NO_CHANGE if spec.colour is ColourOrder.RGB else _ColourCode.RGB2BGR
    config.update(NormaType=spec.norm.value, ColorCvtCode=colour.value, ResizeType=spec.filter.value)
    if spec.resize is not ResizeMode.STRETCH:
        config["ResizeMode"] = spec.resize.value
    if spec.preprocess_as is not PreprocessAs.TORCHVISION:  # packages of earlier versions mean torchvision's, unsaid
        config["PreprocessAs"] = spec.preprocess_as.value
    return {"OpType": OpType.CROP.value, "OpConfig": config}
