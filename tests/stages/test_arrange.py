from __future__ import annotations

import numpy as np
import onnx
from conftest import FinishedBuild

from pipeline.onnx_models import classifier
from pipeline.quant.int8_weights import scales_of
from pipeline.quant.layers import weights_of


def test_run_writes_the_same_function_with_narrower_scales_and_later_stages_read_it(finished: FinishedBuild) -> None:
    stages = finished.built.stages
    before, after = (onnx.load(stages[name] / "model.onnx") for name in ("equalize", "arrange"))
    shape = [dim.dim_value for dim in before.graph.input[0].type.tensor_type.shape.dim][1:]
    images = np.random.default_rng(0).integers(0, 256, (3, *shape)).astype(np.float32)
    expected = classifier.run(before, images)
    np.testing.assert_allclose(classifier.run(after, images), expected, atol=1e-4 * np.abs(expected).max())

    def widths(model: onnx.ModelProto) -> float:
        return sum(
            float(np.square(scales_of(each.matrix, each.pairs, per_channel=True)).sum())
            for each in weights_of(model)
            if each.layer != "/fc/Gemm"
        )

    assert widths(after) < 0.95 * widths(before)
    float_weights = {each.name for each in after.graph.initializer if each.name.startswith("/fc/Gemm")}
    quantized = onnx.load(stages["quantize"] / "model.onnx")
    assert float_weights <= {each.name for each in quantized.graph.initializer}
