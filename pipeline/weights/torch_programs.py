"""TorchScript files and programs of torch.export (`.pt2`), converted to ONNX: whole networks, code and weights in one.

Loading one runs what its file says: TorchScript in an interpreter of its own, a program by torch's operators. It is
done in a separate process, which a damaged or hostile file may end; that is no protection against a file that is meant
to do harm: take them from those whose code you would run.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError, in_a_line, last_line
from pipeline.host import isolated
from pipeline.weights.file_kinds import FileKind, kind_of

if TYPE_CHECKING:
    import torch

KINDS = (FileKind.TORCHSCRIPT, FileKind.PROGRAM)
TRUST = "its own code was run, in a process of its own; build only files of those whose code you would run"
_OPSET = 17
_SHOWN = 200  # letters of what torch says, whose last line is the cause
_WANTED = "give its own size, or save it again so that its one positional input is [1, channels, height, width]"
_SECONDS = 1800.0
_ADVICE = " on this file; export it to ONNX"

_Shape = tuple[int | None, ...]  # of a program's input; None: it was exported for any size


def is_program(path: Path) -> bool:
    """Tell whether a file is one of the two; nothing of it is run."""
    try:
        return path.is_file() and kind_of(path) in KINDS
    except OSError:
        return False


def to_onnx(
    path: Path, out: Path, chw: tuple[int, int, int], images_nchw: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32] | None:
    """Convert a file, for one image of this size, or the batch that a program was exported for.

    Args:
        out: the ONNX file to write; its input is named `input`, its outputs as torch numbers them.
        images_nchw: float32 [N, C, H, W], to answer beside it; None: none.

    Returns:
        The network's own output for the images, computed by torch: float32 [N, classes]; None where it has several, or
        no images were given.

    Raises:
        DataError: torch cannot load, run or convert it; its reason is given.
    """
    with tempfile.TemporaryDirectory(prefix="torch-") as folder:
        written = Path(folder) / "model.onnx"
        answers: npt.NDArray[np.float32] | None = isolated.call_on_file(
            path, "torch", _ADVICE, _convert, str(path), str(written), chw, images_nchw, seconds=_SECONDS
        )
        shutil.copyfile(written, out)
    return answers


def input_hw(path: Path) -> tuple[int, int] | None:
    """Return height and width that a program was exported for; None where it takes any, and of TorchScript.

    Raises:
        DataError: torch cannot load it.
    """
    shape = isolated.call_on_file(path, "torch", _ADVICE, _shape, str(path), seconds=_SECONDS)
    if shape is None or len(shape) != 4 or shape[2] is None or shape[3] is None:
        return None
    return shape[2], shape[3]


def _shape(path: str) -> _Shape | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _load(path)[1]


def _convert(
    path: str, out: str, chw: tuple[int, int, int], images_nchw: npt.NDArray[np.float32] | None
) -> npt.NDArray[np.float32] | None:
    """Write the ONNX file; in a process of its own.

    Raises:
        DataError: what torch says of a failure.
    """
    import torch

    from pipeline.weights import antialiased_resize

    antialiased_resize.register()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        network, shape = _load(path)
        if shape:
            _check_shape(shape, chw)
        batch = (shape[0] if shape else None) or 1
        blank = torch.zeros(batch, *chw)
        output = _run_once(network, blank)
        has_one_output = isinstance(output, torch.Tensor)
        _export(network, blank, out, ["output"] if has_one_output else None)
        if images_nchw is None or not has_one_output:
            return None
        return _answer(network, images_nchw, batch)


def _check_shape(shape: _Shape, chw: tuple[int, int, int]) -> None:
    """Raise DataError where a program was exported for inputs of another shape than [N, C, H, W] of `chw`."""
    if len(shape) == 4 and all(size in (None, own) for size, own in zip(shape[1:], chw, strict=True)):
        return
    shown = ", ".join("?" if size is None else str(size) for size in shape)
    raise DataError(
        f"was exported for inputs of [{shown}], frontend.shape says {list(chw)}; set it and the crop of process_ops to "
        "that size"
    )


def _run_once(network: Any, blank: torch.Tensor) -> Any:
    """Return the network's output for a blank batch.

    Raises:
        DataError: it does not run on such a batch.
    """
    import torch

    try:
        return network(blank)
    except Exception as err:  # of the network's own code
        kinds = {parameter.dtype for parameter in network.parameters()} - {torch.float32}
        wanted = f"export it as float32, after model.float(), not {_names(kinds)}" if kinds else _WANTED
        size = list(blank.shape[1:])
        raise DataError(f"does not run on an image of {size} ({last_line(err)[:_SHOWN]}); {wanted}") from None


def _export(network: Any, blank: torch.Tensor, out: str, output_names: Sequence[str] | None) -> None:
    """Write a network as ONNX, for batches like `blank`.

    Raises:
        DataError: torch cannot export it.
    """
    import torch

    try:
        torch.onnx.export(
            network,
            (blank,),
            out,
            dynamo=False,
            input_names=["input"],
            output_names=output_names,
            opset_version=_OPSET,
        )
    except Exception as err:  # the exporter's errors have no parent of their own
        raise DataError(
            f"torch {torch.__version__} cannot export it to ONNX ({in_a_line(err)}); export the network itself by "
            "torch.onnx.export(..., dynamo=True) and give that file"
        ) from None


def _answer(network: Any, images_nchw: npt.NDArray[np.float32], batch: int) -> npt.NDArray[np.float32]:
    """Return a network's outputs, float32 [N, classes], computed in batches of one size; the last one is padded."""
    import torch

    padding = np.repeat(images_nchw[-1:], -len(images_nchw) % batch, axis=0)
    padded = np.concatenate([images_nchw, padding])
    parts = [torch.from_numpy(padded[start : start + batch]) for start in range(0, len(padded), batch)]
    answers = np.concatenate([network(part).numpy() for part in parts])[: len(images_nchw)]
    return answers.reshape(len(images_nchw), -1).astype(np.float32)


def _load(path: str) -> tuple[Any, _Shape | None]:
    """Return the network, ready to be called, and the input's shape, which only a program has."""
    import torch

    if kind_of(Path(path)) is FileKind.TORCHSCRIPT:
        try:
            network: Any = torch.jit.load(path, map_location="cpu").float().eval()  # type: ignore[no-untyped-call]
        except Exception as err:
            raise DataError(
                f"torch {torch.__version__} cannot load this TorchScript file ({in_a_line(err)}); save the network "
                "again by this version of torch, without torch.jit.optimize_for_inference, or export it to ONNX"
            ) from None
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        return network, None
    try:
        program = torch.export.load(path)
        network = program.module()
        network.train = lambda mode=True: network  # it has one mode, and refuses to be asked; the exporter asks
    except Exception as err:
        raise DataError(
            f"torch {torch.__version__} cannot load this program of torch.export ({in_a_line(err)}); export it again "
            "by this version of torch, or to ONNX"
        ) from None
    shapes = {
        node.name: tuple(size if isinstance(size, int) else None for size in node.meta["val"].shape)
        for node in program.graph.nodes
        if node.op == "placeholder" and "val" in node.meta
    }
    inputs = [shapes[name] for name in program.graph_signature.user_inputs if name in shapes]
    if len(inputs) != 1:
        raise DataError(f"has {len(inputs)} inputs, wanted one, of images [N, 3, H, W]")
    return network, inputs[0]


def _names(kinds: Collection[torch.dtype]) -> str:
    return " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
