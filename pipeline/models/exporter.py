"""A torch network as an ONNX model with a free batch axis."""

from __future__ import annotations

import io
import tempfile
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from pipeline.errors import DataError, PipelineError, first_line
from pipeline.host.hardware import release_memory
from pipeline.models import zoo
from pipeline.models.torch_threads import one_thread
from pipeline.onnx_models import classifier
from pipeline.onnx_models.origin_check import SINGLE, with_own_rounding

_WRONG = 1e-3  # of the largest logit, where `origin_check.with_own_rounding` allows no more: the export is refused


def to_onnx(network: nn.Module, chw: tuple[int, int, int], input_name: str = "input") -> onnx.ModelProto:
    """Return the network as ONNX, opset 17: float32 [N, C, H, W] -> float32 [N, classes]; batch norms are folded.

    The TorchScript exporter is used on purpose: it names nodes by module path and keeps GlobalAveragePool one operator,
    which both runtimes compute in int8. The newer one numbers its nodes, emits ReduceMean and needs onnxscript.
    """
    release_memory()  # torch holds the weights four times while it exports them
    with tempfile.TemporaryDirectory(prefix="export-") as folder:
        path = Path(folder) / "network.onnx"  # in memory it would be there once more, beside what torch holds of it
        with warnings.catch_warnings(), one_thread():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", UserWarning)
            _export(network, chw, path, input_name, {input_name: {0: "N"}, "output": {0: "N"}})
        release_memory()
        return onnx.load(path)


def export(row: zoo.Model, network: nn.Module, chw: tuple[int, int, int], input_name: str = "input") -> onnx.ModelProto:
    """Return a network of the table, or of an installed library, as ONNX; see `to_onnx` and `library_to_onnx`."""
    if row.design is zoo.Design.INSTALLED:
        return library_to_onnx(network, chw, input_name, f"{row.library} {row.name}")
    return to_onnx(network, chw, input_name)


def library_to_onnx(network: nn.Module, chw: tuple[int, int, int], input_name: str, name: str) -> onnx.ModelProto:
    """Return a network of an installed library as ONNX, in the form that `classifier.load` gives files.

    It is exported for one image, and its batch is freed afterwards: what a network computes from its batch in Python
    would be a constant either way, and is found so.

    Args:
        name: of the network, for errors.

    Raises:
        DataError: torch does not export it, or what it exports is not taken.
    """
    with tempfile.TemporaryDirectory(prefix="export-") as folder:
        path = Path(folder) / "network.onnx"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _export(network, chw, path, input_name)
        except Exception as err:  # of each network's own code, as of the exporter
            raise DataError(f"{name}: torch {torch.__version__} does not export it ({first_line(err)})") from None
        try:
            return classifier.load(path, chw)
        except DataError as err:
            raise DataError(str(err).replace(str(path), name)) from None


def _export(
    network: nn.Module,
    chw: tuple[int, int, int],
    path: Path,
    input_name: str,
    dynamic_axes: dict[str, dict[int, str]] | None = None,
) -> None:
    with torch.inference_mode():
        torch.onnx.export(
            network.eval(),
            (torch.zeros(1, *chw),),
            str(path),
            dynamo=False,
            input_names=[input_name],
            output_names=["output"],
            dynamic_axes=dynamic_axes,
            opset_version=classifier.OPSET,
        )


def to_torchscript(network: nn.Module, chw: tuple[int, ...]) -> bytes:
    """Return the network as a TorchScript file: float32 [N, C, H, W] -> float32 [N, classes], for any N."""
    stream = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(network.eval(), torch.zeros(1, *chw)), stream)  # type: ignore[no-untyped-call]
    return stream.getvalue()


def check_torchscript(file: bytes, network: nn.Module, batch_nchw: npt.NDArray[np.float32]) -> float:
    """Return the relative error of a TorchScript file against the network, as `check_against_torch` does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        loaded = torch.jit.load(io.BytesIO(file))  # type: ignore[no-untyped-call]
    return check_outputs(run_network(network, batch_nchw), run_network(loaded, batch_nchw))


def run_network(network: nn.Module, batch_nchw: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the network's own output for one batch, computed by torch: [N, C, H, W] -> [N, classes]."""
    with torch.inference_mode(), one_thread():
        outputs: npt.NDArray[np.float32] = network.eval()(torch.from_numpy(batch_nchw)).numpy()
    return outputs


def check_against_torch(model: onnx.ModelProto, network: nn.Module, batch_nchw: npt.NDArray[np.float32]) -> float:
    """Return the relative error of ONNX Runtime against torch on real images, float32 [N, C, H, W].

    Raises:
        PipelineError: it is too large, so the export is wrong.
    """
    wanted, found = run_network(network, batch_nchw), classifier.run(model, batch_nchw)
    return check_outputs(wanted, found, with_own_rounding(SINGLE, model, batch_nchw, wanted, found).good)


def check_outputs(
    wanted: npt.NDArray[np.float32], found: npt.NDArray[np.float32], rounding: float = SINGLE.good
) -> float:
    """Return the relative error of what an exported model gives, against what torch gives, [N, classes] each.

    Args:
        rounding: share of the largest logit that float32 rounding alone makes, as of `with_own_rounding`.

    Raises:
        PipelineError: it is too large, so the export is wrong.
    """
    error, most = classifier.relative_error(wanted, found), max(_WRONG, rounding)
    if not error <= most:
        raise PipelineError(
            f"the exported model differs from torch by {error:.1e} of the largest logit (at most {most:.0e} is "
            "rounding); check the checkpoint for NaN, or report this with the versions of torch and onnxruntime"
        )
    return error
