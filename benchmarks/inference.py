"""The int8 package beside what a user would run instead, on the same files, in turn.

    pip install '.[benchmarks]'
    python benchmarks/inference.py -m deploy_weights/FOLDER/NAME --loads 22x8,8x4,1x1

For each load (images per request x requests in flight): this pipeline in either runtime; OpenVINO's benchmark_app on
the same int8 file, in the best of several configurations; ONNX Runtime as it comes, on the same int8 file; and the
build's float32 model here, in benchmark_app, in ONNX Runtime and in torch as they come. First, what int8 convolutions
reach here at best, in multiply-accumulates a second, and then which share of it each int8 row has.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import exit_code

from pipeline.errors import BackendError, ConfigError
from pipeline.host import hardware
from pipeline.measure import bench
from pipeline.packages.package import BUILD_FILE, Package, open_package
from pipeline.quant import placement, qdq
from pipeline.quant.graphs import work_of_layers
from pipeline.quant.qmath import Range
from pipeline.run.performance import Recorder
from pipeline.run.plan import Limit, Plan
from pipeline.run.runner import measure
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import open_backend, place
from pipeline.terminal.progress import progress_bar

OURS, PEER, _ONE_STREAM = "ours, openvino", "benchmark_app", "1 stream"
_PEAK_BATCH, _PEAK_CHANNELS, _PEAK_SIDE, _PEAK_LAYERS = 8, 256, 28, 8

Measure = Callable[[], float]  # images/s of one turn


@dataclass(frozen=True)
class Load:
    """Images a request, requests in flight."""

    batch: int
    instances: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.instances}"


@dataclass(frozen=True)
class Row:
    """One way to run the model under one load."""

    load: Load
    name: str
    rates: tuple[float, ...]  # images/s, turn by turn
    ratios: tuple[float, ...]  # over benchmark_app's best in the same turn
    peak_percent: float | None  # of what int8 convolutions reach at best; None for float32

    def __str__(self) -> str:
        spread = f"{min(self.ratios):.2f} to {max(self.ratios):.2f}"
        peak = "     " if self.peak_percent is None else f"{self.peak_percent:4.0f}%"
        figures = f"{median(self.rates):8.1f}  {median(self.ratios):5.2f}  ({spread})  {peak}"
        return f"{self.load!s:>7}  {figures}  {self.name}"


def ours(package: Package, load: Load, runtime: Runtime, model: Path, seconds: float) -> float:
    """Return the throughput that `bench` reports."""
    spec, _ = bench.resolve_preprocess(package, None)
    plan = Plan(model=model, runtime=runtime, spec=spec, batch=load.batch, instances=load.instances)
    recorder = Recorder()
    begun = measure(plan, Limit(duration_s=seconds), recorder)
    return recorder.summarize(begun, steady=True).throughput


def benchmark_app(model: Path, load: Load, flags: Sequence[str], seconds: float) -> float:
    """Return the throughput that OpenVINO's tool prints.

    Raises:
        BackendError: it failed; its last line says why.
    """
    tool = Path(sys.executable).with_name("benchmark_app")
    # Full seconds only. float32: parts in float, as here; else it takes bfloat16 where the CPU has it.
    common = ["-m", str(model), "-d", "CPU", "-t", str(max(1, round(seconds))), "-infer_precision", "f32"]
    shape = ["-shape", f"[{load.batch},{','.join(map(str, input_chw(model)))}]"]
    done = subprocess.run([str(tool), *common, *shape, *flags], capture_output=True, text=True)
    found = re.search(r"Throughput:\s+([0-9.]+) FPS", done.stdout)
    if done.returncode or found is None:
        last = (done.stdout + done.stderr).strip().rpartition("\n")[2]
        raise BackendError(f"{tool.name} {' '.join(flags)}: {last}")
    return float(found[1])


def input_chw(model: Path) -> list[int]:
    import onnx

    graph = onnx.load(model, load_external_data=False).graph
    return [axis.dim_value for axis in graph.input[0].type.tensor_type.shape.dim][1:]


def app_configurations(load: Load) -> dict[str, list[str]]:
    """Return the ways to run benchmark_app, its default first."""
    cores = hardware.available_cores()
    requests = ["-nireq", str(load.instances)]
    in_flight = f"{max(cores, load.instances)} requests"
    explicit = ["-hint", "none", "-nthreads", str(cores)]
    return {
        "default": [],
        "default, same requests": requests,
        f"{cores} streams, {in_flight}": [*explicit, "-nstreams", str(cores), "-nireq", in_flight.split()[0]],
        f"{cores} streams, pinned, {in_flight}": [
            *(*explicit, "-nstreams", str(cores), "-pin", "YES"),
            *("-nireq", in_flight.split()[0]),
        ],
        _ONE_STREAM: [*explicit, "-nstreams", "1", *requests],
    }


def best_configuration(model: Path, load: Load, seconds: float) -> tuple[str, list[str]]:
    """Try all of them once, and return the fastest."""
    rates = {}
    for name, flags in app_configurations(load).items():
        rates[name] = benchmark_app(model, load, flags, seconds)
        print(f"{load!s:>7}  {rates[name]:8.1f}  benchmark_app {name}", file=sys.stderr)
    best = max(rates, key=lambda name: rates[name])
    return best, app_configurations(load)[best]


def stock_onnxruntime(model: Path, load: Load, seconds: float) -> Measure:
    """Return a measure of ONNX Runtime as it comes: one session with its defaults, called from as many threads."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    dtype = np.uint8 if given.type == "tensor(uint8)" else np.float32
    feed = {given.name: np.zeros((load.batch, *given.shape[1:]), dtype)}
    callers = max(1, min(load.instances, hardware.available_cores()))

    def one_turn() -> float:
        return load.batch * calls_a_second(lambda: session.run(None, feed), callers, seconds)

    session.run(None, feed)
    return one_turn


def torch_eager(package: Package, load: Load, seconds: float) -> Measure | None:
    """Return a measure of the network in torch as it comes, float32; None where its build file names none of ours."""
    frontend = json.loads((package.folder / BUILD_FILE).read_text("utf-8"))["frontend"]
    import torch

    from pipeline.models import zoo

    if frontend["type"] not in {model.library for model in zoo.MODELS}:
        return None
    network = zoo.build_network(zoo.find_model(frontend["type"], frontend["model"]), len(package.classes())).eval()
    images = torch.zeros((load.batch, *package.input_chw))

    def call() -> None:
        with torch.inference_mode():
            network(images)

    call()
    return lambda: load.batch * calls_a_second(call, 1, seconds)


def calls_a_second(call: Callable[[], object], callers: int, seconds: float) -> float:
    """Return how often a function returns when some threads call it all the time."""
    counted = [0] * callers
    stop = threading.Event()

    def keep_calling(number: int) -> None:
        while not stop.is_set():
            call()
            counted[number] += 1

    begun = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        calls = [pool.submit(keep_calling, number) for number in range(callers)]
        stop.wait(seconds)
        stop.set()
    for each in calls:
        each.result()
    return sum(counted) / (time.perf_counter() - begun)


def int8_peak(seconds: float) -> float:
    """Return the multiply-accumulates a second of the faster of two chains of int8 convolutions that suit kernels."""
    cores, best = hardware.available_cores(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        for kernel in (1, 3):
            model = Path(folder) / f"{kernel}.onnx"
            macs = write_chain(model, kernel)
            with open_backend(Runtime.OPENVINO, model, batch=_PEAK_BATCH, placement=place(cores, cores)) as backend:
                images = np.zeros((_PEAK_BATCH, _PEAK_CHANNELS, _PEAK_SIDE, _PEAK_SIDE), np.float32)
                calls = calls_a_second(partial(backend.infer, images), cores, seconds)
            best = max(best, calls * _PEAK_BATCH * macs)
    return best


def write_chain(path: Path, kernel: int) -> int:
    """Write an int8 model of equal convolutions, one after the other; return its multiply-accumulates of one image."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random, nodes, weights = np.random.default_rng(0), [], []
    shape = (_PEAK_CHANNELS, _PEAK_CHANNELS, kernel, kernel)
    for number in range(_PEAK_LAYERS):
        scaled = random.normal(0, shape[1] ** -0.5 / kernel, shape).astype(np.float32)
        weights.append(numpy_helper.from_array(scaled, f"w{number}"))
        inputs = [f"x{number}", f"w{number}"]
        nodes.append(helper.make_node("Conv", inputs, [f"c{number}"], f"conv{number}", pads=[kernel // 2] * 4))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"x{number + 1}"], f"relu{number}"))
    last = f"x{_PEAK_LAYERS}"
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["out"], "flatten"),
    ]
    given = helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["N", _PEAK_CHANNELS, _PEAK_SIDE, _PEAK_SIDE])
    made = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", _PEAK_CHANNELS])
    graph = helper.make_graph(nodes, "chain", [given], [made], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ranges = {name: Range(0.0, 4.0) for name in placement.observed_tensors(model)}
    onnx.save(qdq.insert_qdq(model, ranges, per_channel=True), path)
    return _PEAK_LAYERS * int(np.prod(shape)) * _PEAK_SIDE**2


def compare(package: Package, load: Load, turns: int, seconds: float, peak: float) -> list[Row]:
    """Measure everything under one load, turn by turn; `peak` is in multiply-accumulates a second."""
    import onnx

    float32, quantized_from = package.workspace_file("float32_model"), package.workspace_file("quantized_from")
    name, flags = best_configuration(package.model, load, seconds)
    peer = f"{PEER}, int8, {name}"
    measures: dict[str, Measure] = {peer: partial(benchmark_app, package.model, load, flags, seconds)}
    if load.instances < hardware.available_cores() and name != _ONE_STREAM:
        # The best keeps more requests in flight than the load says; this is what it makes of the load itself.
        one_stream = app_configurations(load)[_ONE_STREAM]
        measures[f"{PEER}, int8, {_ONE_STREAM}, same requests"] = partial(
            benchmark_app, package.model, load, one_stream, seconds
        )
    measures |= {
        OURS: partial(ours, package, load, Runtime.OPENVINO, package.model, seconds),
        "ours, onnxruntime": partial(ours, package, load, Runtime.ONNXRUNTIME, package.model, seconds),
        "onnxruntime as it comes, int8": stock_onnxruntime(package.model, load, seconds),
    }
    if float32 is not None:
        measures |= {
            f"{PEER}, float32, {name}": partial(benchmark_app, float32, load, flags, seconds),
            "ours, openvino, float32": partial(ours, package, load, Runtime.OPENVINO, float32, seconds),
            "onnxruntime as it comes, float32": stock_onnxruntime(float32, load, seconds),
        }
    if (in_torch := torch_eager(package, load, seconds)) is not None:
        measures["torch as it comes, float32"] = in_torch
    rates: dict[str, list[float]] = {each: [] for each in measures}
    with progress_bar(turns * len(measures), f"load {load}", "turn") as progress:
        for _ in range(turns):
            for each, one_turn in measures.items():
                rates[each].append(one_turn())
                progress.update()
    macs = sum(work_of_layers(onnx.load(quantized_from)).values()) if quantized_from else 0
    return [
        Row(
            load,
            each,
            tuple(found),
            tuple(rate / other for rate, other in zip(found, rates[peer], strict=True)),
            100 * median(found) * macs / peak if macs and "float32" not in each else None,
        )
        for each, found in rates.items()
    ]


def read_loads(text: str) -> list[Load]:
    found = re.fullmatch(r"\d+x\d+(,\d+x\d+)*", text)
    loads = [Load(*map(int, each.split("x"))) for each in text.split(",")] if found else []
    if not loads or any(not 1 <= value <= 1024 for load in loads for value in (load.batch, load.instances)):
        raise argparse.ArgumentTypeError(f"expected IMAGESxREQUESTS,... such as 22x8,1x1, got {text!r}")
    return loads


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "-m", "--model", type=Path, metavar="PREFIX", help="package as folder/name (the last one built)"
    )
    parser.add_argument("--loads", type=read_loads, default="22x8,8x4,8x1,1x4,1x1", help="(%(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="(%(default)s)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=5.0,
        help="of a turn at least; slow models take four requests per stream (%(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file")
    return parser


def run(args: argparse.Namespace) -> None:
    if args.turns < 1 or args.seconds <= 0:
        raise ConfigError("--turns, --seconds: must be greater than 0")
    if args.json is not None and not args.json.absolute().parent.is_dir():
        raise ConfigError(f"--json {args.json}: its folder does not exist")
    package = open_package(args.model)
    versions = {name: version(name) for name in ("openvino", "onnxruntime")}
    sets = ", ".join(hardware.instruction_sets())
    print(
        f"{package.name}, {package.precision}; {versions}; {hardware.cpu_name()}, "
        f"{hardware.available_cores()} cores, {sets}; medians of {args.turns} turns of {args.seconds:g} s"
    )
    peak = int8_peak(args.seconds)
    print(f"int8 convolutions at best: {peak / 1e12:.2f} * 10^12 multiply-accumulates a second")
    print("   load  images/s      x  (of turns)     peak  what; x: over benchmark_app's best, in the same turn")
    rows = []
    for load in args.loads:
        found = compare(package, load, args.turns, args.seconds, peak)
        print("\n".join(map(str, found)), flush=True)
        rows += found
    if args.json is not None:
        outcome: dict[str, Any] = {"network": package.name, "versions": versions, "machine": hardware.describe()}
        args.json.write_text(json.dumps({**outcome, "rows": [asdict(row) for row in rows]}, indent=1) + "\n", "utf-8")


def main(argv: Sequence[str]) -> int:
    args = make_parser().parse_args(argv)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
