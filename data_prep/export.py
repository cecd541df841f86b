"""Export an iResNet to ONNX, with the flags of the documents: `export.py --model_name iresnet50`."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone that is not installed

from pipeline.commands.cli import main
from pipeline.commands.flags import HelpFormatter


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Export an iResNet to ONNX.", allow_abbrev=False, formatter_class=HelpFormatter
    )
    parser.add_argument("--model_name", default="iresnet50", help="iresnet50, iresnet101, iresnet152, iresnet200")
    parser.add_argument(
        "--infile", type=Path, default=Path("model/pretrained"), metavar="DIR", help="folder of <model_name>.pth"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("model/onnx"), metavar="DIR", help="folder of the ONNX model"
    )
    parser.set_defaults(run=export, quiet=False, verbose=False, log_json=False)
    return parser


def export(args: argparse.Namespace) -> None:
    from pipeline.errors import ConfigError
    from pipeline.models import zoo

    row = zoo.find_model("official", args.model_name, "--model_name")
    weights = args.infile / f"{args.model_name}.pth"
    if not weights.is_file():
        # The author publishes no hash that a download could be checked by, so it is left to people.
        raise ConfigError(
            f"--infile {args.infile}: no {weights.name} in it; download {row.url} by hand and put it there"
        )
    from pipeline.prepare.export_model import Flags, Source, export_model  # with torch, which takes a second

    flags = Flags(weights="--infile", save_dir="--output")
    source = Source(library="official", name=args.model_name, size=224, weights=weights)
    path, error = export_model(source, args.output, flags=flags)
    print(f"{path}: largest difference from torch {error:.1e} of the largest logit")


if __name__ == "__main__":
    sys.exit(main(parser=make_parser()))
