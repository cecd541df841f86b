"""This machine's latency beside the documents' table of the package's network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError
from pipeline.host import hardware
from pipeline.measure.bench import run_performance
from pipeline.measure.bench_options import BenchOptions
from pipeline.measure.load import choose_load
from pipeline.models import zoo
from pipeline.models.published import BATCHES, Latencies, published_of
from pipeline.packages.choice import runtime_for
from pipeline.packages.origin import Origin, origin_of
from pipeline.packages.package import Package
from pipeline.run.plan import Limit
from pipeline.runtimes.base import Runtime


@dataclass(frozen=True)
class DocumentedLatency:
    """Mean latency of a request in ms, at `BATCHES` images per request with one request in flight."""

    package: Package
    network: str
    documented_px: int  # height and width of the documents' measurements
    runtime: Runtime
    here: Latencies
    documents: dict[str, Latencies]  # by GPU and precision

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, as `bench --documents --json` writes it."""
        return {
            "package": str(self.package.prefix),
            "network": self.network,
            "machine": hardware.describe(),
            "runtime": self.runtime.value,
            "latency_ms": {"batches": BATCHES, "here": self.here, **self.documents},
        }

    def lines(self) -> Iterator[str]:
        """Yield the table."""
        yield f"{f'{self.network}, ms per request':34} " + " ".join(f"{f'batch {batch}':>9}" for batch in BATCHES)
        for name, row in {f"here, {self.package.precision}": self.here, **self.documents}.items():
            yield f"{name:34} " + " ".join(f"{ms:9.3f}" for ms in row)
        machine = f"{hardware.cpu_name()}, {hardware.available_cores()} cores"
        yield f"here: {self.runtime.value} on {machine}, one request in flight, mean; GPUs: documents, TensorRT"
        side = self.package.input_chw[1]
        if side != self.documented_px:
            yield f"note: this package is of {side} px, the documents' latencies are of {self.documented_px} px"


def rows_of(package: Package) -> tuple[str, dict[str, Latencies]]:
    """Return the package's network and the documents' latencies of it.

    Raises:
        ConfigError: the documents give none.
    """
    origin = origin_of(package.folder)
    rows = {} if origin is None else published_of(origin.library, origin.network or "").latencies()
    if origin is None or origin.network is None or not rows:
        raise ConfigError(
            "--documents: the documents give latencies of PaddleClas's networks only (`models --latency`), and "
            f"{package.prefix} is {_describe(origin)}; leave --documents out"
        )
    return origin.network, rows


def _describe(origin: Origin | None) -> str:
    if origin is None:
        return "of an unknown network"
    return f"of {origin.library} {origin.network}" if origin.network else f"built from {origin.checkpoint}"


def measure(package: Package, runtime: str | None, limit: Limit) -> DocumentedLatency:
    """Measure the package at each batch size of the documents.

    Args:
        runtime: auto, openvino or onnxruntime; None: auto.
        limit: of each of the three runs.

    Raises:
        ConfigError: the documents give no latency of its network; before anything is measured.
        PipelineError: the runtime fails.
    """
    network, rows = rows_of(package)
    chosen = runtime_for(package, Runtime(runtime or "auto"))
    found = []
    for batch in BATCHES:
        load, _ = choose_load(package, BenchOptions(batch=batch, instances=1, runtime=chosen))
        found.append(run_performance(package, load, package.preprocess(), limit).latency_ms["mean"])
    here = (found[0], found[1], found[2])
    size = zoo.find_model("paddleclas", network).size
    return DocumentedLatency(package, network, size, chosen, here, rows)
