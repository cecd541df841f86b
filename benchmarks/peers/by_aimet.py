"""aimet-onnx: uint8 activations, int8 weights by channel, saved by its `to_onnx_qdq`; README.md here says the rest."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import aimet_onnx
import onnx
from aimet_onnx.common.quantsim_config.utils import get_path_for_per_channel_config
from aimet_onnx.cross_layer_equalization import equalize_model
from job import Float32, Job, Made, work

Feeds = list[dict[str, Float32]]
BATCH = 32  # as in its documentation; a step of AdaRound takes at most 32 images of one batch


def quantize(
    job: Job,
    what: str,
    change: Callable[[onnx.ModelProto], object] = lambda model: None,
    optimize: Callable[[aimet_onnx.QuantizationSimModel, Feeds], object] = lambda sim, feeds: None,
    batch: int = BATCH,
) -> Made:
    """Change the float32 model, optimize weights of the simulation, then find the ranges of activations."""
    model = onnx.load(job.onnx)
    given, answer = model.graph.input[0].name, model.graph.output[0].name
    feeds = [{given: images} for images in job.batches(batch)]
    change(model)
    config = get_path_for_per_channel_config()
    sim = aimet_onnx.QuantizationSimModel(model, param_type="int8", activation_type="int8", config_file=config)
    sim.qc_quantize_op_dict[answer].enabled = False  # the answer stays float32, as in the other rows
    optimize(sim, feeds[: -(-job.tuning // batch)])
    sim.compute_encodings(feeds)
    path = Path("model.onnx").absolute()
    onnx.save(sim.to_onnx_qdq(export_int32_bias=True, prequantize_constants=True), path)
    settings = f"aimet-onnx {version('aimet-onnx')}, QDQ, min_max, uint8 activations, int8 weights by channel"
    return Made(str(path), len(job.images), f"{settings}, {what}")


def make_minmax(job: Job) -> Made:
    return quantize(job, "no accuracy algorithm")


def make_cle(job: Job) -> Made:
    return quantize(job, "CLE", change=equalize_model)


def make_seqmse(job: Job) -> Made:
    return quantize(job, f"SeqMSE, 20 candidates, {job.tuning} of the images", optimize=aimet_onnx.apply_seq_mse)


def make_adaround(job: Job) -> Made:
    iterations = job.iterations or 10_000
    batch = min(BATCH, job.batch or BATCH)
    return quantize(
        job,
        f"AdaRound, {iterations} iterations a layer on {job.tuning} of the images, batch {batch}",
        optimize=lambda sim, feeds: aimet_onnx.apply_adaround(sim, feeds, iterations),
        batch=batch,
    )


if __name__ == "__main__":
    work({"minmax": make_minmax, "cle": make_cle, "seqmse": make_seqmse, "adaround": make_adaround})
