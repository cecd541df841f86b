"""The files in tests/data/paddle were written by paddle 3.3.1, `answers.npz` holds what its network answered.

Those in slices were written by paddle's own code with its limit of 1 GiB set to 160 bytes.
"""

from __future__ import annotations

import importlib
import os
import pickle
import random
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damaged import overwritten
from torch import Tensor, nn

from pipeline.errors import DataError
from pipeline.weights import checkpoints, matching
from pipeline.weights.pdparams import read_pdparams

GOLDEN = Path(__file__).parents[1] / "data" / "paddle"
SHAPES = {
    "conv.weight": [4, 3, 3, 3],
    "bn.weight": [4],
    "bn.bias": [4],
    "bn._mean": [4],
    "bn._variance": [4],
    "fc.weight": [4, 5],
    "fc.bias": [5],
}
WHOLE = sorted(path.name for path in GOLDEN.glob("*_protocol*.pdparams"))


class Net(nn.Module):
    """The network that wrote the files, in torch."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, classes)

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.fc(torch.relu(self.bn(self.conv(images))).mean((2, 3)))
        return answer


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        checkpoints.read_state_dict(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def save(path: Path, content: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def test_golden_files_are_there() -> None:
    assert len(WHOLE) == 7


@pytest.mark.parametrize("name", WHOLE)
def test_read_state_dict_gives_what_paddle_saved(name: str) -> None:
    state = checkpoints.read_state_dict(GOLDEN / name)
    assert {key: list(value.shape) for key, value in state.items()} == {key: SHAPES[key] for key in state}
    assert state.keys() == SHAPES.keys()
    first = checkpoints.read_state_dict(GOLDEN / WHOLE[0])
    assert all(torch.equal(state[key], first[key]) for key in state)


@pytest.mark.parametrize("name", WHOLE)
def test_network_answers_as_in_paddle(name: str) -> None:
    net = Net().eval()
    matching.load_strictly(net, checkpoints.read_state_dict(GOLDEN / name), GOLDEN / name, "paddleclas tiny")
    answers = np.load(GOLDEN / "answers.npz")
    with torch.no_grad():
        found = net(torch.from_numpy(answers["x"]))
    assert np.allclose(found.numpy(), answers["y"], atol=1e-5)


def test_read_pdparams_keeps_kinds_and_empty_shapes() -> None:
    read = read_pdparams(GOLDEN / "kinds.pdparams")
    assert isinstance(read, dict)
    assert {key: (str(value.dtype), value.shape) for key, value in read.items()} == {
        "w": ("float16", (2, 2)),
        "n": ("int64", (1,)),
        "z": ("float32", ()),
        "e": ("float32", (0, 3)),
    }
    assert read["n"].tolist() == [3]


def test_read_pdparams_keeps_what_is_no_array() -> None:
    read = read_pdparams(GOLDEN / "nested_protocol2.pdparams")
    assert isinstance(read, dict)
    assert {key: read[key] for key in ("epoch", "lr", "best")} == {"epoch": 3, "lr": 0.1, "best": 0.5}


def test_load_strictly_names_the_networks_tensors_when_the_file_is_an_optimizer() -> None:
    path = GOLDEN / "optimizer.pdparams"
    with pytest.raises(DataError) as caught:
        matching.load_strictly(Net(), checkpoints.read_state_dict(path), path, "paddleclas tiny")
    assert str(caught.value) == (
        f"{path}: not a checkpoint of paddleclas tiny: 7 keys missing (first: bn.bias), 5 unexpected (first: "
        "batch_norm2d_0.b_0_velocity_0); check frontend.model"
    )


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "f8", "f2", "i8", "u1"])
def test_read_state_dict_gives_each_array_when_its_layout_differs(
    tmp_path: Path, protocol: int, order: Any, dtype: str
) -> None:
    array = np.asarray(np.arange(24).reshape(2, 3, 4), dtype, order=order)
    path = save(tmp_path / "w.pdparams", OrderedDict(a=array, b=array), protocol)
    state = checkpoints.read_state_dict(path)
    assert state["a"].tolist() == state["b"].tolist() == array.tolist()


def test_read_state_dict_reads_bytes_of_python_2(tmp_path: Path) -> None:
    raw = np.array([1.0, 200.5], "<f4").tobytes()
    path = tmp_path / "w.pdparams"
    path.write_bytes(
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85"
        b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08" + raw + b"tbs."
    )
    assert checkpoints.read_state_dict(path)["a"].tolist() == [1.0, 200.5]


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "posix.system"),
        (eval, "builtins.eval"),
        (getattr, "builtins.getattr"),
        (np.load, "numpy.load"),
        (np.ndarray, "numpy.ndarray"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_read_state_dict_names_the_call_when_the_file_makes_one(
    tmp_path: Path, function: Callable[..., Any], name: str, protocol: int
) -> None:
    path = save(tmp_path / "w.pdparams", {"w": Call(function, "touch executed")}, protocol)
    called = name.replace("builtins", "__builtin__") if protocol < 3 else name
    assert error_of(path) == (
        f"{path}: holds more than arrays (it calls {called}); save it again with paddle.save(model.state_dict(), FILE)"
    )


def test_read_state_dict_runs_nothing_when_the_file_is_hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "w.pdparams", {"w": Call(os.system, "touch executed")})
    error_of(path)
    assert not (tmp_path / "executed").exists()
    pickle.loads(path.read_bytes())  # the trap does work
    assert (tmp_path / "executed").exists()


def test_read_state_dict_refuses_objects_in_arrays(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pdparams", {"w": np.array([{}, []], dtype=object)})
    assert error_of(path) == (
        f"{path}: holds more than arrays (an array of type 'O8'); save it again with "
        "paddle.save(model.state_dict(), FILE)"
    )


def array_of(shape: tuple[int, ...], content: bytes) -> Call:
    numeric: Any = importlib.import_module("numpy._core.numeric" if hasattr(np, "_core") else "numpy.core.numeric")
    return Call(numeric._frombuffer, content, np.dtype("float32"), shape, "C")


@pytest.mark.parametrize("shape", [(1 << 40,), (3,), (1 << 20, 1 << 20, 0, 1), (-1, -1)])
def test_read_state_dict_compares_the_size_of_an_array_with_its_bytes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = save(tmp_path / "w.pdparams", {"w": array_of(shape, b"\0" * 4)})
    assert error_of(path).startswith(f"{path}: not a whole checkpoint (an array of ")


def test_read_state_dict_refuses_more_bytes_of_arrays_than_the_file_has(tmp_path: Path) -> None:
    content = b"\0" * 4000
    path = save(tmp_path / "w.pdparams", {str(i): array_of((1000,), content) for i in range(100)})
    assert error_of(path) == (
        f"{path}: not a whole checkpoint (arrays larger than the file); copy or download it again"
    )


def test_read_state_dict_refuses_memory_numbers_that_would_fill_memory(tmp_path: Path) -> None:
    path = tmp_path / "w.pdparams"
    path.write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")
    assert error_of(path) == (
        f"{path}: not a whole checkpoint (memory entry 2147483647 after 2 steps); copy or download it again"
    )


def test_read_state_dict_refuses_a_slice_that_is_used_twice(tmp_path: Path) -> None:
    slices = {"w": {"OriginShape": (2, 2), "slices": ["w@@.0", "w@@.0"]}}
    path = save(tmp_path / "w.pdparams", {"w@@.0": np.zeros(2, np.float32), "UnpackBigParamInfor@@": slices})
    assert error_of(path).startswith(f"{path}: not a whole checkpoint (")


def test_read_state_dict_says_what_to_do_when_tensors_are_bfloat16() -> None:
    path = GOLDEN / "bfloat16.pdparams"
    assert error_of(path) == f"{path}: tensor w is uint16, as Paddle saves bfloat16; save it again as float32"


@pytest.mark.parametrize("kept", [0, 1, 100, 600, -1])
@pytest.mark.parametrize("name", ["plain_protocol2.pdparams", "plain_protocol4.pdparams"])
def test_read_state_dict_says_so_when_the_file_is_cut_short(tmp_path: Path, name: str, kept: int) -> None:
    path = tmp_path / "w.pdparams"
    path.write_bytes((GOLDEN / name).read_bytes()[:kept])
    begin = {0: "is empty; ", 1: "is no checkpoint, or not a whole one; "}.get(kept, "not a whole checkpoint (")
    assert error_of(path).startswith(f"{path}: {begin}")


def test_read_state_dict_raises_nothing_else_when_bytes_are_damaged(tmp_path: Path) -> None:
    path, rng, refused = tmp_path / "w.pdparams", random.Random(1), 0
    for name in WHOLE:
        content = (GOLDEN / name).read_bytes()
        for _ in range(100):
            path.write_bytes(overwritten(content, rng))
            try:
                checkpoints.read_state_dict(path)
            except DataError:
                refused += 1
    assert refused > 100


def test_read_state_dict_says_what_it_found_when_the_file_is_text(tmp_path: Path) -> None:
    path = tmp_path / "w.pdparams"
    path.write_bytes(b"<!DOCTYPE html><html>404</html>")
    assert error_of(path).startswith(f"{path}: is an HTML page, as a failed download leaves; ")


def load_error(net: nn.Module, state: dict[str, Tensor]) -> str:
    with pytest.raises(DataError) as caught:
        matching.load_strictly(net, state, Path("w.pdparams"), "paddleclas tiny")
    return str(caught.value)


@pytest.fixture
def state() -> dict[str, Tensor]:
    return checkpoints.read_state_dict(GOLDEN / "plain_protocol4.pdparams")


def test_load_strictly_names_tensors_as_the_file_does_when_they_are_missing(state: dict[str, Tensor]) -> None:
    del state["bn._variance"]
    assert load_error(Net(), state) == (
        "w.pdparams: not a checkpoint of paddleclas tiny: 1 keys missing (first: bn._variance); check frontend.model"
    )


def test_load_strictly_shows_shapes_as_the_file_has_them(state: dict[str, Tensor]) -> None:
    state["fc.weight"] = torch.zeros(5, 4)
    assert load_error(Net(), state) == (
        "w.pdparams: not a checkpoint of paddleclas tiny: 1 of another shape (first: fc.weight is [5, 4], wanted "
        "[4, 5]); check frontend.model"
    )


def test_load_strictly_counts_classes_of_a_transposed_classifier(state: dict[str, Tensor]) -> None:
    assert load_error(Net(classes=9), state) == (
        "w.pdparams: has 5 classes, wanted 9; give images of its 5 classes (without images: frontend.num_classes=5, "
        "or --num_classes 5 of export), or a checkpoint of 9"
    )
