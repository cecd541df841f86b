"""Opens a package to serve it, and closes it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pipeline.host.hardware import available_cores
from pipeline.packages.choice import runtime_for
from pipeline.packages.package import Package
from pipeline.runtimes.base import Backend, Placement, Runtime
from pipeline.runtimes.opening import open_backend, place
from pipeline.serve.batching import Batcher
from pipeline.serve.metrics import Meter
from pipeline.serve.model import PackageModel, Setup


@dataclass(frozen=True)
class Wanted:
    """How a package is to be opened."""

    runtime: Runtime
    batch: int  # largest number of images computed at once
    instances: int  # batches computed at the same time
    max_queue: int  # images that wait


@dataclass(frozen=True)
class Loaded:
    """A loaded package, and what to close when it is unloaded."""

    model: PackageModel
    opened: ExitStack
    described: str  # the runtime and its settings

    def close(self) -> None:
        """Drop waiting images, return when no computation is under way, and free the memory."""
        self.opened.close()


def load(package: Package, version: str, wanted: Wanted) -> Loaded:
    """Open a package.

    Raises:
        BackendError: the runtime refuses the model.
    """
    placement = place(wanted.instances, available_cores())
    with ExitStack() as opened:
        full, single = opened.enter_context(_open(package, wanted, placement))
        meter = Meter(package.name)
        batcher = Batcher(full, single, wanted.batch, wanted.max_queue, meter)
        opened.callback(batcher.close)
        setup = Setup(full.name, wanted.batch, placement.streams)
        model = PackageModel(package, version, batcher, full.input, full.output, available_cores(), setup, meter)
        opened.callback(model.close)
        described = (
            f"{full.name} {full.version}: batches of up to {wanted.batch}, {placement.streams} at a time on "
            f"{placement.threads} cores"
        )
        return Loaded(model, opened.pop_all(), described)
    raise AssertionError  # mypy: ExitStack may swallow what was raised


def resident_mib() -> int:
    """Return the memory of this process, in MiB; 0 where it is unknown."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * 4096 >> 20


@contextlib.contextmanager
def _open(package: Package, wanted: Wanted, placement: Placement) -> Iterator[tuple[Backend, Backend]]:
    """Yield the model for full batches, and for single images."""
    runtime = runtime_for(package, wanted.runtime)
    wide = package.has_wide_weights
    with ExitStack() as opened:
        full = opened.enter_context(
            open_backend(runtime, package.model, batch=wanted.batch, placement=placement, wide_weights=wide)
        )
        if wanted.batch == 1 or runtime is Runtime.ONNXRUNTIME:  # its sessions take any batch
            yield full, full
        else:
            single = open_backend(runtime, package.model, batch=1, placement=placement, wide_weights=wide)
            yield full, opened.enter_context(single)
