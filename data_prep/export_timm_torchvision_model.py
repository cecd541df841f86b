"""Export a timm or torchvision model to ONNX, with the flags of the documents: see `--help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone that is not installed

from pipeline.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
