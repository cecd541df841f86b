"""Export an iResNet to ONNX, with the flags of the documents: `export.py --model_name iresnet50`."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone that is not installed

from pipeline.commands.cli import main


def as_export(arguments: list[str]) -> list[str]:
    """Return the arguments of `python -m pipeline` that mean the same."""
    parser = argparse.ArgumentParser(description="Export an iResNet to ONNX.", allow_abbrev=False)
    parser.add_argument("--model_name", default="iresnet50", help="iresnet50, iresnet101, iresnet152, iresnet200")
    parser.add_argument(
        "--infile", type=Path, default=Path("model/pretrained"), help="folder of <model_name>.pth (model/pretrained)"
    )
    parser.add_argument("--output", type=Path, default=Path("model/onnx"), help="folder of the model (model/onnx)")
    args = parser.parse_args(arguments)
    weights = args.infile / f"{args.model_name}.pth"
    network = ["--model_library", "official", "--model_name", args.model_name, "--save_dir", str(args.output)]
    return ["export", *network, "--pretrained_weights", str(weights) if weights.is_file() else "auto"]


if __name__ == "__main__":
    sys.exit(main(as_export(sys.argv[1:])))
