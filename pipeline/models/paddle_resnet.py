"""The ResNet series of PaddleClas, in plain torch.

Parameter names are the contract: those of PaddleClas, but for a norm's statistics, which
PaddleClas calls `_mean` and `_variance`; the reader of `.pdparams` files renames these.

Differences from torchvision: every stage begins with a projected shortcut, including stage one of ResNet18 and
ResNet34. `vd` and `vc` have three 3x3 convolutions as their stem; `vd` downsamples its shortcuts by averaging, so that
every pixel counts.

Source: He et al., "Bag of Tricks for Image Classification with Convolutional Neural Networks" (arXiv:1812.01187); vc
and vd are its ResNet-C and ResNet-C with ResNet-D's shortcut.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import chain

from torch import Tensor, nn

_VB_NAMES = ("conv", "bn")
_VC_NAMES = ("_conv", "_batch_norm")


def _conv_norm(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    *,
    relu: bool = False,
    average: bool = False,
    names: tuple[str, str] = _VB_NAMES,
) -> nn.Sequential:
    """Return convolution, norm and perhaps ReLU, with the names of PaddleClas's ConvBNLayer.

    Args:
        average: stride by averaging 2x2 pixels before the convolution, fewer at an odd border.
        names: of convolution and norm.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if average:
        layers["avg_pool"] = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
        stride = 1
    layers[names[0]] = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=(kernel - 1) // 2, bias=False)
    layers[names[1]] = nn.BatchNorm2d(out_channels)
    if relu:
        layers["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


class _Block(nn.Module):
    """A residual block whose branch is `conv0`, `conv1`, ...; `short` projects the shortcut of a stage's first one."""

    def __init__(self, branch: Sequence[nn.Sequential], short: nn.Sequential | None) -> None:
        super().__init__()
        self._depth = len(branch)
        for index, layer in enumerate(branch):
            self.add_module(f"conv{index}", layer)
        self.short = short
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.short is None else self.short(x)
        out = x
        for index in range(self._depth):
            out = self.get_submodule(f"conv{index}")(out)
        summed: Tensor = self.relu(out + shortcut)
        return summed


class BasicBlock(_Block):
    """Two 3x3 convolutions; the block of ResNet18 and ResNet34."""

    expansion = 1

    def __init__(
        self, in_channels: int, planes: int, stride: int, short: nn.Sequential | None, names: tuple[str, str]
    ) -> None:
        branch = [
            _conv_norm(in_channels, planes, 3, stride, relu=True, names=names),
            _conv_norm(planes, planes, 3, names=names),
        ]
        super().__init__(branch, short)


class BottleneckBlock(_Block):
    """1x1, 3x3, 1x1 convolutions; the 3x3 strides."""

    expansion = 4

    def __init__(
        self, in_channels: int, planes: int, stride: int, short: nn.Sequential | None, names: tuple[str, str]
    ) -> None:
        branch = [
            _conv_norm(in_channels, planes, 1, relu=True, names=names),
            _conv_norm(planes, planes, 3, stride, relu=True, names=names),
            _conv_norm(planes, planes * self.expansion, 1, names=names),
        ]
        super().__init__(branch, short)


def _blocks(
    block: type[BasicBlock] | type[BottleneckBlock], depths: Sequence[int], names: tuple[str, str], *, average: bool
) -> list[list[_Block]]:
    """Return the blocks of each stage; `average` strides the shortcuts by averaging."""
    stages: list[list[_Block]] = []
    channels = 64
    for stage, depth in enumerate(depths):
        planes, stride = 64 << stage, 1 if stage == 0 else 2
        out_channels = planes * block.expansion
        short = _conv_norm(channels, out_channels, 1, stride, average=average and stage > 0, names=names)
        blocks: list[_Block] = [block(channels, planes, stride, short, names)]
        blocks += [block(out_channels, planes, 1, None, names) for _ in range(depth - 1)]
        stages.append(blocks)
        channels = out_channels
    return stages


def _deep_stem(names: tuple[str, str]) -> list[nn.Sequential]:
    """Return three 3x3 convolutions in the place of one 7x7."""
    return [
        _conv_norm(3, 32, 3, 2, relu=True, names=names),
        _conv_norm(32, 32, 3, relu=True, names=names),
        _conv_norm(32, 64, 3, relu=True, names=names),
    ]


class ResNet(nn.Module):
    """PaddleClas's ResNet and ResNet_vd.

    Args:
        block: the residual block.
        depths: blocks in each of the four stages.
        vd: deep stem, and shortcuts that stride by averaging.
        num_classes: rows of the classifier.

    Input float32 [N, 3, H, W], normalised RGB; output float32 [N, num_classes], logits.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[BottleneckBlock],
        depths: Sequence[int],
        vd: bool,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*(_deep_stem(_VB_NAMES) if vd else [_conv_norm(3, 64, 7, 2, relu=True)]))
        self.max_pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.blocks = nn.Sequential(*chain(*_blocks(block, depths, _VB_NAMES, average=vd)))
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * block.expansion, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.max_pool(self.stem(x)))
        logits: Tensor = self.fc(self.avg_pool(x).flatten(1))
        return logits


class ResNetVc(nn.Module):
    """PaddleClas's ResNet_vc, which has names of its own: `conv1_1`, `bb_0_0`, ..., `out`.

    Args, input and output as those of `ResNet`.
    """

    def __init__(
        self, block: type[BasicBlock] | type[BottleneckBlock], depths: Sequence[int], num_classes: int = 1000
    ) -> None:
        super().__init__()
        for index, layer in enumerate(_deep_stem(_VC_NAMES)):
            self.add_module(f"conv1_{index + 1}", layer)
        self.pool2d_max = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self._block_names = []
        for stage, blocks in enumerate(_blocks(block, depths, _VC_NAMES, average=False)):
            for index, each in enumerate(blocks):
                self.add_module(f"bb_{stage}_{index}", each)
                self._block_names.append(f"bb_{stage}_{index}")
        self.pool2d_avg = nn.AdaptiveAvgPool2d(1)
        self.out = nn.Linear(512 * block.expansion, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for name in ("conv1_1", "conv1_2", "conv1_3", "pool2d_max", *self._block_names, "pool2d_avg"):
            x = self.get_submodule(name)(x)
        logits: Tensor = self.out(x.flatten(1))
        return logits
