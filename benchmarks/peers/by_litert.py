"""LiteRT: litert-torch, ai-edge-quantizer's static_wi8_ai8, and LiteRT's interpreter (XNNPACK); see README.md here."""

from __future__ import annotations

import os
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

import litert_torch
import numpy as np
import numpy.typing as npt
import torch
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer, recipe
from job import Answers, Float32, Job, Made, work
from onnx_in_torch import OnnxModule

BURSTS = 20


def make_int8(job: Job) -> Made:
    float32, model = Path("float32.tflite").absolute(), Path("model.tflite").absolute()
    example = torch.from_numpy(np.ascontiguousarray(job.images[:1]))
    litert_torch.convert(OnnxModule(job.onnx).eval(), (example,)).export(str(float32))
    signatures = Interpreter(str(float32)).get_signature_list()
    (signature, tensors), *_ = signatures.items()
    # A list: `calibrate` counts its images first, and a generator would be at its end then.
    images = {signature: [{tensors["inputs"][0]: image} for image in job.batches(1)]}
    quantize = quantizer.Quantizer(str(float32))
    quantize.load_quantization_recipe(recipe.static_wi8_ai8())
    quantize.quantize(quantize.calibrate(images, num_threads=1)).export_model(str(model), overwrite=True)
    libraries = ", ".join(f"{each} {version(each)}" for each in ("litert-torch", "ai-edge-quantizer", "ai-edge-litert"))
    return Made(str(model), len(job.images), f"{libraries}, static_wi8_ai8, the answer in int8 too")


def to_int8(values: Float32, quantization: tuple[float, int]) -> npt.NDArray[np.int8]:
    scale, zero_point = quantization
    return np.clip(np.rint(values / scale) + zero_point, -128, 127).astype(np.int8)


def to_float32(values: npt.NDArray[np.int8], quantization: tuple[float, int]) -> Float32:
    scale, zero_point = quantization
    return (values.astype(np.float32) - zero_point) * np.float32(scale)


def answer(model: Path, images: Float32) -> Answers:
    interpreter = Interpreter(str(model), num_threads=os.cpu_count())
    interpreter.allocate_tensors()
    given, made = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    logits, seconds = [], []
    for image in images:
        begun = time.perf_counter()
        interpreter.set_tensor(given["index"], to_int8(image[None], given["quantization"]))
        interpreter.invoke()
        logits.append(to_float32(interpreter.get_tensor(made["index"]), made["quantization"]))
        seconds.append(time.perf_counter() - begun)
    return Answers(np.concatenate(logits), 1 / median(seconds[-BURSTS:]))


if __name__ == "__main__":
    work({"int8": make_int8}, answer)
