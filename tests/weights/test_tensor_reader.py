"""Checkpoints of training scripts: tensors beside objects of any class, read without importing or calling anything."""

from __future__ import annotations

import argparse
import enum
import os
import pickle
import random
import sys
import types
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damaged import overwritten
from torch import nn
from weights_fixtures import State, assert_same, network

from pipeline.errors import DataError
from pipeline.terminal import console
from pipeline.weights import checkpoints
from pipeline.weights.file_kinds import FileKind, kind_of
from pipeline.weights.tensor_reader import read_tensors

FORMS = ("torch", "old torch", "pickle")


class Color(enum.Enum):
    RED = 1


class Settings(dict[str, Any]):
    """As OmegaConf, easydict and others have them."""


class Averaged:
    """As timm's ModelEma was before it became a module."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.decay = module, 0.9


def save(value: object, path: Path, form: str) -> Path:
    if form == "pickle":
        path.write_bytes(pickle.dumps(value))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=form == "torch")
    return path


def trained() -> dict[str, Any]:
    net = network()
    optimizer = torch.optim.AdamW(net.parameters())
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {"optimizer": optimizer.state_dict(), "scheduler": {"last_epoch": 3}}


EXTRAS: dict[str, Callable[[], dict[str, Any]]] = {
    "namespace": lambda: {"args": argparse.Namespace(lr=0.1, output=Path("out"))},
    "numpy scalar": lambda: {"best_acc1": np.float64(71.25), "epoch": np.int64(3)},
    "numpy text and objects": lambda: {"names": np.array(["a", "b"]), "mixed": np.array([None, {}], dtype=object)},
    "random states": lambda: {
        "rng": np.random.get_state(),
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
    },
    "enum and set": lambda: {"color": Color.RED, "seen": {1, 2}, "frozen": frozenset([3]), "c": 1j},
    "settings": lambda: {"cfg": Settings(lr=0.1, nested=Settings(a=[1, 2]))},
    "counts": lambda: {"counts": defaultdict(int, {"a": 1})},
    "dtype and device": lambda: {"dtype": torch.float16, "device": torch.device("cpu"), "size": torch.Size([1, 2])},
    "optimizer": trained,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("extra", EXTRAS)
def test_read_state_dict_takes_the_tensors_beside_other_objects(
    tmp_path: Path, state: State, form: str, extra: str
) -> None:
    path = save({"model": state, **EXTRAS[extra]()}, tmp_path / "w.pth", form)
    assert_same(checkpoints.read_state_dict(path), state)


@pytest.mark.parametrize("form", FORMS)
def test_read_state_dict_names_in_a_line_what_it_passed_over(
    tmp_path: Path, state: State, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save({"model": state, "args": argparse.Namespace(out=Path("x")), "c": Color.RED}, tmp_path / "w.pth", form)
    checkpoints.read_state_dict(path)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"note: {path}: objects other than tensors were skipped: argparse.Namespace, ")
    assert said[0].endswith(f"PosixPath, {Color.__module__}.Color")


def test_read_state_dict_says_nothing_of_plain_training_checkpoints_but_when_verbose(
    tmp_path: Path, state: State, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}
    path = save(content, tmp_path / "w.pth", "torch")
    checkpoints.read_state_dict(path)
    assert capsys.readouterr().err == ""
    console.configure(verbose=True)
    try:
        checkpoints.read_state_dict(path)
    finally:
        console.configure()
    assert capsys.readouterr().err.splitlines() == [
        f"  {path}: weights in 'state_dict'",
        f"  {path}: names of tensors without 'module.'",
        f"  {path}: entries other than weights: epoch",
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "wrap", [lambda net: net, lambda net: {"model": net, "epoch": 1}, lambda net: {"net": Averaged(net)}]
)
def test_read_state_dict_takes_the_weights_of_a_whole_module(
    tmp_path: Path, state: State, form: str, wrap: Callable[[nn.Module], object]
) -> None:
    assert_same(checkpoints.read_state_dict(save(wrap(network()), tmp_path / "w.pth", form)), state)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64]
)
def test_read_tensors_keeps_values_of_every_type_and_layout(tmp_path: Path, form: str, dtype: torch.dtype) -> None:
    base = (torch.arange(24) % 5).reshape(2, 3, 4).to(dtype)
    value = {
        "whole": base,
        "turned": base.permute(2, 0, 1),
        "part": base[:, 1:, ::2],
        "empty": base[:0],
        "one": base[0, 0, 0],
        "parameter": nn.Parameter(torch.ones(2, 3)),
        "other": argparse.Namespace(),
    }
    path = save(value, tmp_path / "w.pth", form)
    found, _ = read_tensors(path, kind_of(path))
    assert isinstance(found, dict)
    for name in ("whole", "turned", "part", "empty", "one", "parameter"):
        assert found[name].dtype == value[name].dtype  # type: ignore[attr-defined]
        assert torch.equal(found[name], value[name])  # type: ignore[arg-type]


class Call:
    """A pickle of this calls a function when it is loaded carelessly."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.function, self.arguments


def write_mark(path: str) -> None:
    Path(path).write_text("called")


@pytest.mark.parametrize("form", FORMS)
def test_read_state_dict_calls_nothing_that_the_file_names(tmp_path: Path, state: State, form: str) -> None:
    mark = tmp_path / "mark"
    path = save({"model": state, "extra": Call(write_mark, str(mark))}, tmp_path / "w.pth", form)
    assert_same(checkpoints.read_state_dict(path), state)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Call(write_mark, str(mark))))  # the trap does work
    assert mark.exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("function", [os.system, eval, exec, __import__])
def test_read_state_dict_refuses_a_file_that_names_what_runs_code(
    tmp_path: Path, state: State, form: str, function: Callable[..., object]
) -> None:
    path = save({"model": state, "extra": Call(function, "1")}, tmp_path / "w.pth", form)
    with pytest.raises(DataError, match="which runs programs or code and is in no checkpoint; do not use this file"):
        checkpoints.read_state_dict(path)


def rewritten(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes in the pickle of a zip."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(old, new) if name.endswith("data.pkl") else content)


class Calls:
    """Pickled as a call of a function, or of what another object of the pickle is."""

    def __init__(self, function: object, *arguments: object) -> None:
        self._call = (function, arguments)

    def __call__(self) -> None:
        """Let pickle take an object for a function."""

    def __reduce__(self) -> tuple[object, ...]:
        return self._call


def fake_module(monkeypatch: pytest.MonkeyPatch, name: str, *functions: str) -> None:
    made = types.ModuleType(name)
    for function in functions:
        kind = type(function, (), {"__module__": name, "__qualname__": function})
        setattr(made, function, kind)
    monkeypatch.setitem(sys.modules, name, made)
    package = name.partition(".")[0]
    monkeypatch.setitem(sys.modules, package, sys.modules.get(package, types.ModuleType(package)))


def test_read_state_dict_takes_the_module_beside_classes_that_the_file_defines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fastai 2.8.12: Learner.export pickles by cloudpickle, whose files make classes and call what they made.

    Its callbacks hold the learner again, so the same network stands in the file several times.
    """
    name = "cloudpickle.cloudpickle"
    fake_module(monkeypatch, name, "_builtin_type", "_make_skeleton_class")
    net = network()
    learner: dict[str, object] = {"model": net, "recorder": {"learner": {"model": net}}}
    learner["transform"] = Calls(Calls(sys.modules[name]._builtin_type, "CodeType"), 1, 2)
    learner["label"] = Calls(sys.modules[name]._make_skeleton_class, type, "Label", (), {}, "id", None)
    path = save(learner, tmp_path / "export.pkl", "torch")
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, name)
        assert_same(checkpoints.read_state_dict(path), net.state_dict())


@pytest.mark.parametrize(
    ("module", "name", "wanted"),
    [
        ("torch.distributed.tensor", "DTensor", "holds sharded tensors (DTensor), as FSDP leaves them; save whole"),
        ("torchao.quantization", "Int8Tensor", "holds quantized tensors (torchao.quantization.Int8Tensor); wanted the"),
        ("other.lib", "Masked", "holds tensors of a class of their own (other.lib.Masked); save plain tensors"),
    ],
)
def test_read_state_dict_names_the_class_of_tensors_that_it_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str, wanted: str
) -> None:
    """As torch 2.14.1 saves the parameters of fully_shard, and those of torchao 0.18.0's quantize_."""
    fake_module(monkeypatch, module, name)
    kind = getattr(sys.modules[module], name)
    wrapper = Calls(
        torch._tensor._rebuild_from_type_v2,
        torch._utils._rebuild_wrapper_subclass,
        *(kind, (kind, torch.float32, (2, 2)), {"qdata": torch.ones(2, 2)}),
    )
    path = save({"fc.weight": wrapper, "fc.bias": torch.zeros(2)}, tmp_path / "w.pth", "pickle")
    with pytest.raises(DataError) as caught:
        checkpoints.read_state_dict(path)
    assert str(caught.value).startswith(f"{path}: {wanted}")


def test_read_tensors_refuses_a_tensor_that_reaches_beyond_its_storage(tmp_path: Path) -> None:
    path = save({"a": torch.ones(77), "x": argparse.Namespace()}, tmp_path / "w.pth", "torch")
    rewritten(path, b"K\x00KM\x85", b"K\x01KM\x85")  # offset 1 of 77 elements in place of 0
    with pytest.raises(pickle.UnpicklingError, match="reaches beyond its storage"):
        read_tensors(path, FileKind.TORCH)


def test_read_tensors_refuses_compressed_members_larger_than_the_file(tmp_path: Path) -> None:
    path = save({"a": torch.zeros(100_000), "x": argparse.Namespace()}, tmp_path / "w.pth", "torch")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(pickle.UnpicklingError, match="is larger than the file"):
        read_tensors(path, FileKind.TORCH)


@pytest.mark.parametrize("form", FORMS)
def test_read_state_dict_raises_nothing_else_when_a_training_checkpoint_is_damaged(
    tmp_path: Path, state: State, form: str
) -> None:
    whole = save({"model": state, "args": argparse.Namespace(lr=1), **trained()}, tmp_path / "w.pth", form).read_bytes()
    rng = random.Random(5)
    path = tmp_path / "damaged.pth"
    for _ in range(200):
        damaged = overwritten(whole, rng)
        path.write_bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
        try:
            checkpoints.read_state_dict(path)
        except DataError as err:
            assert "weights_only" not in str(err)
            assert "\n" not in str(err)


def test_pickle_of_storages_is_not_read_to_any_depth(tmp_path: Path) -> None:
    content = pickle.dumps(1)
    for _ in range(10):
        content = pickle.dumps(Nested(content))
    (tmp_path / "w.pkl").write_bytes(content)
    with pytest.raises(pickle.UnpicklingError, match="pickles inside pickles"):
        read_tensors(tmp_path / "w.pkl", FileKind.PICKLE)


class Nested:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return torch.storage._load_from_bytes, (self.content,)


def test_forms_are_what_they_are_called(tmp_path: Path) -> None:
    kinds = [kind_of(save({"a": torch.ones(1)}, tmp_path / "w", form)) for form in FORMS]
    assert kinds == [FileKind.TORCH, FileKind.TORCH_OLD, FileKind.PICKLE]
