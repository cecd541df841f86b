"""torchao PT2E with X86InductorQuantizer, compiled by torch.compile (inductor); see README.md here."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch._inductor.config as inductor
import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
from job import Answers, Float32, Job, Made, work
from onnx_in_torch import OnnxModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

BATCH = 22  # as the other models are answered
BURSTS = 5


def quantize(job: Job, *, reduce_range: bool) -> Made:
    module = OnnxModule(job.onnx).eval()
    example = torch.from_numpy(np.ascontiguousarray(job.images[:BATCH])).contiguous(memory_format=torch.channels_last)
    batch = {0: torch.export.Dim("batch", min=1, max=1024)}
    exported = torch.export.export(module, (example,), dynamic_shapes=(batch,)).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(reduce_range=reduce_range))
    prepared = prepare_pt2e(exported, quantizer)
    with torch.no_grad():
        for images in job.batches(BATCH):
            prepared(torch.from_numpy(images))
        converted = convert_pt2e(prepared)
    quantizers = sum("quantize_per" in str(node.target) for node in converted.graph.nodes)
    assert quantizers, "torchao found nothing to quantize"
    model = Path("model.pt2").absolute()
    torch.export.save(torch.export.export(converted, (example,), dynamic_shapes=(batch,)), model)
    settings = (
        f"torchao {version('torchao')}, torch {torch.__version__}, PT2E, X86InductorQuantizer, default configuration"
    )
    return Made(str(model), len(job.images), f"{settings}, reduce_range={reduce_range}")


def answer(model: Path, images: Float32) -> Answers:
    """Compile the model for batches of `BATCH` images, as its tutorial does."""
    inductor.freezing = True  # TORCHINDUCTOR_FREEZING=1 of its tutorial
    module = torch.export.load(model).module()
    padded = np.concatenate([images, np.repeat(images[-1:], -len(images) % BATCH, axis=0)])
    batches = [
        torch.from_numpy(padded[start : start + BATCH]).contiguous(memory_format=torch.channels_last)
        for start in range(0, len(padded), BATCH)
    ]
    with torch.no_grad():
        compiled = torch.compile(module)
        logits = np.concatenate([compiled(batch).numpy() for batch in batches])[: len(images)]
        rates = []
        for _ in range(BURSTS):
            begun = time.perf_counter()
            compiled(batches[0])
            rates.append(BATCH / (time.perf_counter() - begun))
    return Answers(logits, median(rates))


if __name__ == "__main__":
    work(
        {
            "int8": lambda job: quantize(job, reduce_range=False),
            "reduce-range": lambda job: quantize(job, reduce_range=True),
        },
        answer,
    )
