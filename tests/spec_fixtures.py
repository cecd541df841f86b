"""A preprocessing whose every number differs from the others, so that none can be taken for another."""

from __future__ import annotations

from dataclasses import replace

from pipeline.config.vdsp import PreprocessSpec, ResizeFilter, ResizeMode

SPEC = PreprocessSpec(
    resize=ResizeMode.STRETCH,
    resize_hw=(240, 256),
    filter=ResizeFilter.BILINEAR_CV,
    crop_hw=(224, 200),
    crop_yx=(10, 28),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    synthetic_hw=(280, 300),
)
SHORTER = replace(SPEC, resize=ResizeMode.SHORTER_SIDE, resize_hw=(256, 256), crop_yx=None)
