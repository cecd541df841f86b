"""Which other library a checkpoint is from whose networks are not built here, and how that library exports them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection
from pathlib import Path

_CLASSIFIER = "ForImageClassification"
_WRAPPER = "timm_wrapper"  # transformers around a network of timm, whose weights are timm's
# First parts of the names of an image encoder and of the text encoder beside it: of open_clip and transformers.
_PAIRS = (
    frozenset({"visual", "transformer"}),
    frozenset({"visual", "text"}),
    frozenset({"vision_model", "text_model"}),
)
_ULTRALYTICS = re.compile(r"\d+\.(conv|cv1|linear)\.")
_FASTAI = frozenset({"0", "1"})  # body and head


def describe(weights: Path, names: Collection[str]) -> str | None:
    """Return whose the checkpoint is and what to do, to complete a message that begins with its path; None: not known.

    Args:
        weights: the file; `config.json` beside it tells transformers' networks.
        names: of its tensors, without the prefix that all share.
    """
    beside = _of_transformers(weights)
    if beside is not None:
        return beside
    first = {name.partition(".")[0] for name in names}
    if any(pair <= first for pair in _PAIRS):
        return (
            "is of CLIP or a relative, an image encoder and one of text, which give no scores of classes; fit a "
            "classifier to the image encoder, and export both to ONNX as one network"
        )
    if first == _FASTAI:
        return "is in two parts, as fastai's vision_learner has them; export learner.model.eval() to ONNX"
    if all(part.isdigit() for part in first) and any(_ULTRALYTICS.match(name) for name in names):
        command = f"yolo export model={shlex.quote(str(weights))} format=onnx"
        return f"has the names of Ultralytics' networks; give the file that {command} writes"
    return None


def _of_transformers(weights: Path) -> str | None:
    folder = weights.parent
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    made = config.get("architectures") if isinstance(config, dict) and "model_type" in config else None
    if not isinstance(made, list) or not made or config["model_type"] == _WRAPPER:
        return None
    if _CLASSIFIER not in str(made[0]):
        return f"is transformers' {made[0]}, by config.json beside it, which is no classifier of images"
    path = shlex.quote(str(folder))
    return (
        f"is transformers' {made[0]}, by config.json beside it; give the model.onnx that optimum-cli export onnx "
        f"--task image-classification -m {path} exported writes"
    )
