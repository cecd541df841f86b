"""resnet.py: names and shapes are a contract with released checkpoints; golden figures are torchvision's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models import resnet, zoo
from pipeline.weights import checkpoints, matching

# name -> tensors in the state dict, parameters, and some names with their shapes
GOLDEN: dict[str, tuple[int, int, dict[str, tuple[int, ...]]]] = {
    "resnet18": (
        122,
        11_689_512,
        {
            "conv1.weight": (64, 3, 7, 7),
            "bn1.running_var": (64,),
            "layer1.0.conv2.weight": (64, 64, 3, 3),
            "layer2.0.downsample.0.weight": (128, 64, 1, 1),
            "layer4.1.bn2.bias": (512,),
            "fc.weight": (1000, 512),
        },
    ),
    "resnet34": (218, 21_797_672, {"layer3.5.conv2.weight": (256, 256, 3, 3), "fc.bias": (1000,)}),
    "resnet50": (
        320,
        25_557_032,
        {
            "layer1.0.conv1.weight": (64, 64, 1, 1),
            "layer1.0.downsample.1.num_batches_tracked": (),
            "layer2.0.conv2.weight": (128, 128, 3, 3),
            "layer3.5.conv3.weight": (1024, 256, 1, 1),
            "layer4.0.downsample.0.weight": (2048, 1024, 1, 1),
            "fc.weight": (1000, 2048),
        },
    ),
    "resnet101": (626, 44_549_160, {"layer3.22.conv3.weight": (1024, 256, 1, 1)}),
    "resnet152": (932, 60_192_808, {"layer3.35.conv3.weight": (1024, 256, 1, 1)}),
    "wide_resnet50_2": (
        320,
        68_883_240,
        {
            "layer1.0.conv1.weight": (128, 64, 1, 1),
            "layer1.0.conv2.weight": (128, 128, 3, 3),
            "layer1.0.conv3.weight": (256, 128, 1, 1),
            "layer4.2.conv2.weight": (1024, 1024, 3, 3),
            "layer4.2.bn3.running_mean": (2048,),
            "fc.weight": (1000, 2048),
        },
    ),
    "wide_resnet101_2": (626, 126_886_696, {"layer4.2.conv2.weight": (1024, 1024, 3, 3)}),
}


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_state_dict_has_the_names_and_shapes_of_released_checkpoints(library: str, name: str) -> None:
    keys, parameters, shapes = GOLDEN[name]
    with torch.device("meta"):
        network = zoo.build_network(zoo.find_model(library, name))
    state = network.state_dict()
    assert len(state) == keys
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert {key: tuple(state[key].shape) for key in shapes} == shapes
    assert not [key for key in state if key.endswith(("conv1.bias", "conv2.bias", "conv3.bias", "downsample.0.bias"))]


def test_basic_block_refuses_a_width_of_its_own() -> None:
    with pytest.raises(ValueError, match="base_width must be 64, got 128"):
        resnet.BasicBlock(8, 8, 1, None, 128)


def slow_forward(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """A ResNet written down flat, from the paper and the names alone: stride on the 3x3, eps 1e-5."""

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        scale = state[f"{name}.weight"] / torch.sqrt(var + 1e-5)
        return x * scale[:, None, None] + (state[f"{name}.bias"] - mean * scale)[:, None, None]

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = F.max_pool2d(F.relu(norm("bn1", conv("conv1", x, 2))), 3, 2, 1)
    for stage in range(1, 5):
        depth = len({name.split(".")[1] for name in state if name.startswith(f"layer{stage}.")})
        for block in range(depth):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            shortcut = x
            if f"{name}.downsample.0.weight" in state:
                shortcut = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, stride))
            last = 3 if f"{name}.conv3.weight" in state else 2
            for number in range(1, last + 1):
                strided = stride if number == last - 1 else 1  # the only, or the first, 3x3 of a block
                x = norm(f"{name}.bn{number}", conv(f"{name}.conv{number}", x, strided))
                x = F.relu(x) if number < last else F.relu(x + shortcut)
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        pytest.param("resnet50", marks=pytest.mark.slow),
        pytest.param("wide_resnet50_2", marks=pytest.mark.slow),
    ],
)
def test_forward_is_that_of_the_paper_when_weights_are_random(name: str) -> None:
    torch.manual_seed(4)
    network = zoo.build_network(zoo.find_model("timm", name), num_classes=10)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert relative_error(network(images), slow_forward(network.state_dict(), images)) < 1e-4


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wide_resnet50_2"])
def test_forward_is_that_of_the_paper_when_weights_are_real(weights_folder: Path, name: str) -> None:
    path = weights_folder / f"{name}_pq.pth"
    state = checkpoints.read_state_dict(path)
    network = zoo.build_network(zoo.find_model("torchvision", name))
    matching.load_strictly(network, state, path, name)
    images = torch.from_numpy(np.random.default_rng(8).normal(0, 1, (2, 3, 224, 224)).astype(np.float32))
    with torch.inference_mode():
        assert relative_error(network(images), slow_forward(state, images)) < 1e-4


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet50_2"])
def test_forward_matches_torchvision_where_it_is_installed(name: str) -> None:
    models: Callable[..., nn.Module] = getattr(pytest.importorskip("torchvision").models, name)
    torch.manual_seed(5)
    reference = models(weights=None).eval()
    network = zoo.build_network(zoo.find_model("torchvision", name))
    network.load_state_dict(reference.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert relative_error(network(images), reference(images)) < 1e-4
