"""onnx_norms.py: GroupNormalization in other operators, to the values of its definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_fixtures import CHW, IMAGES, RNG, flat, node, operators, save

from pipeline.onnx_models import classifier
from pipeline.onnx_models.raw_file import RawFile

WEIGHT = RNG.normal(size=(6, 3, 1, 1)).astype(np.float32)


@pytest.mark.parametrize(("opset", "each"), [(18, "group"), (18, "channel"), (21, "group"), (21, "channel")])
def test_load_gives_the_values_of_a_group_norm_when_scale_is_one_a_group_or_channel(
    tmp_path: Path, opset: int, each: str
) -> None:
    groups = 6 if each == "channel" else 2
    size = groups if opset == 18 else 6
    scale, bias = RNG.uniform(0.5, 2, size).astype(np.float32), RNG.normal(size=size).astype(np.float32)
    nodes = flat(
        node("Conv", "x w", "c"), node("GroupNormalization", "c scale bias", "a", num_groups=groups, epsilon=1e-3)
    )
    path = save(tmp_path / "m.onnx", nodes, opset, {"w": WEIGHT, "scale": scale, "bias": bias})
    model = classifier.load(path, CHW)
    assert "GroupNormalization" not in operators(model)

    maps = np.einsum("nchw,oc->nohw", IMAGES.astype(np.float64), WEIGHT[:, :, 0, 0]).reshape(len(IMAGES), groups, -1)
    normal = (maps - maps.mean(2, keepdims=True)) / np.sqrt(maps.var(2, keepdims=True) + 1e-3)
    normal = normal.reshape(len(IMAGES), size, -1) * scale[:, None] + bias[:, None]
    expected = normal.reshape(len(IMAGES), -1)
    np.testing.assert_allclose(classifier.run(model, IMAGES), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(RawFile(path, None).answers(IMAGES), expected, rtol=1e-4, atol=1e-4)
