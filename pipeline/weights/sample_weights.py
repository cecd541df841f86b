"""Weights for the embedded sample, fitted in one pass: random convolutions, measured norms, a closed-form classifier.

A random residual network with small branches still distinguishes textures: its pooled features hold the energy of each
wave. So only the last layer is fitted, by ridge regression, without iterations. Textures are stationary, so the
features of a crop represent those of the whole image at a fraction of the cost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pipeline.host.hardware import available_cores
from pipeline.terminal.progress import progress_bar
from pipeline.weights.residual_branches import branch_ends

Prepare = Callable[[Image.Image], NDArray[np.float32]]  # RGB image -> float32 [3, H, W], the network's input

NORM_IMAGES = 24  # whole images that set the norms and relate crops to images; 0.25 s each in a Wide ResNet-50-2
CROP_PX = 96  # 64 px take half the time, but a Wide ResNet-50-2 loses over twenty points
CROP_BATCH = 32
RIDGE = 0.01  # penalty per sample, in units of a standardised feature's variance
# `norm_bias` for networks of few or no residual additions. With a mean of 0 before every ReLU a deep stack tells noise
# apart like textures: shufflenet_v2_x1_0 turned noise 50 dB below the input into noise 16 dB below the scores, and was
# right on 3 of 100 unseen images; with a bias of 1, 37 dB and 26 images (mobilenet_v2 26 dB and 2, 41 dB and 19).
SMOOTH = 1.0
MEAN_CONFIDENCE = 0.9  # wanted mean of the largest softmax probability; unseen images then reach about 0.7


def fit_sample_weights(
    network: nn.Module,
    prepare: Prepare,
    images: Sequence[tuple[Path, int]],
    seed: int = 0,
    *,
    norm_bias: float = 0.0,
) -> None:
    """Fill a network in place with weights that classify the sample; leave it in evaluation mode.

    The convolutions are random (He et al., arXiv:1502.01852). The norms take their statistics from NORM_IMAGES whole
    views. The classifier, the last `nn.Linear`, or in a network without one the last 1x1 convolution, is the ridge
    regression of the one-hot classes on its own inputs, one random crop an image. The same arguments give the same
    weights on the same machine.

    Args:
        network: classifier of float32 [N, 3, H, W]. One that takes images of one size only gets whole views in the
            place of crops.
        prepare: the preprocessing of the build; all views must be of one size.
        images: files with class index, at least one for every class.
        seed: of the random weights and crops.
        norm_bias: of the norms that do not end a residual branch; 1 for networks that would amplify noise otherwise,
            see `SMOOTH`.

    Raises:
        ValueError: the network has neither an `nn.Linear` nor a 1x1 convolution.
    """
    generator = torch.Generator().manual_seed(seed)
    _initialise(network, generator, norm_bias)
    classifier = _classifier(network)
    network.eval()
    _lay_out(network, torch.channels_last)
    anchors = _spread(len(images), NORM_IMAGES)
    with torch.inference_mode():
        views = torch.stack([_view(prepare, images[index][0]) for index in anchors])
        with _measuring_norms(network), _standing_in_for_norms(network, classifier, norm_bias):
            view_features = _classifier_inputs(network, classifier, views)
        side = CROP_PX if _takes(network, CROP_PX) else max(views.shape[2:])
        crops = (_random_crop(view, generator, side) for view in _views(prepare, [path for path, _ in images]))
        features = _crop_features(network, classifier, crops, len(images))
        # Zero padding weighs more around a crop than around a whole image: shift the crops' features to correct for it.
        features += view_features.mean(0) - features[anchors].mean(0)
        labels = torch.tensor([label for _, label in images])
        weight, bias = _ridge(features, labels, len(classifier.weight))
        scale = _confidence_scale(view_features @ weight.T + bias)
        classifier.weight.copy_((scale * weight).view_as(classifier.weight))
        if classifier.bias is not None:
            classifier.bias.copy_(scale * bias)
            if isinstance(classifier, nn.Conv2d):
                classifier.bias.sub_(_lowest_output(network, classifier, views))
    _lay_out(network, torch.contiguous_format)


def _initialise(network: nn.Module, generator: torch.Generator, norm_bias: float) -> None:
    ends = branch_ends(network)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            if norm_bias and module not in ends:
                nn.init.constant_(module.bias, norm_bias)
    # Together the branches have half the variance of what they are added to, whatever the depth: with a gain of 1, a
    # random network maps two phases of one texture as far apart as two textures.
    with torch.no_grad():
        for end in ends:
            end.weight.mul_((2 * len(ends)) ** -0.5)


def _classifier(network: nn.Module) -> nn.Linear | nn.Conv2d:
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    pointwise = [each for each in network.modules() if isinstance(each, nn.Conv2d) and each.kernel_size == (1, 1)]
    if not layers and not pointwise:
        name = type(network).__name__
        raise ValueError(f"{name}: expected an nn.Linear or a 1x1 convolution as classifier, found neither")
    return layers[-1] if layers else pointwise[-1]


def _lowest_output(network: nn.Module, classifier: nn.Conv2d, batch_nchw: Tensor) -> Tensor:
    """Return the lowest value that a convolution writes; without it, a ReLU behind it leaves the scores as they are."""
    seen: list[Tensor] = []
    hook = classifier.register_forward_hook(lambda *given: seen.append(given[-1].min()))
    try:
        network(batch_nchw)
    finally:
        hook.remove()
    return seen[0]


def _spread(count: int, wanted: int) -> list[int]:
    """Return up to `wanted` indices, evenly spread over range(count)."""
    return [index * count // min(wanted, count) for index in range(min(wanted, count))]


def _view(prepare: Prepare, path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(prepare(image.convert("RGB")))


def _views(prepare: Prepare, paths: Sequence[Path]) -> Iterator[Tensor]:
    """Yield the views in order. Threads decode a batch ahead; else the cores would wait for one that does."""
    with ThreadPoolExecutor(available_cores()) as pool:
        ahead: deque[Future[Tensor]] = deque()
        for path in paths:
            ahead.append(pool.submit(_view, prepare, path))
            if len(ahead) > CROP_BATCH:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _takes(network: nn.Module, side: int) -> bool:
    """Tell whether a network takes images of side x side px: attention networks may have a size of their own."""
    try:
        network(torch.zeros(1, 3, side, side))
    except (AssertionError, RuntimeError, ValueError):  # what networks of libraries raise
        return False
    return True


def _random_crop(view: Tensor, generator: torch.Generator, px: int) -> Tensor:
    """Return float32 [3, px, px] of float32 [3, H, W]; a smaller view stays as it is."""
    corner = [int(torch.randint(max(side - px, 0) + 1, (), generator=generator)) for side in view.shape[1:]]
    return view[:, corner[0] : corner[0] + px, corner[1] : corner[1] + px]


def _lay_out(network: nn.Module, layout: torch.memory_format) -> None:
    """Order the convolutions' weights in memory. Channels last is up to twice as fast on a CPU."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=layout)


@contextmanager
def _measuring_norms(network: nn.Module) -> Iterator[None]:
    """Make every norm normalise by the next batch and keep that batch's statistics."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    yield
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum


@contextmanager
def _standing_in_for_norms(network: nn.Module, classifier: nn.Module, norm_bias: float) -> Iterator[None]:
    """In a network without norms, give convolutions what those would do: else all images get nearly the same features.

    Source: Mishkin and Matas, All You Need is a Good Init, arXiv:1511.06422.
    """

    def normalise(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert isinstance(layer.weight, Tensor) and isinstance(layer.bias, Tensor)
        mean, deviation = output.mean((0, 2, 3)), output.std((0, 2, 3)).clamp_min(1e-6)
        layer.weight.div_(deviation[:, None, None, None])
        layer.bias.sub_(mean).div_(deviation).add_(norm_bias)
        return (output - mean[:, None, None]) / deviation[:, None, None] + norm_bias

    layers = {each for each in network.modules() if isinstance(each, nn.Conv2d) and each is not classifier}
    normed = any("Norm" in type(each).__name__ or (each in layers and each.bias is None) for each in network.modules())
    hooks = [] if normed else [each.register_forward_hook(normalise) for each in layers]
    yield
    for hook in hooks:
        hook.remove()


def _classifier_inputs(network: nn.Module, classifier: nn.Linear | nn.Conv2d, batch_nchw: Tensor) -> Tensor:
    """Return float32 [N, features]: what reaches the classifier, means over all positions where it is a convolution."""
    seen: list[Tensor] = []
    hook = classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    try:
        network(batch_nchw.contiguous(memory_format=torch.channels_last))
    finally:
        hook.remove()
    return seen[0].mean((2, 3)) if seen[0].ndim == 4 else seen[0]


def _crop_features(
    network: nn.Module, classifier: nn.Linear | nn.Conv2d, crops: Iterator[Tensor], count: int
) -> Tensor:
    """Return float32 [count, features], computed CROP_BATCH crops at a time."""
    features = torch.empty(count, classifier.weight.shape[1])
    with progress_bar(count, "fit sample weights", "img", span=(0, 0.7)) as progress:
        for start in range(0, count, CROP_BATCH):
            rows = features[start : start + CROP_BATCH]
            rows[:] = _classifier_inputs(network, classifier, torch.stack([next(crops) for _ in rows]))
            progress.update(len(rows))
    return features


def _ridge(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return (weight, bias) of the ridge regression of one-hot classes on standardised features.

    Solved in its dual form, (Z Z' + a I) u = Y and W = Z' u with a = RIDGE * N, in float64: N, one crop an image, is
    smaller than most feature counts. (Hastie et al., The Elements of Statistical Learning, 2nd ed., 3.4.1 and 18.3.5)

    Args:
        features: float32 [N, D].
        labels: int64 [N], in [0, classes).

    Returns:
        float32 [classes, D] and float32 [classes], in units of the unscaled features.
    """
    mean = features.double().mean(0)
    # A constant feature carries no information; the floor keeps its weight finite.
    deviation = features.double().std(0).clamp_min(1e-6)
    standard = (features.double() - mean) / deviation
    targets = nn.functional.one_hot(labels, classes).double()
    gram = standard @ standard.T
    gram.diagonal().add_(RIDGE * len(standard))
    solved = torch.cholesky_solve(targets - targets.mean(0), torch.linalg.cholesky(gram))
    weight = (standard.T @ solved).T / deviation
    return weight.float(), (targets.mean(0) - weight @ mean).float()


def _confidence_scale(logits: Tensor) -> Tensor:
    """Return the factor that brings the mean largest softmax probability to MEAN_CONFIDENCE, by bisection.

    Args:
        logits: float32 [N, classes].
    """
    low, high = 0.0, 16.0  # exponents of two
    for _ in range(20):
        middle = (low + high) / 2
        confidence = torch.softmax(logits * 2**middle, dim=1).amax(1).mean()
        low, high = (middle, high) if confidence < MEAN_CONFIDENCE else (low, middle)
    return torch.tensor(2.0**low)
