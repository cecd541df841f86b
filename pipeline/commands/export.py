"""The `export` command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.commands.flags import add_command, add_key_flag
from pipeline.config.sections import AUTO


def add_export(commands: Any) -> None:
    parser = add_command(
        commands,
        "export",
        _export,
        "export one network as an ONNX model, or as TorchScript",
        "python -m pipeline export --model_library timm --model_name wide_resnet50_2 --size 256 --save_dir onnx "
        "--pretrained_weights wide_resnet50_2.pth",
    )
    parser.add_argument(
        "--model_library",
        default="timm",
        choices=("timm", "torchvision", "official", "paddleclas"),
        help="library of the network",
    )
    parser.add_argument("--model_name", required=True, help="name of the network, as `models` lists it")
    parser.add_argument("--size", type=int, default=224, metavar="PX", help="height and width of the input")
    parser.add_argument("--save_dir", type=Path, default=Path("onnx"), metavar="DIR", help="folder of the model")
    parser.add_argument(
        "--pretrained_weights",
        type=Path,
        default=AUTO,
        metavar="FILE",
        help="checkpoint; auto: download the weights that the library publishes",
    )
    parser.add_argument(
        "--convert_mode", choices=("onnx", "pt"), default="onnx", help="pt: TorchScript, for a batch of any size"
    )
    parser.add_argument("--num_classes", type=int, default=1000, help="number of classes of the checkpoint")
    add_key_flag(parser, "frontend.checkpoint_key", "--checkpoint_key", metavar="KEY")


def _export(args: argparse.Namespace) -> None:
    from pipeline.prepare.export_model import Source, export_model

    source = Source(
        library=args.model_library,
        name=args.model_name,
        size=args.size,
        weights=args.pretrained_weights,
        num_classes=args.num_classes,
        key=args.checkpoint_key,
    )
    path, error = export_model(source, args.save_dir, form=args.convert_mode)
    print(f"{path}: largest difference from torch {error:.1e} of the largest logit")
