"""stages/export.py: whole models that normalise their images themselves, beside a build file that does so too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.building import build
from pipeline.config.build_config import BuildConfig
from pipeline.errors import DataError
from pipeline.packages.package import open_package

pytestmark = [
    pytest.mark.slow,  # each starts a process with torch
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]
MakeConfig = Callable[..., BuildConfig]


class Normalising(nn.Module):
    """A convolution and a classifier of images that it normalises itself."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mean, self.std = mean, std
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.relu(self.conv((images - self.mean) / self.std)).mean((2, 3)))
        return logits


def program(path: Path, mean: float, std: float) -> Path:
    """Save TorchScript of a network of 32 px images."""
    traced = torch.jit.trace(Normalising(mean, std).eval(), torch.zeros(1, 3, 32, 32))  # type: ignore[no-untyped-call]
    traced.save(str(path))
    return path


def config(make_config: MakeConfig, checkpoint: Path, *more: str) -> BuildConfig:
    shape = "frontend.shape={input: [1, 3, 32, 32]}"
    return make_config(
        "frontend.type=pytorch", f"frontend.checkpoint={checkpoint}", "frontend.model=null", shape, *more
    )


def test_build_refuses_a_program_that_normalises_pixels_which_process_ops_normalise_too(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    checkpoint = program(tmp_path / "net.pt", 127.5, 58.0)
    with pytest.raises(DataError) as caught:
        build(config(make_config, checkpoint))
    assert str(caught.value) == (
        f"{checkpoint}: the network normalises its pixels itself, and process_ops normalise them too; set Normalize "
        "to {mean: [0, 0, 0], std: [1, 1, 1], div255: false} there, or export the network without the normalisation"
    )


def test_every_build_says_that_a_program_may_normalise_what_process_ops_normalise_too(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    checkpoint = program(tmp_path / "net.pt", 0.485, 0.229)
    cfg = config(make_config, checkpoint, "backend.dtype=fp32")
    for _ in range(2):
        said: list[str] = []
        built = build(cfg, said.append)
        [line] = [line for line in said if "normalis" in line]
        assert line == (
            f"note: {checkpoint}: the network begins with a normalisation of images of 0 to 1, and process_ops "
            "normalise them too; where it was not trained so, set Normalize to {mean: [0, 0, 0], std: [1, 1, 1]}"
        )
    assert open_package(built.prefix).report()["proof"]["given"]["verdict"] == "good"
