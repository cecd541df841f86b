"""The `export` command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.commands.flags import (
    add_checkpoint_key,
    add_command,
)


def add_export(commands: Any) -> None:
    parser = add_command(
        commands,
        "export",
        _export,
        "write one network as an ONNX model",
        "python -m pipeline export --model_library timm --model_name wide_resnet50_2 --size 256 --save_dir onnx "
        "--pretrained_weights wide_resnet50_2.pth",
    )
    parser.add_argument("--model_library", default="timm", choices=("timm", "torchvision", "official", "paddleclas"))
    parser.add_argument("--model_name", required=True, help="as `models` lists it")
    parser.add_argument("--size", type=int, default=224, help="height and width of the input, px (224)")
    parser.add_argument("--save_dir", type=Path, default=Path("onnx"), metavar="DIR", help="folder of the model (onnx)")
    parser.add_argument(
        "--pretrained_weights", type=Path, required=True, metavar="FILE", help="checkpoint, or auto: the published one"
    )
    parser.add_argument("--num_classes", type=int, default=1000, help="classes of the checkpoint (1000)")
    add_checkpoint_key(parser)


def _export(args: argparse.Namespace) -> None:
    from pipeline.prepare.export_model import export_model

    path, error = export_model(
        args.model_library,
        args.model_name,
        args.size,
        args.save_dir,
        args.pretrained_weights,
        args.num_classes,
        args.checkpoint_key,
    )
    print(f"{path}: largest difference from torch {error:.1e} of the largest logit")
