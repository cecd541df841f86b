"""Every network of the table against its original: names, shapes, and answers for seeded weights.

`golden_networks.json.gz` was written by running the originals: torchvision 0.29.2, timm 0.6.5, iduta/iresnet and
PaddleClas (on paddlepaddle 3.3.1). It holds for each network the names and shapes of its checkpoint (1000 classes,
as the original spells them) and the ten logits of a build with ten classes, of weights and an image made by `seeded`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.models import exporter, zoo
from pipeline.onnx_models import classifier

GOLDEN: dict[str, Any] = json.loads(gzip.decompress((Path(__file__).parent / "golden_networks.json.gz").read_bytes()))
SIDE = 72  # px; the last stages then see odd sizes, where averages at the border differ between libraries


def golden(model: zoo.Model) -> dict[str, Any]:
    """The ssld checkpoints belong to networks that have a row of their own."""
    name = model.name.removeprefix("Fix_").removesuffix("_ssld")
    found: dict[str, Any] = GOLDEN[f"{model.library}/{name}"]
    return found


def seeded(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) == 4:
        values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif len(shape) == 2:
        values = rng.standard_normal(shape) * 0.05
    elif name.endswith("running_var"):
        values = rng.uniform(0.5, 1.5, shape)
    elif name.endswith("weight"):
        values = rng.uniform(0.3, 0.7, shape)
    else:
        values = rng.standard_normal(shape) * 0.1
    return np.asarray(values, dtype=np.float32)


def as_torch_names(tensors: list[tuple[str, list[int]]], library: str) -> dict[str, tuple[int, ...]]:
    """PaddleClas calls a norm's statistics otherwise and stores a linear layer as [in, out]."""
    if library != "paddleclas":
        return {name: tuple(shape) for name, shape in tensors}
    renamed = {name.replace("._mean", ".running_mean").replace("._variance", ".running_var"): s for name, s in tensors}
    return {name: tuple(reversed(shape)) if len(shape) == 2 else tuple(shape) for name, shape in renamed.items()}


def identify(model: zoo.Model) -> str:
    return f"{model.library}-{model.name}"


@pytest.mark.parametrize("model", zoo.MODELS, ids=identify)
def test_network_has_the_names_and_shapes_of_the_original(model: zoo.Model) -> None:
    with torch.device("meta"):
        network = zoo.build_network(model)
    found = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    counters = {name for name in found if name.endswith("num_batches_tracked")}
    wanted = as_torch_names(golden(model)["tensors"], model.library)
    assert {name: shape for name, shape in found.items() if name not in counters} == wanted


DISTINCT = [model for model in zoo.MODELS if "ssld" not in model.name]
# The shallowest of each design and kind of block: deeper ones only have more of the same nodes.
SHALLOWEST = {(model.design, model.bottleneck): model for model in sorted(DISTINCT, key=lambda each: -sum(each.depths))}


def seeded_network(model: zoo.Model) -> torch.nn.Module:
    network = zoo.build_network(model, num_classes=10)
    state = network.state_dict()
    network.load_state_dict(
        {
            name: value if name.endswith("num_batches_tracked") else torch.from_numpy(seeded(name, tuple(value.shape)))
            for name, value in state.items()
        }
    )
    return network


def seeded_image() -> np.ndarray:
    return np.random.default_rng(SIDE).standard_normal((1, 3, SIDE, SIDE)).astype(np.float32)


QUICK = [model for model in SHALLOWEST.values() if not model.bottleneck]
EACH = [pytest.param(each, marks=() if each in QUICK else pytest.mark.slow) for each in DISTINCT]


@pytest.mark.parametrize("model", EACH, ids=identify)
def test_network_answers_like_the_original(model: zoo.Model) -> None:
    wanted = np.array([golden(model)["output"]], np.float32)
    with torch.inference_mode():
        answer = seeded_network(model)(torch.from_numpy(seeded_image())).numpy()
    assert classifier.relative_error(wanted, answer) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("model", SHALLOWEST.values(), ids=identify)
def test_exported_network_answers_like_the_original(model: zoo.Model) -> None:
    exported = exporter.to_onnx(seeded_network(model), (3, SIDE, SIDE))
    wanted = np.array([golden(model)["output"]], np.float32)
    assert classifier.relative_error(wanted, classifier.run(exported, seeded_image())) < 1e-5
