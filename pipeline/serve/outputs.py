"""The outputs that a request asks for, as tensors of the protocol, and how REST and gRPC write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from pipeline.onnx_models.scores import Scores
from pipeline.quant.divergence import probabilities
from pipeline.run import answer
from pipeline.runtimes.base import Output
from pipeline.serve.kserve import InvalidInput, RequestedOutput, pb
from pipeline.serve.wire import before

PROBABILITIES = "probabilities"  # the output beside the model's own; for sigmoids the same values
_SHARED_MEMORY = "shared_memory_region"  # Triton's extension, which is not supported
_CLASSIFICATION = "classification"  # Triton's extension: the best classes in place of a tensor
_MOST_ASKED = 16  # outputs of a request
_MANY = 20_000  # texts or numbers of an answer: some 10 ms
_RAW, _ID = (pb.ModelInferResponse.DESCRIPTOR.fields_by_name[name].number for name in ("raw_output_contents", "id"))
_BINARY_SIZE = "binary_data_size"  # of the binary tensor extension


@dataclass(frozen=True)
class Tensor:
    """One output."""

    name: str
    values: npt.NDArray[Any]  # float32, or bytes as objects

    @property
    def datatype(self) -> str:
        return "FP32" if self.values.dtype == np.float32 else "BYTES"

    def content(self) -> bytes:
        """Return the values in the protocol's binary form: texts with their length before them, in 4 bytes."""
        if self.values.dtype == np.float32:
            return self.values.tobytes()
        return b"".join(len(each).to_bytes(4, "little") + each for each in self.values.ravel())

    def data(self) -> list[Any]:
        """Return the values for JSON, flat."""
        values: list[Any] = self.values.ravel().tolist()
        return values if self.values.dtype == np.float32 else [each.decode() for each in values]


@dataclass(frozen=True)
class Answer:
    """The answer to one request."""

    id: str
    model: str
    version: str
    tensors: Sequence[Tensor]

    @property
    def is_large(self) -> bool:
        """Whether writing it takes so long that it has to be done beside the event loop."""
        return sum(tensor.values.size for tensor in self.tensors) > _MANY

    def to_rest(self, binary: Sequence[bool]) -> tuple[bytes, int | None]:
        """Return the body of a response, and the bytes of the JSON at its start; None: it is all JSON.

        Args:
            binary: of each tensor, whether its values are behind the JSON.
        """
        outputs, behind = [], []
        for tensor, is_binary in zip(self.tensors, binary, strict=True):
            shown: dict[str, Any] = {"name": tensor.name, "shape": tensor.values.shape, "datatype": tensor.datatype}
            if is_binary:
                behind.append(tensor.content())
                shown["parameters"] = {_BINARY_SIZE: len(behind[-1])}
            else:
                shown["data"] = tensor.data()
            outputs.append(shown)
        text = orjson.dumps(
            {"id": self.id, "model_name": self.model, "model_version": self.version, "outputs": outputs}
        )
        return (b"".join([text, *behind]), len(text)) if behind else (text, None)

    def to_grpc(self) -> bytes:
        """Return a ModelInferResponse, in which all values are raw."""
        contents = [tensor.content() for tensor in self.tensors]
        parts = [
            _described(
                self.model,
                self.version,
                tuple(
                    (tensor.name, tensor.datatype, tensor.values.shape, len(content))
                    for tensor, content in zip(self.tensors, contents, strict=True)
                ),
            )
        ]
        if self.id:
            text = self.id.encode()
            parts += (before(_ID, text), text)
        for content in contents:
            parts += (before(_RAW, content), content)
        return b"".join(parts)


@lru_cache(256)
def _described(model: str, version: str, tensors: tuple[tuple[str, str, tuple[int, ...], int], ...]) -> bytes:
    """Return the fields of a ModelInferResponse that most answers have in common.

    Args:
        tensors: of each its name, datatype, shape and bytes.
    """
    message = pb.ModelInferResponse(model_name=model, model_version=version)
    for name, datatype, shape, size in tensors:
        shown = message.outputs.add(name=name, datatype=datatype, shape=shape)
        shown.parameters[_BINARY_SIZE].int64_param = size
    made: bytes = message.SerializeToString()
    return made


class Outputs:
    """Makes the outputs of a model from its scores."""

    def __init__(self, own: str, scores: Scores | None, labels: Sequence[str]) -> None:
        """Prepare to answer.

        Args:
            own: the name of the model's output.
            scores: what it is (`Package.scores`).
            labels: of the classes, in its order.
        """
        self.names = (own, PROBABILITIES)
        self._scores, self._labels = scores, labels
        self._all = [RequestedOutput(name) for name in self.names]

    def wanted(self, asked: Sequence[RequestedOutput] | None) -> Sequence[RequestedOutput]:
        """Return the outputs that a request asks for; both where it names none.

        Raises:
            InvalidInput: there is no such output, or not in such a form; it is asked for more than once.
        """
        if not asked:
            return self._all
        known: set[str] = set()
        for each in asked:
            if each.name not in self.names:
                raise InvalidInput(f"no output {each.name!r}; expected {self.names[0]!r} or {PROBABILITIES!r}")
            if each.name in known:
                raise InvalidInput(f"output {each.name!r}: asked for more than once")
            known.add(each.name)
            refuse_shared_memory(f"output {each.name!r}", each.parameters)
            classes = whole_number((each.parameters or {}).get(_CLASSIFICATION, 0))
            if classes is None or classes < 0:
                raise InvalidInput(f"output {each.name!r}: {_CLASSIFICATION}: expected a number of classes")
        return asked

    def takes_long(self, wanted: Sequence[RequestedOutput], scores: Output) -> bool:
        """Tell whether `make` takes so long that it has to be done beside the event loop: texts do, numbers do not."""
        if len(wanted) * scores.size <= _MANY:  # as in most requests
            return False
        texts: int = sum(min(_classes_of(each), scores.shape[1]) for each in wanted) * len(scores)
        return texts > _MANY

    def make(self, wanted: RequestedOutput, scores: Output) -> Tensor:
        """Return an output for the model's own, float32 [images, classes]."""
        values = scores
        if wanted.name != self.names[0]:
            values = probabilities(scores, self._scores).astype(np.float32)
        if classes := _classes_of(wanted):
            return Tensor(wanted.name, np.array(self._classify_as_text(values, classes), dtype=object))
        return Tensor(wanted.name, values)

    def _classify_as_text(self, values: Output, count: int) -> list[list[bytes]]:
        """Return `value:class:label` for each row, best first, as Triton's classification extension has it."""
        return [
            [f"{row[index]:f}:{index}:{self._labels[index]}".encode() for index in ranks]
            for row, ranks in zip(values, answer.rank_classes(values, count), strict=True)
        ]


def _classes_of(wanted: RequestedOutput) -> int:
    """Return how many classes an output is to name, which was checked before; 0: it is a tensor."""
    return int((wanted.parameters or {}).get(_CLASSIFICATION, 0))


def check_asked(count: int) -> None:
    """Raise InvalidInput for more outputs than any request needs: a few bytes of each would get all classes."""
    if count > _MOST_ASKED:
        raise InvalidInput(f"outputs: expected at most {_MOST_ASKED}, got {count}")


def refuse_shared_memory(where: str, parameters: Mapping[str, object] | None) -> None:
    """Raise InvalidInput where a tensor is in shared memory, or is to be written there.

    Ignoring it would let the client read stale memory.
    """
    if _SHARED_MEMORY in (parameters or {}):
        raise InvalidInput(f"{where}: {_SHARED_MEMORY}: shared memory is not supported; send the tensor in the request")


def whole_number(value: object) -> int | None:
    """Return a number without a fraction; None for anything else. The protocol's own client writes 217.0 for 217."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
