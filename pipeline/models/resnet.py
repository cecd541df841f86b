"""ResNet and Wide ResNet as torchvision and timm define them, in plain torch.

Parameter names are the contract: `conv1`, `bn1`, `layer1.0.conv1`, `layer1.0.downsample.0`, ..., `fc`, the same in
torchvision (v0.9 and later) and in timm (v0.6 and later), so that the released checkpoints load strictly.

Sources: He et al., "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), with the stride of a bottleneck
on its 3x3 convolution ("v1.5"); Zagoruyko and Komodakis, "Wide Residual Networks" (arXiv:1605.07146).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)


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

    Input float32 [N, 3, H, W], normalised RGB; output float32 [N, num_classes], logits.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        base_width: int = 64,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self._channels = 64  # that reach the next stage
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
            downsample = nn.Sequential(conv1x1(self._channels, out_channels, stride), nn.BatchNorm2d(out_channels))
        blocks = [block(self._channels, planes, stride, downsample, base_width)]
        blocks += [block(out_channels, planes, 1, None, base_width) for _ in range(depth - 1)]
        self._channels = out_channels
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits
