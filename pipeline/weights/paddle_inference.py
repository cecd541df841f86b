"""PaddlePaddle inference models, converted to ONNX by paddle2onnx: `ResNet50_infer.tar`, its folder, or the program.

A model is two files: the program, `inference.pdmodel` (protobuf) or since Paddle 3 `inference.json`, and the parameters
beside it, `inference.pdiparams`. Paddle is large, and a broken file may end its process: it runs in one of its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import ConfigError, DataError, in_a_line
from pipeline.host import isolated
from pipeline.host.extras import install_command

_PROGRAMS = (".json", ".pdmodel")  # the newer one first, where a folder holds both
_PARAMETERS = ".pdiparams"
_MOST_BYTES = 8 << 30  # of a file in a tar
_MOST_MEMBERS = 1000
_OPSET = 13  # the lowest with per-channel DequantizeLinear
_SECONDS = 900.0
_JSON_MARK = b'"magic":"pir"'  # within the first bytes of a program in JSON
_HEAD = 512


@dataclass(frozen=True)
class InferenceModel:
    """The two files of a model."""

    program: Path
    parameters: Path


def is_inference_model(path: Path) -> bool:
    """Tell whether a path is such a model: by the names in a folder or tar, by the content of a program."""
    if path.is_dir():
        return _in_folder(path) is not None
    if path.suffix == ".tar" and tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            return _members(archive) is not None
    if path.suffix == ".json":
        with path.open("rb") as stream:
            return _JSON_MARK in stream.read(_HEAD).replace(b" ", b"")
    return path.suffix == ".pdmodel" and path.is_file()


def check(path: Path) -> None:
    """Find what would stop a conversion, before any work.

    Raises:
        ConfigError: there is no such model, its parameters are missing, or paddle2onnx is not installed.
    """
    if path.is_file() and path.suffix == ".tar" and tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            if _members(archive) is None:
                raise ConfigError(f"{path}: no {_WANTED} in this tar")
    elif path.exists():
        files_of(path)
    else:
        raise ConfigError(f"{path}: no such file or folder")
    missing = [name for name in ("paddle2onnx", "paddle") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{path}: is a PaddlePaddle inference model; converting it needs {' and '.join(missing)}; run: "
            f"{install_command('paddle')} (or convert it elsewhere with paddle2onnx and give the .onnx file)"
        )


_WANTED = "inference.pdmodel or inference.json with inference.pdiparams"


def files_of(path: Path) -> InferenceModel:
    """Return the files of a model that is given as a folder or as its program.

    Raises:
        ConfigError: it is neither, or its parameters are missing.
    """
    if path.is_dir():
        found = _in_folder(path)
        if found is None:
            raise ConfigError(f"{path}: no {_WANTED} in this folder")
        return found
    parameters = path.with_suffix(_PARAMETERS)
    if path.suffix not in _PROGRAMS or not path.is_file():
        raise ConfigError(f"{path}: expected a folder, a .tar, or {_WANTED}")
    if not parameters.is_file():
        raise ConfigError(f"{path}: its parameters, {parameters.name}, are not beside it")
    return InferenceModel(path, parameters)


def _in_folder(folder: Path) -> InferenceModel | None:
    programs = [
        program
        for suffix in _PROGRAMS
        for program in sorted(folder.glob(f"*{suffix}"))
        if program.with_suffix(_PARAMETERS).is_file()
    ]
    return InferenceModel(programs[0], programs[0].with_suffix(_PARAMETERS)) if programs else None


def _members(archive: tarfile.TarFile) -> tuple[tarfile.TarInfo, tarfile.TarInfo] | None:
    """Return the program and the parameters in a tar."""
    files = {}
    for number, member in enumerate(archive):
        if number == _MOST_MEMBERS:
            break
        if member.isfile():
            files[PurePosixPath(member.name)] = member
    for suffix in _PROGRAMS:
        for name, member in sorted(files.items()):
            if name.suffix == suffix and name.with_suffix(_PARAMETERS) in files:
                return member, files[name.with_suffix(_PARAMETERS)]
    return None


@contextlib.contextmanager
def unpack(path: Path) -> Iterator[InferenceModel]:
    """Yield the files of a model; those of a tar lie in a temporary folder until the end of the `with`.

    Raises:
        ConfigError: as `files_of`.
        DataError: the tar is damaged, or a file in it is larger than 8 GiB.
    """
    if path.is_dir() or path.suffix != ".tar":
        yield files_of(path)
        return
    with tempfile.TemporaryDirectory(prefix="paddle-") as folder:
        try:
            with tarfile.open(path) as archive:
                members = _members(archive)
                if members is None:
                    raise ConfigError(f"{path}: no {_WANTED} in this tar")
                files = [_unpack(archive, member, Path(folder)) for member in members]
        except (tarfile.TarError, EOFError, OSError) as err:
            raise DataError(f"{path}: cannot be unpacked ({in_a_line(err)}); download it again") from err
        yield InferenceModel(*files)


def _unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> Path:
    """Write one file under its last name alone: no path of the archive leads anywhere."""
    if member.size > _MOST_BYTES:
        raise DataError(f"{archive.name!s}: {member.name} has {member.size} bytes, more than {_MOST_BYTES}")
    target = folder / PurePosixPath(member.name).name
    source = archive.extractfile(member)
    assert source is not None, "a regular file"
    with source, target.open("wb") as stream:
        shutil.copyfileobj(source, stream)
    return target


def to_onnx(path: Path, out: Path) -> None:
    """Convert a model.

    Args:
        path: folder, tar or program.
        out: the ONNX file to write.

    Raises:
        ConfigError: as `check`.
        DataError: paddle2onnx cannot convert it; its reason is given.
    """
    check(path)
    with unpack(path) as model, tempfile.TemporaryDirectory(prefix="paddle-") as folder:
        written = Path(folder) / "model.onnx"
        advice, files = ", as it does on damaged files; download it again", (str(model.program), str(model.parameters))
        isolated.call_on_file(path, "paddle2onnx", advice, _convert, *files, str(written), seconds=_SECONDS)
        if not written.is_file():
            raise DataError(f"{path}: paddle2onnx wrote no model; convert it by hand and give the .onnx file")
        shutil.copyfile(written, out)


def _convert(program: str, parameters: str, out: str) -> None:
    """Write the ONNX file; in a process of its own.

    Raises:
        DataError: what paddle2onnx printed of a failure: it raises an error of its own that does not say why.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        import paddle2onnx

        try:
            # Without its optimizers: one wants a package that it installs at run time, over the network.
            paddle2onnx.export(program, parameters, out, opset_version=_OPSET, optimize_tool="none")
        except Exception as err:
            reason = re.search(r"Failed to convert PaddlePaddle model: (.*)", printed.getvalue())
            text = reason[1].strip()[:300] if reason else in_a_line(err)
            raise DataError(f"paddle2onnx cannot convert it ({text})") from err
