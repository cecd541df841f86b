"""How the extras of pyproject.toml are installed in a clone, as errors advise it."""

from __future__ import annotations

# Libraries that want one release of torch: without PyTorch's own index pip takes those of CUDA, which do not load here.
_BESIDE_TORCH = frozenset({"timm", "torchvision"})
_TORCH_INDEX = "--extra-index-url https://download.pytorch.org/whl/cpu "
# paddle2onnx 2.1 asks for onnx up to 1.17, and converts with the release of constraints.txt as well: it is installed
# without what it asks for.
_PADDLE = "pip install -c constraints.txt paddlepaddle packaging && pip install --no-deps paddle2onnx"


def install_command(extra: str) -> str:
    """Return the command line that installs an extra and leaves the tested releases as they are."""
    if extra == "paddle":
        return _PADDLE
    index = _TORCH_INDEX if extra in _BESIDE_TORCH else ""
    return f"pip install -c constraints.txt {index}-e '.[{extra}]'"
