"""What the scripts in this folder share: their command line, and the images.

Each script runs in its tool's own environment (README.md here says how it is made), from the same float32 ONNX model
and the same preprocessed images as the others. It needs nothing of the pipeline.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Job:
    """A model to make."""

    recipe: str
    onnx: Path  # float32, input [N, C, H, W], output logits [N, classes]
    images: Float32  # of the calibration, [images, C, H, W], mapped from the file
    out: Path  # folder for the model and whatever the tool writes beside it
    iterations: int | None  # of a learned rounding, a layer; None: what the tool's documentation says
    batch: int | None  # images of an iteration; None: likewise
    tuning: int  # of the images, those that an accuracy tool learns from

    def batches(self, size: int) -> Iterator[Float32]:
        for start in range(0, len(self.images), size):
            yield np.ascontiguousarray(self.images[start : start + size])


@dataclass(frozen=True)
class Made:
    """What was made, and how; the driver reads it from `made.json`."""

    model: str
    images: int
    settings: str


@dataclass(frozen=True)
class Answers:
    """What the tool's own runtime says of the evaluation images."""

    logits: Float32  # [images, classes]
    images_per_s: float


Maker = Callable[[Job], Made]
Answerer = Callable[[Path, Float32], Answers]  # model, images


def work(recipes: Mapping[str, Maker], answer: Answerer | None = None) -> None:
    """Do what the command line asks for: make a model, or answer images with one in the tool's own runtime."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    tasks = parser.add_subparsers(dest="task", required=True)
    make = tasks.add_parser("make", help="quantize a model")
    make.add_argument("--recipe", choices=recipes, required=True)
    make.add_argument("--onnx", type=Path, required=True, help="float32, its output the logits")
    make.add_argument("--images", type=Path, required=True, help="npy, float32 [images, C, H, W]")
    make.add_argument("--out", type=Path, required=True, help="folder for the model and made.json")
    make.add_argument("--iterations", type=int, help="of a learned rounding, a layer (as documented)")
    make.add_argument("--tuning-images", type=int, help="those that an accuracy tool learns from (all)")
    make.add_argument("--batch", type=int, help="images of an iteration (as documented)")
    if answer is not None:
        run = tasks.add_parser("answer", help="run a model")
        run.add_argument("--model", type=Path, required=True)
        run.add_argument("--images", type=Path, required=True, help="npy, float32 [images, C, H, W]")
        run.add_argument("--out", type=Path, required=True, help="npz: logits, images_per_s")
    args = parser.parse_args()
    images = np.load(args.images, mmap_mode="r")
    if args.task == "make":
        tuning = min(args.tuning_images or len(images), len(images))
        onnx, out = args.onnx.absolute(), args.out.absolute()
        job = Job(args.recipe, onnx, images, out, args.iterations, args.batch, tuning)
        # Some tools write caches and logs into the working directory.
        os.chdir(job.out)
        made = recipes[job.recipe](job)
        (job.out / "made.json").write_text(json.dumps(asdict(made)), encoding="utf-8")
    else:
        assert answer is not None
        answers = answer(args.model, images)
        np.savez(args.out, logits=answers.logits, images_per_s=answers.images_per_s)
