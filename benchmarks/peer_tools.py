"""Tools that `accuracy.py` runs in environments of their own; `peers/` has their scripts, and says how to make them."""

from __future__ import annotations

import json
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from quantizers import EITHER, Float32, Made, Task

from pipeline.errors import BackendError, ConfigError
from pipeline.runtimes.base import Runtime

SCRIPTS = Path(__file__).resolve().parent / "peers"
Interpreters = Mapping[str, str]  # tool: the Python of its environment


@dataclass(frozen=True)
class Peer:
    """A row of the table: a tool, and what it is told to do."""

    tool: str
    recipe: str
    runtime: str = ""  # its own, which alone runs its models; "": they are ONNX

    @property
    def script(self) -> Path:
        return SCRIPTS / f"by_{self.tool}.py"

    @property
    def runtimes(self) -> tuple[Runtime, ...]:
        return () if self.runtime else EITHER


PEERS = {
    "quark-minmax": Peer("quark", "minmax"),
    "quark-cle": Peer("quark", "cle"),
    "quark-adaround": Peer("quark", "adaround"),
    "quark-adaquant": Peer("quark", "adaquant"),
    "aimet-minmax": Peer("aimet", "minmax"),
    "aimet-cle": Peer("aimet", "cle"),
    "aimet-seqmse": Peer("aimet", "seqmse"),
    "aimet-adaround": Peer("aimet", "adaround"),
    "torchao": Peer("torchao", "int8", "inductor"),
    "torchao-reduce-range": Peer("torchao", "reduce-range", "inductor"),
    "litert": Peer("litert", "int8", "litert"),
}


def read_interpreters(given: Sequence[str]) -> dict[str, str]:
    """Return the interpreters of `--peer TOOL=PYTHON`.

    Raises:
        ConfigError: an unknown tool, or no such file.
    """
    tools = sorted({peer.tool for peer in PEERS.values()})
    found = {}
    for each in given:
        tool, _, python = each.partition("=")
        if tool not in tools:
            raise ConfigError(f"--peer {each}: expected TOOL=PYTHON with one of the tools {', '.join(tools)}")
        if not Path(python).is_file():
            raise ConfigError(f"--peer {each}: {python or 'the interpreter'} is not a file")
        found[tool] = python
    return found


def rows_of(interpreters: Interpreters) -> list[str]:
    return [name for name, peer in PEERS.items() if peer.tool in interpreters]


def make_by_peer(name: str, task: Task, interpreters: Interpreters, options: str) -> Made:
    """Make a row's model by its script, from the same float32 model and images as every other row."""
    peer = PEERS[name]
    with tempfile.TemporaryDirectory() as folder:
        logits, images = Path(folder) / "float32.onnx", Path(folder) / "images.npy"
        save_logits(task.float32, logits)
        save_images(task, images)
        command = [interpreters[peer.tool], str(peer.script), "make", "--recipe", peer.recipe, "--out", str(task.out)]
        command += ["--onnx", str(logits), "--images", str(images)]
        call(name, [*command, *shlex.split(options)])
    made: dict[str, str | int] = json.loads((task.out / "made.json").read_text(encoding="utf-8"))
    return Made(str(made["model"]), int(made["images"]), str(made["settings"]))


def answer_by_peer(
    name: str, model: Path, images: npt.NDArray[np.generic], interpreters: Interpreters
) -> tuple[Float32, float]:
    """Return the logits [images, classes] and the images a second of a tool's own runtime."""
    peer = PEERS[name]
    with tempfile.TemporaryDirectory() as folder:
        given, answers = Path(folder) / "images.npy", Path(folder) / "answers.npz"
        np.save(given, images)
        command = [interpreters[peer.tool], str(peer.script), "answer", "--model", str(model), "--images", str(given)]
        call(name, [*command, "--out", str(answers)])
        with np.load(answers) as found:
            return found["logits"].astype(np.float32), float(found["images_per_s"])


def call(name: str, command: Sequence[str]) -> None:
    code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    if code:
        raise BackendError(f"row {name}: its process ended with {code}; why stands above")


def save_logits(float32: Path, path: Path) -> None:
    """Write the model without a softmax at its end: tools that quantize every operator would quantize that too."""
    model = onnx.load(float32)
    last, answer = model.graph.node[-1], model.graph.output[0]
    if last.op_type == "Softmax" and last.output[0] == answer.name:
        answer.name = last.input[0]
        model.graph.node.remove(last)
    onnx.save(model, path)


def save_images(task: Task, path: Path) -> None:
    samples, load = task.calibration(task.images), task.loader()
    shape = (len(samples), *task.package.input_chw)
    images = np.lib.format.open_memmap(path, mode="w+", dtype="float32", shape=shape)
    for index, sample in enumerate(samples):
        images[index] = load(sample)[0]
    images.flush()
