"""The `image2npz` command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.commands.flags import (
    add_command,
    add_engine_flags,
    add_key_flag,
    cluster_of,
    read_local_path,
    read_location,
)
from pipeline.errors import ConfigError, DataError
from pipeline.terminal import console


def add_image2npz(commands: Any) -> None:
    parser = add_command(
        commands,
        "image2npz",
        _image2npz,
        "decode images into npz files and list them",
        "python -m pipeline image2npz --dataset_path ILSVRC2012_img_val --target_path input_npz "
        "--text_path npz_datalist.txt",
    )
    parser.add_argument(
        "--dataset_path", type=read_location, required=True, metavar="DIR", help="images: a folder, a tar file or a URL"
    )
    parser.add_argument(
        "--target_path", type=read_location, required=True, metavar="DIR", help="folder or URL of the npz files"
    )
    parser.add_argument(
        "--text_path", type=read_local_path, default=Path("npz_datalist.txt"), metavar="FILE", help="the datalist"
    )
    add_key_flag(parser, "dataset.sampler.suffix", "--suffix", default="any")
    parser.add_argument(
        "--preprocess_as",
        default="torchvision",
        choices=("torchvision", "paddleclas", "transformers"),
        help="whose decoding to follow: paddleclas and transformers rotate images as EXIF says, torchvision does not",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="worker processes (default: one per core)")
    add_engine_flags(parser)


def _image2npz(args: argparse.Namespace) -> None:
    from pipeline.config.choices import PreprocessAs
    from pipeline.data import listed_labels
    from pipeline.data.conversion import convert
    from pipeline.data.imagenet import list_images

    if args.workers is not None and args.workers < 1:
        raise ConfigError(f"--workers: must be at least 1, got {args.workers}")
    cluster = cluster_of(args)
    report = convert(
        list_images(args.dataset_path, args.suffix),
        args.target_path,
        args.text_path,
        workers=args.workers,
        cluster=cluster,
        preprocess_as=PreprocessAs(args.preprocess_as),
    )
    try:
        listed = listed_labels.find_listed(args.dataset_path, args.suffix)
    except DataError as err:  # without labels the npz files are as good
        listed = None
        console.warning(f"note: labels are not kept: {err}")
    if listed is not None:
        listed_labels.keep(listed, args.target_path)
        print(f"labels of {len(listed.index_of)} images by {listed.file}, kept beside the npz files for eval")
    print(f"{report.datalist}: {report.converted + report.kept} images ({report.kept} were done already)")
