"""How the extras of pyproject.toml are installed in a clone, as errors advise it."""

from __future__ import annotations

# Libraries that want one release of torch: without PyTorch's own index pip takes those of CUDA, which do not load here.
_BESIDE_TORCH = frozenset({"timm", "torchvision"})
_TORCH_INDEX = "--extra-index-url https://download.pytorch.org/whl/cpu "
# paddle2onnx 2.1 asks for onnx up to 1.17, and converts with the release of constraints.txt as well.
_WITHOUT_ITS_NEEDS = {"paddle": "paddle2onnx"}


def install_command(extra: str) -> str:
    """Return the command line that installs an extra and leaves the tested releases as they are."""
    index = _TORCH_INDEX if extra in _BESIDE_TORCH else ""
    more = f" && pip install --no-deps {_WITHOUT_ITS_NEEDS[extra]}" if extra in _WITHOUT_ITS_NEEDS else ""
    return f"pip install -c constraints.txt {index}-e '.[{extra}]'{more}"
