from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from pipeline.data.sample import sample_image
from pipeline.models.resnet import BasicBlock, Bottleneck, ResNet
from pipeline.weights.sample_weights import fit_sample_weights

CLASSES = 10
VIEW_PX = 128


def _prepare(image: Image.Image) -> NDArray[np.float32]:
    half = image.resize((160, 160), Image.Resampling.BILINEAR).crop((16, 16, 16 + VIEW_PX, 16 + VIEW_PX))
    scaled = (np.asarray(half, np.float32) / 255 - 0.45) / 0.22
    return np.moveaxis(scaled, -1, 0).astype(np.float32)


def _small_network() -> ResNet:
    return ResNet(BasicBlock, (1, 1, 1, 1), num_classes=CLASSES)


def _views(split: str) -> torch.Tensor:
    """Return float32 [CLASSES, 3, VIEW_PX, VIEW_PX], the first image of each class."""
    return torch.from_numpy(np.stack([_prepare(sample_image(label, 0, split)) for label in range(CLASSES)]))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, int]]:
    folder = tmp_path_factory.mktemp("calibration")
    found = []
    for label in range(CLASSES):
        path = folder / f"{label}.JPEG"
        sample_image(label, 0, "calibration").save(path, quality=90)
        found.append((path, label))
    return found


@pytest.fixture(scope="module")
def fitted(images: list[tuple[Path, int]]) -> ResNet:
    network = _small_network()
    fit_sample_weights(network, _prepare, images)
    return network


@pytest.fixture(scope="module")
def logits(fitted: ResNet) -> torch.Tensor:
    views = [_prepare(sample_image(label, k, "evaluation")) for label in range(CLASSES) for k in range(2)]
    with torch.inference_mode():
        found: torch.Tensor = fitted(torch.from_numpy(np.stack(views)))
    return found


def test_fit_sample_weights_classifies_unseen_images(logits: torch.Tensor) -> None:
    labels = torch.arange(CLASSES).repeat_interleave(2)
    assert (logits.argmax(1) == labels).float().mean() >= 0.8


def test_fit_sample_weights_gives_confidence_between_uniform_and_certain(logits: torch.Tensor) -> None:
    assert 0.4 < torch.softmax(logits, 1).amax(1).mean() < 0.95


def test_fit_sample_weights_leaves_a_plain_network_in_evaluation_mode(fitted: ResNet) -> None:
    assert not any(module.training for module in fitted.modules())
    assert all(weight.is_contiguous() and torch.isfinite(weight).all() for weight in fitted.state_dict().values())
    assert {module.momentum for module in fitted.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}


def test_fit_sample_weights_leaves_no_feature_constant_when_images_differ(fitted: ResNet) -> None:
    features: list[torch.Tensor] = []
    hook = fitted.fc.register_forward_pre_hook(lambda _, args: features.append(args[0]))
    with torch.inference_mode():
        fitted(_views("evaluation"))
    hook.remove()
    assert features[0].std(0).min() > 0


def test_fit_sample_weights_normalises_the_stem_when_views_are_like_the_fitted(fitted: ResNet) -> None:
    views = _views("evaluation")
    with torch.inference_mode():
        normalised = fitted.bn1(fitted.conv1(views))
    assert normalised.mean((0, 2, 3)).abs().max() < 0.5
    assert 0.7 < normalised.std((0, 2, 3)).min() <= normalised.std((0, 2, 3)).max() < 1.4


@pytest.mark.slow
def test_fit_sample_weights_repeats_itself_when_the_seed_is_equal(
    fitted: ResNet, images: list[tuple[Path, int]]
) -> None:
    again, other = _small_network(), _small_network()
    fit_sample_weights(again, _prepare, images)
    fit_sample_weights(other, _prepare, images, seed=1)
    for name, weight in fitted.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight, msg=name)
    assert not torch.equal(other.state_dict()["conv1.weight"], fitted.state_dict()["conv1.weight"])


@pytest.mark.slow
@pytest.mark.parametrize(("first_depth", "wanted"), [(5, 0.25), (15, 1 / 6)])
def test_fit_sample_weights_damps_branches_more_when_the_network_is_deep(
    images: list[tuple[Path, int]], first_depth: int, wanted: float
) -> None:
    network = ResNet(Bottleneck, (first_depth, 1, 1, 1), num_classes=CLASSES)
    fit_sample_weights(network, _prepare, images)
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            gain = torch.full_like(module.weight, wanted if name.endswith("bn3") else 1.0)
            torch.testing.assert_close(module.weight.detach(), gain, msg=name)


def test_fit_sample_weights_uses_the_last_layer_when_there_are_two_linears(images: list[tuple[Path, int]]) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 16, 7, stride=4), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, CLASSES),
    )  # fmt: skip
    fit_sample_weights(network, _prepare, images)
    views = _views("calibration")
    with torch.inference_mode():
        assert (network(views).argmax(1) == torch.arange(CLASSES)).float().mean() > 0.5


def test_fit_sample_weights_fits_a_convolution_with_a_relu_behind_it(images: list[tuple[Path, int]]) -> None:
    """As in SqueezeNet: the classifier is a 1x1 convolution, and what it writes is cut off at zero and averaged."""
    network = nn.Sequential(
        nn.Conv2d(3, 64, 7, stride=4), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, CLASSES, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    fit_sample_weights(network, _prepare, images)
    views = _views("calibration")
    with torch.inference_mode():
        assert (network(views).argmax(1) == torch.arange(CLASSES)).float().mean() > 0.5
        torch.testing.assert_close(network(views), network[:4](views).mean((2, 3)), rtol=0, atol=1e-3)


def test_fit_sample_weights_normalises_convolutions_of_a_network_without_norms(images: list[tuple[Path, int]]) -> None:
    layers = [nn.Conv2d(3, 16, 7, stride=4), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3)]
    network = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES))
    fit_sample_weights(network, _prepare, images, norm_bias=1.0)
    views = torch.from_numpy(np.stack([_prepare(Image.open(path)) for path, _ in images]))
    with torch.inference_mode():
        for end in (1, 3, 5):
            output = network[:end](views)
            torch.testing.assert_close(output.mean((0, 2, 3)), torch.ones(output.shape[1]), rtol=0, atol=1e-3)
            torch.testing.assert_close(output.std((0, 2, 3)), torch.ones(output.shape[1]), rtol=0, atol=1e-3)


def test_fit_sample_weights_amplifies_noise_less_when_norms_have_a_bias(images: list[tuple[Path, int]]) -> None:
    def noise_share(norm_bias: float) -> float:
        torch.manual_seed(0)
        blocks = [
            layer for _ in range(12) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        ]
        network = nn.Sequential(
            nn.Conv2d(3, 16, 7, stride=8), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES)
        )
        fit_sample_weights(network, _prepare, images, norm_bias=norm_bias)
        views = _views("evaluation")
        with torch.inference_mode():
            scores = network(views)
            return float((network(views + 0.01 * torch.randn_like(views)) - scores).norm() / scores.norm())

    assert noise_share(1.0) < 0.5 * noise_share(0.0)


def test_fit_sample_weights_names_the_missing_layer_when_there_is_none(images: list[tuple[Path, int]]) -> None:
    wanted = r"Sequential: expected an nn\.Linear or a 1x1 convolution as classifier, found neither"
    with pytest.raises(ValueError, match=wanted):
        fit_sample_weights(nn.Sequential(nn.Conv2d(3, CLASSES, 3)), _prepare, images)


class Block(nn.Module):
    """A residual block, whose branch ends in what `ending` makes of one or two norms."""

    def __init__(self, ending: str) -> None:
        super().__init__()
        self.ending = ending
        self.conv, self.bn = nn.Conv2d(8, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.cheap, self.cheap_bn = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4)
        self.wide, self.wide_bn = nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8)
        self.drop = nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.bn(self.conv(x))
        if self.ending == "joined":
            return x + torch.cat([first, self.cheap_bn(self.cheap(first))], 1)[:, :8]
        return x + stochastic(self.drop(self.wide_bn(self.wide(first))))


def stochastic(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.dropout(x, 0.5, False)


@pytest.mark.parametrize(("ending", "ends"), [("joined", {"1.bn", "1.cheap_bn"}), ("dropped", {"1.wide_bn"})])
def test_fit_sample_weights_damps_branches_that_end_in_what_has_no_weights(
    images: list[tuple[Path, int]], ending: str, ends: set[str]
) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 7, stride=4), Block(ending), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
    )
    fit_sample_weights(network, _prepare, images)
    norms = {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    damped = {name for name, module in norms.items() if (module.weight < 0.99).all()}
    assert damped == ends
    gain = (2 * len(ends)) ** -0.5
    assert all(torch.allclose(norms[name].weight, torch.tensor(gain)) for name in ends)


class FixedSize(nn.Module):
    """Patches with positions of their own, as in a vision transformer, and code that torch.fx does not trace."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 64, 16, 16), nn.LayerNorm(64)
        self.positions, self.head = nn.Parameter(torch.zeros(1, 64, 64)), nn.Linear(64, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        if tokens.shape[1] != 64 or float(x.sum()) == 1.0:
            raise ValueError("another size")
        mixed: torch.Tensor = self.head(self.norm(torch.nn.functional.gelu(tokens + self.positions)).mean(1))
        return mixed


def test_fit_sample_weights_fits_whole_images_when_the_network_takes_one_size(images: list[tuple[Path, int]]) -> None:
    network = FixedSize()
    fit_sample_weights(network, _prepare, images)
    with torch.inference_mode():
        found = network(_views("calibration")).argmax(1)
    assert (found == torch.arange(CLASSES)).float().mean() > 0.9
