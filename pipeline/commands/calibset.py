"""The `calibset` command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.commands.flags import add_command, add_suffix


def add_calibset(commands: Any) -> None:
    parser = add_command(
        commands,
        "calibset",
        _calibset,
        "choose calibration images, every class present",
        "python -m pipeline calibset --dataset_path ILSVRC2012_img_val --num 1000 --out calibration.txt",
    )
    parser.add_argument("--dataset_path", type=Path, required=True, metavar="DIR", help="images, folder or tar")
    parser.add_argument("--num", type=int, default=1000, help="images to choose (1000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another choice (0)")
    add_suffix(parser)
    parser.add_argument("--val_label", type=Path, metavar="FILE", help="labels of a flat folder: lines 'name index'")
    parser.add_argument(
        "--class_order", choices=("text", "numeric"), help="of class folders that are numbers (dataset.class_order)"
    )
    parser.add_argument("--out", type=Path, default=Path("calibration.txt"), metavar="FILE", help="(calibration.txt)")


def _calibset(args: argparse.Namespace) -> None:
    from pipeline.config.build_config import ClassOrder
    from pipeline.data.calibration_list import write_calibration_list
    from pipeline.data.imagenet import list_dataset
    from pipeline.stages.calibset import choose

    order = None if args.class_order is None else ClassOrder(args.class_order)
    dataset = list_dataset(args.dataset_path, args.suffix, args.val_label, class_order=order)
    chosen = choose(dataset, args.num, args.seed)
    write_calibration_list(chosen, args.out, args.seed)
    print(f"{args.out}: {len(chosen)} images of {len({sample.class_index for sample in chosen})} classes")
