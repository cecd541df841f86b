"""Bodies of the Open Inference Protocol over REST: JSON, with tensors in it or as bytes after it."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np
import orjson

from pipeline.serve.kserve import InferInput, InferRequest, InvalidInput, RequestedOutput
from pipeline.serve.outputs import check_asked, refuse_shared_memory, whole_number

# Lists and objects of a request. An array [512, 3, 224, 224] has 345,000 lists; some 70 bytes of memory are of each.
_MOST_PARTS = 1_000_000
JSON_LENGTH = "inference-header-content-length"  # a header of the binary tensor extension
_DTYPES = {"UINT8": np.uint8, "FP32": np.float32}


def parse(body: bytes, json_length: str | None, model_name: str, version: str | None) -> InferRequest:
    """Read a request of the protocol, with tensors in JSON or as bytes after it.

    Args:
        json_length: bytes of the JSON at the body's start; None: all of it.

    Raises:
        InvalidInput: it is not a request of the protocol.
    """
    length = len(body) if json_length is None else _whole_number(json_length)
    if not 0 <= length <= len(body):
        raise InvalidInput(f"{JSON_LENGTH}: expected 0 to {len(body)}, got {json_length!r}")
    try:
        text = body[:length]
        if length > _MOST_PARTS and text.count(b"[") + text.count(b"{") > _MOST_PARTS:  # brackets in texts count too
            raise InvalidInput(f"expected at most {_MOST_PARTS} lists and objects")
        document = orjson.loads(text)
    except orjson.JSONDecodeError as err:
        raise InvalidInput(f"the body is no JSON ({err})") from None
    inputs = document.get("inputs") if isinstance(document, dict) else None
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        found = f", got {len(inputs)}" if isinstance(inputs, list) and len(inputs) != 1 else ""
        raise InvalidInput(f"expected a JSON object with 'inputs', a list of one tensor{found}")
    if (b"true" in text or b"false" in text) and _holds_booleans(inputs[0].get("data")):
        raise InvalidInput("data: expected numbers or texts, got true or false")  # which would count as 1 and 0
    given, raw = _input(inputs[0], memoryview(body)[length:])
    return InferRequest(
        model_name,
        [given],
        model_version=version,
        request_id="" if document.get("id") is None else _text(document, "id"),
        raw_inputs=None if raw is None else [raw],
        parameters=_flagged(_object(document, "parameters"), "binary_data_output"),
        request_outputs=_outputs(document.get("outputs")),
    )


def _input(tensor: dict[str, Any], behind: memoryview) -> tuple[InferInput, memoryview | None]:
    """Return a tensor, and its bytes if it is not in the JSON."""
    name, datatype = _text(tensor, "name"), _text(tensor, "datatype")
    shape, parameters = _shape(name, tensor.get("shape")), _object(tensor, "parameters") or {}
    refuse_shared_memory(f"input {name!r}", parameters)
    size = parameters.get("binary_data_size")
    if whole_number(0 if size is None else size) != len(behind):
        raise InvalidInput(f"input {name!r}: binary_data_size: {len(behind)} bytes follow the JSON, got {size!r:.80}")
    given = InferInput(name, shape, datatype)
    if size is not None:
        return given, behind
    given.set_data_from_numpy(_from_json(name, datatype, shape, tensor.get("data")))
    return given, None


def _holds_booleans(data: object) -> bool:
    """Tell whether nested lists hold a boolean."""
    left = [data]
    while left:
        each = left.pop()
        if isinstance(each, bool):
            return True
        if isinstance(each, list):
            left += each
    return False


def _shape(name: str, shape: object) -> list[int]:
    axes = [whole_number(axis) for axis in shape] if isinstance(shape, list) else [None]
    known = [axis for axis in axes if axis is not None and axis >= 0]
    if len(known) != len(axes):
        raise InvalidInput(f"input {name!r}: shape: expected a list of numbers, got {shape!r:.80}")
    return known


def _from_json(name: str, datatype: str, shape: list[int], data: object) -> np.ndarray[Any, Any]:
    """Return numbers, or files in base64, flat or nested."""
    if not isinstance(data, list):
        raise InvalidInput(f"input {name!r}: data: expected a list, got {type(data).__name__}")
    try:
        if datatype == "BYTES":
            return np.array([base64.b64decode(each, validate=True) for each in data], dtype=object).reshape(shape)
        if datatype not in _DTYPES:
            raise InvalidInput(f"input {name!r}: datatype: expected UINT8, FP32 or BYTES, got {datatype!r:.80}")
        values = np.array(data)
        is_whole = datatype != "UINT8" or values.dtype.kind != "f" or bool((values == np.rint(values)).all())
        if values.dtype.kind not in "iuf" or not is_whole:  # 217.0 will do for 217
            raise InvalidInput(f"input {name!r}: data: expected numbers of {datatype}")
        if datatype == "UINT8" and values.size and not 0 <= values.min() <= values.max() <= 255:
            raise InvalidInput(f"input {name!r}: data: expected 0 to 255, got {values.min()} to {values.max()}")
        with np.errstate(over="ignore"):  # Inf is refused where it is used
            return values.astype(_DTYPES[datatype]).reshape(shape)
    except InvalidInput:  # which is a ValueError
        raise
    except (ValueError, TypeError, binascii.Error) as err:
        raise InvalidInput(f"input {name!r}: the data are not {datatype} {shape} ({err})") from None


def _outputs(asked: object) -> list[RequestedOutput] | None:
    if asked is None or asked == []:
        return None
    if not isinstance(asked, list) or not all(isinstance(each, dict) for each in asked):
        raise InvalidInput("outputs: expected a list of objects")
    check_asked(len(asked))
    return [
        RequestedOutput(_text(each, "name"), _flagged(_object(each, "parameters"), "binary_data")) for each in asked
    ]


def _flagged(parameters: dict[str, Any] | None, key: str) -> dict[str, Any] | None:
    """Return parameters of which one is true or false, if it is there."""
    value = (parameters or {}).get(key)
    if value not in (None, 0, 1):  # False and True are numbers too
        raise InvalidInput(f"{key}: expected true or false, got {value!r:.80}")
    return parameters


def _text(given: dict[str, Any], key: str) -> str:
    value = given.get(key)
    if not isinstance(value, str):
        raise InvalidInput(f"{key}: expected text, got {value!r:.80}")
    return value


def _object(given: dict[str, Any], key: str) -> dict[str, Any] | None:
    value = given.get(key)
    if value is not None and not isinstance(value, dict):
        raise InvalidInput(f"{key}: expected an object, got {value!r:.80}")
    return value


def _whole_number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else -1
