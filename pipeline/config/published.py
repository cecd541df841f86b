"""How images were prepared for the published checkpoints that `checkpoint: auto` takes. Facts only.

Sources: the weights' `transforms` of torchvision 0.29 (`IMAGENET1K_V1`), and `pretrained_cfg` of timm 1.0.31 for the
same files, whose Resize is `floor(input size / crop_pct)` of its evaluation transform; resnet18's, which timm no longer
lists, is of timm 0.6.5.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config.vdsp import PreprocessSpec, ResizeFilter, ResizeMode

_BILINEAR, _BICUBIC = ResizeFilter.BILINEAR_PILLOW, ResizeFilter.BICUBIC_PILLOW
_TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("wide_resnet50_2", "wide_resnet101_2"),
)
_RECORDS: Mapping[tuple[str, str], tuple[int, ResizeFilter]] = {  # library and name -> Resize; all crop 224 px
    **{("torchvision", name): (256, _BILINEAR) for name in _TORCHVISION},
    ("timm", "resnet18"): (256, _BILINEAR),
    ("timm", "resnet34"): (256, _BICUBIC),  # bt_in1k
    ("timm", "resnet50"): (235, _BICUBIC),  # a1_in1k
    ("timm", "resnet50d"): (256, _BICUBIC),  # ra2_in1k
    ("timm", "resnet101"): (235, _BICUBIC),  # a1h_in1k
    ("timm", "resnet152"): (235, _BICUBIC),  # a1h_in1k
    ("timm", "wide_resnet50_2"): (256, _BICUBIC),  # racm_in1k
    ("timm", "wide_resnet101_2"): (256, _BILINEAR),  # tv_in1k
}


def recorded_preprocess(library: str, model: str | None) -> PreprocessSpec | None:
    """Return how images were prepared for a network's published checkpoint; None where its library records nothing."""
    if (library, model or "") not in _RECORDS:
        return None
    size, resize_filter = _RECORDS[library, model or ""]
    return PreprocessSpec(
        resize=ResizeMode.SHORTER_SIDE,
        resize_hw=(size, size),
        filter=resize_filter,
        crop_hw=(224, 224),
        crop_yx=None,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        synthetic_hw=(size, size),
    )
