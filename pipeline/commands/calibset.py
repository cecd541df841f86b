"""The `calibset` command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.commands.flags import add_command, add_key_flag


def add_calibset(commands: Any) -> None:
    parser = add_command(
        commands,
        "calibset",
        _calibset,
        "choose calibration images from all classes",
        "python -m pipeline calibset --dataset_path ILSVRC2012_img_val --num 1000 --out calibration.txt",
    )
    parser.add_argument(
        "--dataset_path", type=Path, required=True, metavar="DIR", help="images: a folder or a tar file"
    )
    add_key_flag(parser, "dataset.sampler.get_data_num", "--num", "--num_images", type=int, default=1000)
    add_key_flag(parser, "dataset.sampler.seed", "--seed", type=int, default=0)
    add_key_flag(parser, "dataset.sampler.suffix", "--suffix", default="any")
    add_key_flag(parser, "dataset.val_label", "--val_label", type=Path, metavar="FILE")
    add_key_flag(parser, "dataset.class_order", "--class_order", choices=("text", "numeric"), metavar="ORDER")
    parser.add_argument(
        "--out", type=Path, default=Path("calibration.txt"), metavar="FILE", help="list of images to write"
    )


def _calibset(args: argparse.Namespace) -> None:
    from pipeline.config.choices import ClassOrder
    from pipeline.data.calibration_list import write_calibration_list
    from pipeline.data.imagenet import list_dataset
    from pipeline.stages.calibset import choose

    order = None if args.class_order is None else ClassOrder(args.class_order)
    dataset = list_dataset(args.dataset_path, args.suffix, args.val_label, class_order=order)
    chosen = choose(dataset, args.num, args.seed)
    write_calibration_list(chosen, args.out, args.seed)
    print(f"{args.out}: {len(chosen)} images of {len({sample.class_index for sample in chosen})} classes")
