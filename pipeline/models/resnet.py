"""ResNet and Wide ResNet as torchvision and timm define them, in plain torch.

Parameter names are the contract: `conv1`, `bn1`, `layer1.0.conv1`, `layer1.0.downsample.0`, ..., `fc`, the same in
torchvision (v0.9 and later) and in timm (v0.6 and later), so that the released checkpoints load strictly.

Sources: He et al., "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), with the stride of a bottleneck
on its 3x3 convolution ("v1.5"); Zagoruyko and Komodakis, "Wide Residual Networks" (arXiv:1605.07146); He et al., "Bag
of Tricks for Image Classification with Convolutional Neural Networks" (arXiv:1812.01187) for timm's `c` and `d`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)


def _deep_stem() -> nn.Sequential:
    """Return timm's stem of 32 channels, up to the norm that follows it."""
    layers: list[nn.Module] = []
    for in_channels, stride in ((3, 2), (32, 1)):
        layers += [conv3x3(in_channels, 32, stride), nn.BatchNorm2d(32), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, conv3x3(32, 64))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the block of ResNet-18 and ResNet-34."""

    expansion = 1

    def __init__(
        self, in_channels: int, planes: int, stride: int, downsample: nn.Module | None, base_width: int
    ) -> None:
        super().__init__()
        if base_width != 64:
            raise ValueError(f"a basic block has no inner width of its own: base_width must be 64, got {base_width}")
        self.conv1 = conv3x3(in_channels, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        summed: Tensor = self.relu(out + shortcut)
        return summed


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions; the 3x3 has `planes * base_width / 64` channels (twice as many in a Wide ResNet)."""

    expansion = 4

    def __init__(
        self, in_channels: int, planes: int, stride: int, downsample: nn.Module | None, base_width: int
    ) -> None:
        super().__init__()
        width = planes * base_width // 64
        self.conv1 = conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, planes * self.expansion)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        summed: Tensor = self.relu(out + shortcut)
        return summed


class ResNet(nn.Module):
    """A residual network for images.

    Args:
        block: the residual block.
        depths: blocks in each of the four stages.
        base_width: channels of a bottleneck's 3x3 in stage one; 64, or 128 for the `_2` Wide ResNets.
        num_classes: rows of the classifier.
        deep_stem: three 3x3 convolutions in the place of one 7x7 (`c`, `d`).
        average_shortcut: stride the shortcuts by averaging 2x2 pixels, fewer at an odd border (`d`).

    Input float32 [N, 3, H, W], normalised RGB; output float32 [N, num_classes], logits.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        base_width: int = 64,
        num_classes: int = 1000,
        *,
        deep_stem: bool = False,
        average_shortcut: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = _deep_stem() if deep_stem else nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self._channels = 64  # channels of the next stage's input
        self._average_shortcut = average_shortcut
        self.layer1 = self._stage(block, 64, depths[0], 1, base_width)
        self.layer2 = self._stage(block, 128, depths[1], 2, base_width)
        self.layer3 = self._stage(block, 256, depths[2], 2, base_width)
        self.layer4 = self._stage(block, 512, depths[3], 2, base_width)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(self._channels, num_classes)

    def _stage(
        self, block: type[BasicBlock] | type[Bottleneck], planes: int, depth: int, stride: int, base_width: int
    ) -> nn.Sequential:
        """Return `depth` blocks; the first one strides and, where the shape changes, projects its shortcut."""
        out_channels = planes * block.expansion
        downsample: nn.Module | None = None
        if stride != 1 or self._channels != out_channels:
            downsample = self._shortcut(out_channels, stride)
        blocks = [block(self._channels, planes, stride, downsample, base_width)]
        blocks += [block(out_channels, planes, 1, None, base_width) for _ in range(depth - 1)]
        self._channels = out_channels
        return nn.Sequential(*blocks)

    def _shortcut(self, out_channels: int, stride: int) -> nn.Sequential:
        if not self._average_shortcut:
            return nn.Sequential(conv1x1(self._channels, out_channels, stride), nn.BatchNorm2d(out_channels))
        average = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
        return nn.Sequential(average, conv1x1(self._channels, out_channels), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits
