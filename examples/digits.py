"""A data set of one's own, small and real: scikit-learn's handwritten digits, and a resnet18 trained on them.

    pip install scikit-learn
    python examples/digits.py

writes `digits/train` and `digits/val`, a folder a digit, and `digits.pth`, in about a minute on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits  # type: ignore[import-untyped]

from pipeline.models import zoo

SIDE, SAVED = 32, 37  # px: what the network takes, and the images around that
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 64


def enlarge(digit: np.ndarray) -> Image.Image:
    """Return 8x8 values of 0..16 as an image."""
    grey = Image.fromarray((digit * 255 / 16).astype(np.uint8))
    return grey.resize((SAVED, SAVED), Image.Resampling.BICUBIC).convert("RGB")


def tensor(image: Image.Image) -> torch.Tensor:
    """Return what the network takes: the centre, normalised, float32 [3, 32, 32]."""
    corner = (SAVED - SIDE) // 2
    centre = np.asarray(image)[corner : corner + SIDE, corner : corner + SIDE].astype(np.float32) / 255
    return torch.from_numpy(((centre - MEAN) / STD).transpose(2, 0, 1).astype(np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=8, help="(%(default)s)")
    args = parser.parse_args()
    digits = load_digits()
    images, labels = [enlarge(digit) for digit in digits.images], digits.target
    held_out = np.arange(len(images)) % 4 == 0
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = Path("digits") / ("val" if held_out[index] else "train") / f"digit_{label}"
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{index:04d}.png")
    inputs = torch.stack([tensor(image) for image in images])
    targets = torch.from_numpy(labels).long()
    chosen = torch.from_numpy(np.flatnonzero(~held_out))
    torch.manual_seed(0)
    network = zoo.build_network(zoo.find_model("torchvision", "resnet18"), num_classes=10)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.01, total_steps=args.epochs * (len(chosen) // BATCH + 1)
    )
    for epoch in range(args.epochs):
        network.train()
        for part in torch.split(chosen[torch.randperm(len(chosen))], BATCH):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(inputs[part]), targets[part])
            loss.backward()
            optimizer.step()
            schedule.step()
        network.eval()
        with torch.no_grad():
            right = (network(inputs[held_out]).argmax(1) == targets[held_out]).float().mean()
        print(f"epoch {epoch + 1}: {100 * right:.1f}% of {held_out.sum()} held-out digits")
    torch.save(network.state_dict(), "digits.pth")


if __name__ == "__main__":
    main()
