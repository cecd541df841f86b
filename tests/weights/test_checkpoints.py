from __future__ import annotations

import io
import json
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint.format_utils
import torch.distributed.checkpoint.state_dict_saver
from damaged import overwritten
from torch import nn
from weights_fixtures import State, assert_same

from pipeline.errors import DataError
from pipeline.models import exporter
from pipeline.weights import checkpoints


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        checkpoints.read_state_dict(path)
    return str(caught.value)


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: OrderedDict(state),
        lambda state: {"state_dict": state, "epoch": 90, "arch": "resnet18", "best_acc1": 76.1},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"model_state_dict": state},
        lambda state: {"epoch": 1, "model": {"state_dict": state}},
        lambda state: prefixed("module.", state),
        lambda state: {"state_dict": prefixed("module.", state)},
        lambda state: prefixed("_orig_mod.", state),
        lambda state: prefixed("module._orig_mod.", state),
        lambda state: prefixed("_orig_mod.module.", state),
        lambda state: {"state_dict": prefixed("model.", state)},
    ],
    ids=[
        *("plain", "ordered", "state_dict", "model", "model_state_dict", "nested", "module", "state_dict module"),
        *("compiled", "parallel of compiled", "compiled of parallel", "lightning"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_read_state_dict_gives_the_tensors_when_they_are_wrapped(
    tmp_path: Path, state: State, wrap: Callable[[State], Any], suffix: str
) -> None:
    torch.save(wrap(state), tmp_path / f"weights{suffix}")
    assert_same(checkpoints.read_state_dict(tmp_path / f"weights{suffix}"), state)


def test_read_state_dict_reads_the_format_of_pytorch_before_1_6(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same(checkpoints.read_state_dict(tmp_path / "old.pth"), state)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_read_state_dict_reads_safetensors(tmp_path: Path, state: State, prefix: str) -> None:
    safetensors.torch.save_file(prefixed(prefix, state), tmp_path / "weights.safetensors")
    assert_same(checkpoints.read_state_dict(tmp_path / "weights.safetensors"), state)


def test_read_state_dict_keeps_a_prefix_that_not_all_names_have(tmp_path: Path, state: State) -> None:
    mixed = {**prefixed("module.", state), "fc.weight": state["fc.weight"]}
    torch.save(mixed, tmp_path / "weights.pth")
    assert checkpoints.read_state_dict(tmp_path / "weights.pth").keys() == mixed.keys()


def test_read_state_dict_says_which_flag_when_the_file_is_missing(tmp_path: Path) -> None:
    assert error_of(tmp_path / "gone.pth") == (
        f"{tmp_path}/gone.pth: no such checkpoint; give the file by frontend.checkpoint (--weights of build and "
        "init, --pretrained_weights of export)"
    )


@pytest.mark.parametrize("name", ["w.pth.tar", "epoch=3.ckpt", "w.th", "w.bin", "w.model", "weights", "w.onnx"])
@pytest.mark.parametrize("form", ["torch", "old torch", "pickle", "safetensors"])
def test_read_state_dict_goes_by_the_content_whatever_the_suffix(
    tmp_path: Path, state: State, name: str, form: str
) -> None:
    path = tmp_path / name
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    elif form == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "torch")
    assert_same(checkpoints.read_state_dict(path), state)


def test_read_state_dict_says_so_when_it_is_given_a_folder(tmp_path: Path) -> None:
    assert error_of(tmp_path) == f"{tmp_path}: is a folder; give the file of the weights in it"
    for name in ("config.json", "model.safetensors", "optimizer.pt", "training_args.bin"):  # as transformers' trainer
        (tmp_path / name).touch()
    assert error_of(tmp_path).endswith("give the file of the weights in it, model.safetensors")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_read_state_dict_names_the_program_that_joins_a_distributed_checkpoint(tmp_path: Path, state: State) -> None:
    folder, joined = tmp_path / "step_100", tmp_path / "weights.pth"
    torch.distributed.checkpoint.state_dict_saver.save({"model": state}, checkpoint_id=folder, no_dist=True)
    advice = (
        "a distributed checkpoint of PyTorch; make one file of it by python -m "
        f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pth and give that"
    )
    assert error_of(folder) == f"{folder}: is {advice}"
    part = next(folder.glob("*.distcp"))
    assert error_of(part) == f"{part}: is a part of {advice}"
    torch.distributed.checkpoint.format_utils.dcp_to_torch_save(folder, joined)
    assert_same(checkpoints.read_state_dict(joined), state)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1])
@pytest.mark.parametrize("kind", ["weights.pth", "old.pth", "weights.safetensors"])
def test_read_state_dict_says_so_when_the_file_is_cut_short(
    tmp_path: Path, state: State, kind: str, kept: float
) -> None:
    path = tmp_path / kind
    if kind == "weights.safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind != "old.pth")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept) if kept == 0.5 else int(kept)])
    message = error_of(path)
    assert message.startswith(
        (f"{path}: not a whole ", f"{path}: is no checkpoint, or not a whole one", f"{path}: is ")
    )
    assert ("is empty" in message) == (kept == 0)
    assert "weights_only" not in message
    assert "\n" not in message


def test_read_state_dict_raises_nothing_else_when_bytes_are_damaged(tmp_path: Path, state: State) -> None:
    path = tmp_path / "weights.pth"
    rng = random.Random(1)
    refused = 0
    for old in (False, True):
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=not old)
        for _ in range(150):
            path.write_bytes(overwritten(buffer.getvalue(), rng))
            try:
                checkpoints.read_state_dict(path)
            except DataError:
                refused += 1
    assert refused > 100


def test_read_state_dict_says_so_when_the_file_is_a_failed_download(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"<!DOCTYPE html><html>404</html>")
    assert error_of(path) == (
        f"{path}: is an HTML page, as a failed download leaves; download it again, or copy the file itself"
    )


class Touch:
    """A pickle of this makes a file when it is loaded carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["torch", "old torch", "pickle"])
def test_read_state_dict_runs_nothing_when_the_file_is_hostile(tmp_path: Path, state: State, form: str) -> None:
    trap, path = tmp_path / "executed", tmp_path / "weights.pth"
    content = {**state, "fc.weight": Touch(trap)}
    if form == "pickle":
        path.write_bytes(pickle.dumps({"fc.weight": Touch(trap)}, protocol=2))
    else:
        torch.save(content, path, pickle_protocol=2, _use_new_zipfile_serialization=form == "torch")
    message = error_of(path)
    assert not trap.exists()
    assert message == (
        f"{path}: names posix.system, which runs programs or code and is in no checkpoint; do not use this file, or "
        "save it again with torch.save(model.state_dict(), FILE) where you trust its origin"
    )
    # The trap does work: this is what the loader must not do.
    if form == "pickle":
        pickle.loads(path.read_bytes())
        assert trap.exists()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"epoch": 3, "lr": 0.1}, "['epoch', 'lr']"),
        ([1, 2], "list"),
        (torch.zeros(3), "Tensor"),
        ({}, "[]"),
        ({"state_dict": {"epoch": 1}}, "['state_dict']"),
        ({"optimizer": {"state": {"a.b": torch.zeros(3)}}}, "['optimizer']"),
    ],
)
def test_read_state_dict_says_what_it_found_when_there_is_no_state_dict(
    tmp_path: Path, content: object, found: str
) -> None:
    torch.save(content, tmp_path / "other.pth")
    assert error_of(tmp_path / "other.pth") == (
        f"{tmp_path}/other.pth: no state dict in it (found {found}); wanted tensors by name, or wrapped in 'state_dict'"
    )


@pytest.mark.parametrize("name", ["net.onnx", "net.pth", "net"])
def test_read_state_dict_says_what_to_do_when_the_file_is_a_whole_model(tmp_path: Path, name: str) -> None:
    onnx.save(exporter.to_onnx(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2)), tmp_path / name)
    assert error_of(tmp_path / name) == (
        f"{tmp_path}/{name}: is a whole model; build it with frontend.type onnx, or give weights alone"
    )


def test_read_state_dict_reads_a_torch_file_when_its_suffix_is_that_of_safetensors(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.arange(6.0).reshape(2, 3)}, tmp_path / "w.safetensors")
    state = checkpoints.read_state_dict(tmp_path / "w.safetensors")
    torch.testing.assert_close(state["a.weight"], torch.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_read_state_dict_reads_the_parts_that_an_index_names(tmp_path: Path, state: State, kind: str) -> None:
    names = sorted(state)
    parts = {f"model-0000{n}-of-00002.{kind}": names[n - 1 :: 2] for n in (1, 2)}
    for file, some in parts.items():
        tensors = {name: state[name].contiguous() for name in some}
        if kind == "bin":
            torch.save(tensors, tmp_path / file)
        else:
            safetensors.torch.save_file(tensors, tmp_path / file)
    index = tmp_path / f"model.{kind}.index.json"
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": {name: file for file, some in parts.items() for name in some}})
    )
    assert_same(checkpoints.read_state_dict(index), state)
    first = tmp_path / f"model-00001-of-00002.{kind}"
    with pytest.raises(DataError, match="is part 1 of 2 of a checkpoint; give its index"):
        checkpoints.read_state_dict(first)
    first.unlink()
    with pytest.raises(DataError, match=f"1 of its 2 parts are missing \\(first: model-00001-of-00002.{kind}\\)"):
        checkpoints.read_state_dict(index)


def test_read_state_dict_takes_each_tensor_from_the_part_that_an_index_names_for_it(
    tmp_path: Path, state: State
) -> None:
    first, *others = sorted(state)
    stale = {name: state[name].contiguous() for name in others} | {first: torch.zeros_like(state[first])}
    safetensors.torch.save_file({first: state[first].contiguous()}, tmp_path / "a.safetensors")
    safetensors.torch.save_file(stale, tmp_path / "b.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    parts = {name: "a.safetensors" if name == first else "b.safetensors" for name in state}
    index.write_text(json.dumps({"weight_map": parts}))
    assert_same(checkpoints.read_state_dict(index), state)
    index.write_text(json.dumps({"weight_map": {**parts, others[0]: "a.safetensors"}}))
    with pytest.raises(DataError, match=f"a.safetensors: lacks 1 of the 2 tensors that model.* it holds .*{others[0]}"):
        checkpoints.read_state_dict(index)


def test_read_state_dict_says_so_when_the_file_was_unpacked(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as archive:
        archive.extractall(tmp_path / "unpacked")
    (folder,) = (tmp_path / "unpacked").iterdir()
    for path in (folder, folder / "data.pkl"):
        with pytest.raises(DataError, match="a checkpoint that was unpacked; give the file that it was before"):
            checkpoints.read_state_dict(path)


def test_read_state_dict_says_where_a_broken_link_leads(tmp_path: Path) -> None:
    (tmp_path / "w.pth").symlink_to("blobs/1234")
    with pytest.raises(DataError, match=r"w\.pth: is a link to blobs/1234, which is not there; give the file"):
        checkpoints.read_state_dict(tmp_path / "w.pth")


def test_read_state_dict_says_what_a_folder_of_tensorflow_is(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(DataError, match="is a TensorFlow model; export it to ONNX"):
        checkpoints.read_state_dict(tmp_path)
