"""A package in the Open Inference Protocol: named tensors in, named tensors out."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.preprocess import Prepared
from pipeline.data.quick_jpeg import QuickJpegs
from pipeline.errors import BackendError, DataError
from pipeline.packages.package import Package
from pipeline.run import answer
from pipeline.run.prediction import Prediction
from pipeline.runtimes.base import Output, TensorSpec
from pipeline.serve import metrics
from pipeline.serve.batching import Batcher, BusyError, Call
from pipeline.serve.decoders import Decoders
from pipeline.serve.kserve import InferInput, InferRequest, Internal, InvalidInput, RequestedOutput, Unavailable
from pipeline.serve.outputs import Answer, Outputs, Tensor, refuse_shared_memory
from pipeline.serve.tracing import Trace, current

ENCODED = "encoded_image"  # the input that takes files
_SIZE = struct.Struct("<I")  # bytes of a text, before it
_DATATYPES = {"uint8": "UINT8", "float32": "FP32"}
# As other servers of the protocol name what they run: Triton for ONNX files, and OpenVINO Model Server.
_PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "openvino": "OpenVINO"}


@dataclass(frozen=True)
class Setup:
    """How a package was opened."""

    runtime: str
    batch: int  # images computed at once, at most
    streams: int  # batches computed at the same time


class PackageModel:
    """Answers requests for one loaded package, over REST and gRPC alike."""

    def __init__(
        self,
        package: Package,
        version: str,
        batcher: Batcher,
        takes: TensorSpec,
        gives: TensorSpec,
        cores: int,
        setup: Setup,
        meter: metrics.Meter,
        quick: QuickJpegs | None,
    ) -> None:
        """Prepare to answer.

        Args:
            version: of the package, as the protocol names it.
            takes: the model's input, [None, 3, H, W].
            gives: the model's output, [None, classes].
            cores: images decoded at the same time.
            quick: what decodes JPEGs; None: Pillow.
        """
        self.package, self.name, self.version = package, package.name, version
        self.setup, self.meter = setup, meter
        self._batcher = batcher
        self._takes, self._quick = takes, quick
        self._spec = package.preprocess()
        self._scores = package.scores
        self._labels = [known.name for known in package.classes()]
        self._outputs = Outputs(gives.name, self._scores, self._labels)
        self._decoders = Decoders(cores)
        self._refusing = False
        self.under_way = 0  # requests whose images wait, are decoded or computed

    @property
    def platform(self) -> str:
        """The runtime, as the protocol's metadata has it."""
        return _PLATFORMS[self.setup.runtime]

    @property
    def most_images(self) -> int:
        """Images of one request, at most."""
        return self._batcher.limit

    def refuse(self) -> None:
        """Answer only requests that are under way."""
        self._refusing = True

    def get_input_types(self) -> list[dict[str, Any]]:
        """Return both inputs; a request has one of them."""
        return [
            {"name": self._takes.name, "datatype": _DATATYPES[self._takes.dtype], "shape": _free(self._takes.shape)},
            {"name": ENCODED, "datatype": "BYTES", "shape": [-1]},
        ]

    def get_output_types(self) -> list[dict[str, Any]]:
        shape = [-1, len(self._labels)]
        return [{"name": name, "datatype": "FP32", "shape": shape} for name in self._outputs.names]

    async def predict(self, payload: InferRequest) -> Answer:
        """Answer one request.

        Raises:
            InvalidInput: it is not a request for this model, or an image cannot be decoded.
            Unavailable: the queue is full, or the server is stopping.
            Internal: the runtime fails.
        """
        wanted = self._outputs.wanted(payload.request_outputs)
        with self._one_more() as request:
            scores = await self._scores_of(payload)
            request.images = len(scores)
        if self._outputs.takes_long(wanted, scores):
            tensors = await asyncio.to_thread(self._make, wanted, scores)
        else:
            tensors = self._make(wanted, scores)
        return Answer(payload.id or "", self.name, self.version, tensors)

    def _make(self, wanted: Sequence[RequestedOutput], scores: Output) -> list[Tensor]:
        return [self._outputs.make(each, scores) for each in wanted]

    async def classify(self, files: Sequence[tuple[str, bytes]], topk: int) -> list[Prediction]:
        """Return the best classes of encoded images, given with their names.

        Raises:
            InvalidInput, Unavailable, Internal: as `predict`.
        """
        with self._one_more() as request:
            outputs = await self._infer_files([content for _, content in files], [name for name, _ in files])
            request.images = len(outputs)
        return answer.make_predictions([name for name, _ in files], outputs, self._scores, self._labels, topk)

    def close(self) -> None:
        self._decoders.close()

    def _one_more(self) -> _Request:
        """Return a request, which counts while the body of its `with` runs.

        Raises:
            Unavailable: the server is stopping.
        """
        if self._refusing:
            metrics.REFUSED.labels("stopping").inc()
            raise Unavailable("the server is stopping")
        if (trace := current()) is not None:
            trace.describe(model_name=self.name, model_version=self.version)
        return _Request(self)

    async def _scores_of(self, payload: InferRequest) -> Output:
        """Return float32 [images, classes]."""
        if len(payload.inputs) != 1:
            raise InvalidInput(f"expected one input, {self._takes.name!r} or {ENCODED!r}, got {len(payload.inputs)}")
        given = payload.inputs[0]
        refuse_shared_memory(f"input {given.name!r}", given.parameters)
        if given.name == ENCODED:
            # Also as a column: MLServer's codec for base64 writes it so.
            if given.datatype != "BYTES" or list(given.shape[1:]) not in ([], [1]):
                raise InvalidInput(f"input {ENCODED!r}: expected BYTES [N], got {given.datatype} {list(given.shape)}")
            contents = _texts(given)
            return await self._infer_files(contents, [f"{ENCODED}[{number}]" for number in range(len(contents))])
        if given.name != self._takes.name:
            raise InvalidInput(f"no input {given.name!r}; expected {self._takes.name!r} or {ENCODED!r}")
        wanted = [_DATATYPES[self._takes.dtype], *self._takes.shape[1:]]
        if [given.datatype, *given.shape[1:]] != wanted or len(given.shape) != len(self._takes.shape):
            axes = ", ".join(str(axis) for axis in self._takes.shape[1:])
            raise InvalidInput(
                f"input {given.name!r}: expected {wanted[0]} [N, {axes}], got {given.datatype} {list(given.shape)}"
            )
        values = _array(given)
        if values.dtype != np.uint8 and not np.isfinite(values).all():
            raise InvalidInput(f"input {given.name!r}: holds NaN or Inf")
        images = list(values)
        return await self._infer(len(images), lambda: self._batcher.submit(images))

    async def _infer_files(self, contents: Sequence[bytes], names: Sequence[str]) -> Output:
        """Decode in threads, in parallel with the event loop and with each other; from there images go to the queue."""

        def start() -> Any:
            call = self._batcher.expect(len(contents))
            for number, (content, name) in enumerate(zip(contents, names, strict=True)):
                self._decoders.submit(self._decode, call, number, content, name)
            return call.future

        return await self._infer(len(contents), start)

    async def _infer(self, images: int, start: Callable[[], Any]) -> Output:
        """Return float32 [images, classes] of so many images, which `start` hands to the batcher for a future."""
        if not images:
            raise InvalidInput("expected at least one image, got none")
        if images > self._batcher.limit:
            raise InvalidInput(f"{images} images; expected at most {self._batcher.limit} a request (--max_queue)")
        try:
            scores: Output = await start()
            return scores
        except BusyError:
            metrics.REFUSED.labels("queue full").inc()
            raise Unavailable("the queue is full; try again later") from None
        except BackendError as err:
            raise Internal(str(err)) from None

    def _decode(self, call: Call, number: int, content: bytes, name: str) -> None:
        """Decode one image of a request, and queue it."""
        if call.is_over:  # the client has left, or another of the images has failed
            self._batcher.give_up(call)
            return
        try:
            prepared = self._load(content, name, call.trace)
        except Exception as err:  # whatever it is, the request must be answered
            self._batcher.give_up(call, err)
        else:
            self._batcher.put(call, number, prepared)

    def _load(self, content: bytes, name: str, trace: Trace | None) -> Prepared:
        begun = time.perf_counter()
        try:
            return answer.load(self._spec, name, content, takes_pixels=self._takes.takes_pixels, quick=self._quick)
        except DataError as err:
            raise InvalidInput(str(err)) from None
        finally:
            ended = time.perf_counter()
            self.meter.decoded(ended - begun)
            if trace is not None:
                trace.add("decode", begun, ended, pipeline_bytes=len(content))


class _Request:
    """A request under way: a context manager, which takes a third of the time of a generator."""

    __slots__ = ("_begun", "_model", "images")

    def __init__(self, model: PackageModel) -> None:
        self._model, self._begun = model, 0.0
        self.images = 0  # answered

    def __enter__(self) -> _Request:
        self._model.under_way += 1
        self._begun = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._model.under_way -= 1
        seconds = time.perf_counter() - self._begun
        if self.images:
            self._model.meter.answered(self.images, seconds)
        else:
            self._model.meter.failed(seconds)


def _texts(given: InferInput) -> list[bytes]:
    """Return the values of a tensor of BYTES."""
    raw: memoryview | None = given._raw_data
    if raw is None or len(given.shape) != 1 or given.shape[0] != 1 or len(raw) < _SIZE.size:
        return list(_array(given).ravel())
    (size,) = _SIZE.unpack_from(raw)  # of the one file that most requests have
    return [bytes(raw[_SIZE.size :])] if size == len(raw) - _SIZE.size else list(_array(given).ravel())


def _array(given: InferInput) -> npt.NDArray[Any]:
    """Return a tensor's values in its shape; those of BYTES as objects."""
    if any(axis < 0 for axis in given.shape):  # NumPy would take it for whatever fits
        raise InvalidInput(f"input {given.name!r}: shape: expected numbers of at least 0, got {list(given.shape)}")
    try:
        array: npt.NDArray[Any] = given.as_numpy()
    except (ValueError, OverflowError, TypeError, struct.error) as err:
        raise InvalidInput(
            f"input {given.name!r}: the data are not {given.datatype} {list(given.shape)} ({err})"
        ) from None
    return array


def _free(shape: Sequence[int | None]) -> list[int]:
    return [-1 if axis is None else axis for axis in shape]
