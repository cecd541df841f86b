"""amd-quark, ONNX: uint8 activations, int8 weights by channel, QDQ; what README.md here says of its documentation."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import onnx
from job import Float32, Job, Made, work
from quark.onnx import ModelQuantizer
from quark.onnx.quantization.config.algorithm import (
    AdaQuantConfig,
    AdaRoundConfig,
    AlgoConfig,
    BiasCorrectionConfig,
    CLEConfig,
)
from quark.onnx.quantization.config.config import QConfig
from quark.onnx.quantization.config.spec import CalibMethod, Int8Spec, QLayerConfig, QuantGranularity, UInt8Spec


class Reader:
    """The images one by one: Quark recommends batches of one."""

    def __init__(self, job: Job) -> None:
        self._name = onnx.load(job.onnx, load_external_data=False).graph.input[0].name
        self._images: Iterator[Float32] = job.batches(1)

    def get_next(self) -> dict[str, Float32] | None:
        batch = next(self._images, None)
        return None if batch is None else {self._name: batch}


def quantize(job: Job, algorithms: list[AlgoConfig], what: str) -> Made:
    activations = UInt8Spec(calibration_method=CalibMethod.MinMax)
    weights = Int8Spec(calibration_method=CalibMethod.MinMax, quant_granularity=QuantGranularity.Channel)
    config = QConfig(
        global_config=QLayerConfig(activation=activations, weight=weights),
        algo_config=algorithms,
        OpTypesToExcludeOutputQuantization=["Gemm"],  # the answer stays float32, as in the other rows
    )
    model = Path("model.onnx").absolute()
    ModelQuantizer(config).quantize_model(str(job.onnx), str(model), Reader(job))
    settings = f"amd-quark {version('amd-quark')}, QDQ, MinMax, uint8 activations, int8 weights by channel, {what}"
    return Made(str(model), len(job.images), settings)


def learning(job: Job, iterations: int) -> str:
    return f"{iterations} iterations a layer on {job.tuning} of the images, batch 1"


def make_minmax(job: Job) -> Made:
    return quantize(job, [], "no accuracy algorithm")


def make_cle(job: Job) -> Made:
    return quantize(job, [CLEConfig(), BiasCorrectionConfig()], "CLE (1 step) and bias correction")


def make_adaround(job: Job) -> Made:
    iterations = job.iterations or 1000
    algorithm = AdaRoundConfig(num_iterations=iterations, learning_rate=0.1, data_size=job.tuning)
    return quantize(job, [algorithm], f"AdaRound, {learning(job, iterations)}, learning rate .1")


def make_adaquant(job: Job) -> Made:
    iterations = job.iterations or 3000
    algorithm = AdaQuantConfig(num_iterations=iterations, learning_rate=1e-5, data_size=job.tuning)
    return quantize(job, [algorithm], f"AdaQuant, {learning(job, iterations)}, learning rate 1e-5")


if __name__ == "__main__":
    work({"minmax": make_minmax, "cle": make_cle, "adaround": make_adaround, "adaquant": make_adaquant})
