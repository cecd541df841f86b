"""iResNet as its authors define it, in plain torch.

Parameter names are the contract: those of the official repository (github.com/iduta/iresnet, models/iresnet.py), so
that its checkpoints load strictly.

Source: Duta et al., "Improved Residual Networks for Image and Video Recognition" (arXiv:2004.04989). No ReLU
interrupts the identity path within a stage: only its last block ends in a ReLU, the inner ones begin with norm and ReLU
instead. A strided shortcut takes the maximum of 3x3 pixels before its projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from torch import Tensor, nn

from pipeline.models.resnet import conv1x1, conv3x3


class Place(Enum):
    """The position of a block in its stage, which decides where its norms are."""

    START = "start"  # norm at the branch's end
    SECOND = "second"  # ReLU before all; the start block has just normalised
    MIDDLE = "middle"  # norm and ReLU before the branch
    END = "end"  # as MIDDLE, and norm and ReLU after the addition
    SECOND_AND_END = "second and end"  # as SECOND, and norm and ReLU after the addition


class _Block(nn.Module):
    """What both blocks share; `bn0` stands before the branch, `last_norm` after it or after the addition."""

    expansion: int
    last_norm: str

    def __init__(self, in_channels: int, out_channels: int, place: Place, downsample: nn.Module | None) -> None:
        super().__init__()
        self.place = place
        if place in (Place.MIDDLE, Place.END):
            self.bn0 = nn.BatchNorm2d(in_channels)
        if place in (Place.START, Place.END, Place.SECOND_AND_END):
            self.add_module(self.last_norm, nn.BatchNorm2d(out_channels))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if self.place in (Place.SECOND, Place.SECOND_AND_END):
            x = self.relu(x)  # the shortcut too: the official ReLU works in place, and the weights depend on that
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.branch(self.relu(self.bn0(x)) if self.place in (Place.MIDDLE, Place.END) else x)
        if self.place is Place.START:
            out = self.get_submodule(self.last_norm)(out)
        out = out + shortcut
        if self.place in (Place.END, Place.SECOND_AND_END):
            out = self.relu(self.get_submodule(self.last_norm)(out))
        return out


class BasicBlock(_Block):
    """Two 3x3 convolutions; the block of iResNet-18 and iResNet-34."""

    expansion = 1
    last_norm = "bn2"

    def __init__(
        self, in_channels: int, planes: int, stride: int, place: Place, downsample: nn.Module | None = None
    ) -> None:
        super().__init__(in_channels, planes, place, downsample)
        self.conv1 = conv3x3(in_channels, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes)

    def branch(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.relu(self.bn1(self.conv1(x))))
        return out


class Bottleneck(_Block):
    """1x1, 3x3, 1x1 convolutions."""

    expansion = 4
    last_norm = "bn3"

    def __init__(
        self, in_channels: int, planes: int, stride: int, place: Place, downsample: nn.Module | None = None
    ) -> None:
        super().__init__(in_channels, planes * self.expansion, place, downsample)
        self.conv1 = conv1x1(in_channels, planes)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = conv1x1(planes, planes * self.expansion)

    def branch(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        widened: Tensor = self.conv3(out)
        return widened


class IResNet(nn.Module):
    """An improved residual network for images.

    Args:
        block: the residual block.
        depths: blocks in each of the four stages, at least two.
        num_classes: rows of the classifier.

    Input float32 [N, 3, H, W], normalised RGB; output float32 [N, num_classes], logits.
    """

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], depths: Sequence[int], num_classes: int = 1000
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self._channels = 64  # channels of the next stage's input
        self.layer1 = self._stage(block, 64, depths[0])
        self.layer2 = self._stage(block, 128, depths[1])
        self.layer3 = self._stage(block, 256, depths[2])
        self.layer4 = self._stage(block, 512, depths[3])
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(self._channels, num_classes)

    def _stage(self, block: type[BasicBlock] | type[Bottleneck], planes: int, depth: int) -> nn.Sequential:
        """Return `depth` blocks; the first one halves the image and, where the channels change, projects them."""
        if depth < 2:
            raise ValueError(f"a stage has a start and an end block: depth must be at least 2, got {depth}")
        out_channels = planes * block.expansion
        downsample: nn.Module = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        if self._channels != out_channels:
            downsample = nn.Sequential(downsample, conv1x1(self._channels, out_channels), nn.BatchNorm2d(out_channels))
        places = [Place.SECOND, *[Place.MIDDLE] * (depth - 3), Place.END] if depth > 2 else [Place.SECOND_AND_END]
        blocks = [block(self._channels, planes, 2, Place.START, downsample)]
        blocks += [block(out_channels, planes, 1, place) for place in places]
        self._channels = out_channels
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits
