from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.weights.residual_branches import branch_ends


class NormAct(nn.BatchNorm2d):
    """A norm of a library, in a module outside torch.nn, that computes by functions and looks at its state."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in torch)
        assert input.ndim == 4, "expected 4D input"
        normed = nn.functional.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias)
        return torch.relu(normed) if self.training else normed


class Gate(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class Block(nn.Module):
    def __init__(self, channels: int, after: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = NormAct(channels)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.after(self.norm(self.conv(x)))
        return branch + x


class Folding(nn.Module):
    """Looks at the size of its input, so it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        folded: Tensor = self.inner(x)
        return folded if x.shape[2] % 2 == 0 else x


def test_branch_ends_finds_the_norm_of_a_library() -> None:
    block = Block(4, nn.Identity())
    assert branch_ends(nn.Sequential(nn.Conv2d(3, 4, 1), block)) == [block.norm]


def test_branch_ends_passes_the_gate_of_a_branch() -> None:
    block = Block(4, Gate(4))
    assert branch_ends(block) == [block.norm]


def test_branch_ends_finds_the_others_when_a_block_cannot_be_traced() -> None:
    first, last = Block(4, nn.Identity()), Block(4, nn.ReLU())
    assert branch_ends(nn.Sequential(first, nn.Sequential(Folding(), nn.ReLU()), last)) == [first.norm, last.norm]


def test_branch_ends_takes_no_size_for_a_branch() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.conv(x)
            return found.reshape(found.shape[0] + 0, -1)

    assert branch_ends(Sized()) == []
