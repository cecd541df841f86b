"""Classifiers of the vendor's zoo that neither timm nor torchvision has, after their papers and published code.

ShuffleNet (arXiv:1707.01083), ESNet (arXiv:2111.00902), and the classifiers of YOLOv5 and YOLO11. For measuring: the
names of their parameters are those of no checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_norm(
    inputs: int, outputs: int, size: int, act: nn.Module | None, stride: int = 1, groups: int = 1
) -> nn.Module:
    layers = [
        nn.Conv2d(inputs, outputs, size, stride, (size - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([] if act is None else [act]))


def shuffle(values: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = values.shape
    apart = values.reshape(batch, groups, channels // groups, height, width).transpose(1, 2)
    return apart.reshape(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, groups: int, first_groups: int) -> None:
        super().__init__()
        self.groups, self.stride = groups, stride
        middle, made = outputs // 4, outputs - inputs if stride == 2 else outputs
        self.reduce = conv_norm(inputs, middle, 1, nn.ReLU(), groups=first_groups)
        self.depthwise = conv_norm(middle, middle, 3, None, stride, groups=middle)
        self.expand = conv_norm(middle, made, 1, None, groups=groups)
        self.pool = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.expand(self.depthwise(shuffle(self.reduce(x), self.groups)))
        return torch.relu(torch.cat([self.pool(x), branch], 1) if self.stride == 2 else x + branch)


class ShuffleNetV1(nn.Module):
    def __init__(self, classes: int, groups: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, 24, 3, nn.ReLU(), 2), nn.MaxPool2d(3, 2, 1))
        units, inputs = [], 24
        for outputs, repeats in ((240, 4), (480, 8), (960, 4)):
            for index in range(repeats):
                first = 1 if inputs == 24 else groups
                units.append(ShuffleUnit(inputs, outputs, 2 if index == 0 else 1, groups, first))
                inputs = outputs
        self.units = nn.Sequential(*units)
        self.classifier = nn.Linear(inputs, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.units(self.stem(x)).mean((2, 3)))
        return y


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce, self.expand = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.gate(self.expand(torch.relu(self.reduce(self.pool(x)))))
        return x * y


class ESUnit(nn.Module):
    """A unit of stride 1, on half of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.first, self.depthwise = (
            conv_norm(half, half, 1, nn.Hardswish()),
            conv_norm(half, half, 3, None, groups=half),
        )
        self.gate, self.last = Gate(channels), conv_norm(channels, half, 1, nn.Hardswish())

    def forward(self, x: Tensor) -> Tensor:
        kept, x = x.chunk(2, 1)
        x = self.first(x)
        x = self.last(self.gate(torch.cat([x, self.depthwise(x)], 1)))
        return shuffle(torch.cat([kept, x], 1), 2)


class ESDownUnit(nn.Module):
    """A unit of stride 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        act = nn.Hardswish
        self.left = nn.Sequential(conv_norm(inputs, inputs, 3, None, 2, inputs), conv_norm(inputs, half, 1, act()))
        self.right = nn.Sequential(
            conv_norm(inputs, half, 1, act()),
            conv_norm(half, half, 3, None, 2, half),
            Gate(half),
            conv_norm(half, half, 1, act()),
        )
        self.join = nn.Sequential(
            conv_norm(outputs, outputs, 3, act(), groups=outputs), conv_norm(outputs, outputs, 1, act())
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.join(torch.cat([self.left(x), self.right(x)], 1))
        return y


class ESNet(nn.Module):
    def __init__(self, scale: float, classes: int) -> None:
        super().__init__()
        act = nn.Hardswish
        layers: list[nn.Module] = [conv_norm(3, 24, 3, act(), 2), nn.MaxPool2d(3, 2, 1)]
        inputs = 24
        for outputs, repeats in ((116, 3), (232, 7), (464, 3)):
            outputs = int(outputs * scale + 4) // 8 * 8
            layers += [ESDownUnit(inputs, outputs), *(ESUnit(outputs) for _ in range(repeats - 1))]
            inputs = outputs
        layers += [
            conv_norm(inputs, 1024, 1, act()),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(1024, 1280, 1, bias=False),
            act(),
        ]
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.features(x).flatten(1))
        return y


def yolo_conv(inputs: int, outputs: int, size: int = 1, stride: int = 1) -> nn.Module:
    return conv_norm(inputs, outputs, size, nn.SiLU(), stride)


class Bottleneck(nn.Module):
    def __init__(self, channels: int, first: int, expansion: float) -> None:
        super().__init__()
        middle = int(channels * expansion)
        self.first, self.last = yolo_conv(channels, middle, first), yolo_conv(middle, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.first(x))
        return x + y


class C3(nn.Module):
    """Bottlenecks on half of the channels."""

    def __init__(self, channels: int, repeats: int, first: int = 1) -> None:
        super().__init__()
        half = channels // 2
        self.left = nn.Sequential(yolo_conv(channels, half), *(Bottleneck(half, first, 1.0) for _ in range(repeats)))
        self.right, self.join = yolo_conv(channels, half), yolo_conv(2 * half, channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.join(torch.cat([self.left(x), self.right(x)], 1))
        return y


class C3K2(nn.Module):
    def __init__(self, inputs: int, outputs: int, deep: bool, expansion: float) -> None:
        super().__init__()
        half = int(outputs * expansion)
        self.split = yolo_conv(inputs, 2 * half)
        self.block = C3(half, 2, 3) if deep else Bottleneck(half, 3, 0.5)
        self.join = yolo_conv(3 * half, outputs)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.split(x).chunk(2, 1)
        y: Tensor = self.join(torch.cat([left, right, self.block(right)], 1))
        return y


class Attention(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head, self.key = heads, channels // heads, channels // heads // 2
        self.qkv = conv_norm(channels, channels + 2 * self.key * heads, 1, None)
        self.project = conv_norm(channels, channels, 1, None)
        self.position = conv_norm(channels, channels, 3, None, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        joined = self.qkv(x).view(batch, self.heads, 2 * self.key + self.head, height * width)
        query, key, value = joined.split([self.key, self.key, self.head], 2)
        weights = ((query.transpose(-2, -1) @ key) * self.key**-0.5).softmax(-1)
        mixed = (value @ weights.transpose(-2, -1)).view(batch, channels, height, width)
        y: Tensor = self.project(mixed + self.position(value.reshape(batch, channels, height, width)))
        return y


class C2PSA(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.split, self.join = yolo_conv(channels, channels), yolo_conv(channels, channels)
        self.attention = Attention(half, half // 64)
        self.feed = nn.Sequential(yolo_conv(half, 2 * half), conv_norm(2 * half, half, 1, None))

    def forward(self, x: Tensor) -> Tensor:
        kept, x = self.split(x).chunk(2, 1)
        x = x + self.attention(x)
        y: Tensor = self.join(torch.cat([kept, x + self.feed(x)], 1))
        return y


class YoloV5Classifier(nn.Module):
    """The medium one."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, 48, 6, 2, 2, bias=False), nn.BatchNorm2d(48), nn.SiLU())
        layers, inputs = [stem], 48
        for outputs, repeats in ((96, 2), (192, 4), (384, 6), (768, 2)):
            layers += [nn.Sequential(yolo_conv(inputs, outputs, 3, 2), C3(outputs, repeats))]
            inputs = outputs
        self.features = nn.Sequential(*layers, yolo_conv(inputs, 1280), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.features(x))
        return y


class YoloV11Classifier(nn.Module):
    """The nano one; it ends in probabilities."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            yolo_conv(3, 16, 3, 2),
            yolo_conv(16, 32, 3, 2),
            C3K2(32, 64, False, 0.25),
            yolo_conv(64, 64, 3, 2),
            C3K2(64, 128, False, 0.25),
            yolo_conv(128, 128, 3, 2),
            C3K2(128, 128, True, 0.5),
            yolo_conv(128, 256, 3, 2),
            C3K2(256, 256, True, 0.5),
            C2PSA(256),
            yolo_conv(256, 1280),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.features(x)).softmax(1)
        return y
