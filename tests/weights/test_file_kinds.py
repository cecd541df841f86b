from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from torch import nn

from pipeline.models import exporter
from pipeline.weights.file_kinds import FileKind, kind_of, why_not_weights

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 46830571\n"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()


def torch_file(old: bool = False, protocol: int = 2) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        torch.save(network().state_dict(), path, pickle_protocol=protocol, _use_new_zipfile_serialization=not old)

    return write


def pickle_file(protocol: int) -> Callable[[Path], None]:
    return lambda path: void(path.write_bytes(pickle.dumps({"a": np.ones(3)}, protocol)))


def content(data: bytes | str) -> Callable[[Path], None]:
    return lambda path: void(path.write_bytes(data.encode() if isinstance(data, str) else data))


def void(_: object) -> None:
    pass


def script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(network(), torch.zeros(1, 3, 2, 2)).save(str(path))  # type: ignore[no-untyped-call]


def program(path: Path) -> None:
    with warnings.catch_warnings(), path.open("wb") as stream:
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(network(), (torch.zeros(1, 3, 2, 2),)), stream)


def onnx_file(path: Path) -> None:
    onnx.save(exporter.to_onnx(network(), (3, 2, 2)), path)


def onnx_of_another_order(path: Path) -> None:
    """Protobuf leaves the order of fields open: here the graph comes first."""
    model = exporter.to_onnx(network(), (3, 2, 2))
    graph = onnx.ModelProto(graph=model.graph).SerializeToString()
    model.ClearField("graph")
    path.write_bytes(graph + model.SerializeToString())


def archive_of_others(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("weights.pth", "readme.txt", "more.txt"):
            archive.writestr(name, "x")


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"), io.BytesIO())


def keras(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            archive.writestr(name, "x")


def array(path: Path) -> None:
    with path.open("wb") as stream:  # given a path, numpy adds a suffix
        np.save(stream, np.ones(3))


def arrays(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, a=np.ones(3))


def compiled(path: Path) -> None:
    """Members as torch's aoti_compile_and_package writes them."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data/aotinductor/model/c1.wrapper.so", "archive_format", "archive_version", "byteorder"):
            archive.writestr(f"aoti/{name}", "pt2")


def package(path: Path) -> None:
    """Members as torch.package writes them."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("model/model.pkl", ".data/0.storage", ".data/extern_modules", ".data/version", "byteorder"):
            archive.writestr(f"package/{name}", "x")


FILES: list[tuple[Callable[[Path], None], FileKind]] = [
    (torch_file(), FileKind.TORCH),
    (torch_file(protocol=4), FileKind.TORCH),
    (torch_file(old=True), FileKind.TORCH_OLD),
    (torch_file(old=True, protocol=4), FileKind.TORCH_OLD),
    *((pickle_file(protocol), FileKind.PICKLE) for protocol in range(6)),
    (lambda path: safetensors.torch.save_file(network().state_dict(), path), FileKind.SAFETENSORS),
    (onnx_file, FileKind.ONNX),
    (onnx_of_another_order, FileKind.ONNX),
    (script, FileKind.TORCHSCRIPT),
    (program, FileKind.PROGRAM),
    (content(LFS), FileKind.LFS),
    (content("/annex/objects/SHA256E-s4--ab.pth\n"), FileKind.ANNEX),
    (content("\n  <!DOCTYPE html>\n<html>"), FileKind.HTML),
    (content("<HTML>"), FileKind.HTML),
    (content(""), FileKind.EMPTY),
    (content("Entry not found"), FileKind.TEXT),
    (content('{"metadata": {}, "weight_map": {}}'), FileKind.INDEX),
    (content('{"error": "gated"}'), FileKind.TEXT),
    (content('<?xml version="1.0"?>\n<net name="x" version="11">\n</net>'), FileKind.OPENVINO),
    (content('<?xml version="1.0"?><Error/>'), FileKind.TEXT),
    (content(b"\x20\0\0\0ORTM" + bytes(60)), FileKind.ORT),
    (array, FileKind.NUMPY),
    (arrays, FileKind.NUMPY),
    (keras, FileKind.KERAS),
    (compiled, FileKind.COMPILED),
    (package, FileKind.PACKAGE),
    (content(b"\x08\x01\x12\x05abcde"), FileKind.TENSORFLOW),
    (content(b"\n\x1f\n\x05input\x12\x0bPlaceholder*\t\n\x05dtype\x12\x020\x01"), FileKind.TENSORFLOW),
    (content("ä" * 600), FileKind.TEXT),
    (content(gzip.compress(b"x")), FileKind.COMPRESSED),
    (tar, FileKind.TAR),
    (archive_of_others, FileKind.ZIP),
    (content(b"\x89HDF\r\n\x1a\n" + bytes(60)), FileKind.HDF5),
    (content(b"\x1c\0\0\0TFL3" + bytes(60)), FileKind.TFLITE),
    (content(bytes(200)), FileKind.UNKNOWN),
    (content(b"\x08\x07\x12\x7f"), FileKind.UNKNOWN),
]


@pytest.mark.parametrize(("write", "kind"), FILES)
def test_kind_of_goes_by_the_content(tmp_path: Path, write: Callable[[Path], None], kind: FileKind) -> None:
    path = tmp_path / "file"
    write(path)
    assert kind_of(path) is kind


@pytest.mark.parametrize("kind", [kind for kind in FileKind if not kind.is_weights])
def test_why_not_weights_is_a_line_for_every_kind(tmp_path: Path, kind: FileKind) -> None:
    write = next(write for write, each in FILES if each is kind)
    write(tmp_path / "file")
    line = why_not_weights(tmp_path / "file", kind)
    assert line.startswith("is ")
    assert "\n" not in line
    assert "weights_only" not in line


@pytest.mark.parametrize(
    ("name", "tool"),
    [("n.engine", "an engine of TensorRT"), ("N.MLMODEL", "a Core ML model"), ("n.param", "an ncnn model")],
)
def test_why_not_weights_names_the_tool_of_a_suffix(tmp_path: Path, name: str, tool: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"7767517\n3 3\n" if name.endswith(".param") else b"\0" * 64)
    assert why_not_weights(path, kind_of(path)) == (
        f"is {tool}; give the ONNX file or the checkpoint that it was made of"
    )


def test_why_not_weights_names_what_is_inside(tmp_path: Path) -> None:
    archive_of_others(tmp_path / "a")
    assert why_not_weights(tmp_path / "a", FileKind.ZIP).startswith(
        "is a zip archive of weights.pth, readme.txt, ...; unpack it"
    )
    (tmp_path / "b").write_text("Entry not found")
    assert why_not_weights(tmp_path / "b", FileKind.TEXT).startswith(
        "is a text file that begins with 'Entry not found';"
    )
    (tmp_path / "c").write_bytes(gzip.compress(b"x"))
    assert why_not_weights(tmp_path / "c", FileKind.COMPRESSED).startswith("is compressed by gzip;")


def test_advice_for_programs_gives_their_weights(tmp_path: Path) -> None:
    script(tmp_path / "script.pt")
    program(tmp_path / "program.pt2")
    wanted = network().state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = (
            torch.jit.load(tmp_path / "script.pt").state_dict(),  # type: ignore[no-untyped-call]
            torch.export.load(tmp_path / "program.pt2").state_dict,
        )
    for state in found:
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[name], wanted[name]) for name in wanted)
