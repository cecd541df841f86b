"""Opens a package to serve it, and closes it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.data.quick_jpeg import find_quick_jpegs
from pipeline.errors import ConfigError
from pipeline.host.hardware import available_cores
from pipeline.packages.choice import choose_for
from pipeline.packages.package import Package
from pipeline.run import sweep_record
from pipeline.runtimes.base import Backend, Placement, Runtime
from pipeline.runtimes.opening import open_backend, place
from pipeline.serve.batching import Batcher
from pipeline.serve.delivery import ToLoop
from pipeline.serve.metrics import Meter
from pipeline.serve.model import PackageModel, Setup
from pipeline.serve.settings import Wanted
from pipeline.terminal import console

_BATCH = 8  # where no sweep found a better one


@dataclass(frozen=True)
class Loaded:
    """A loaded package, and what to close when it is unloaded."""

    model: PackageModel
    opened: ExitStack
    described: str  # the runtime and its settings

    def close(self) -> None:
        """Drop waiting images, return when no computation is under way, and free the memory."""
        self.opened.close()


def settle(package: Package, wanted: Wanted) -> Wanted:
    """Return how this process opens a package: as asked for, else as a sweep of it found on this machine.

    Raises:
        ConfigError: more images are computed at once than may wait.
        BackendError: the runtime is not installed.
    """
    found = sweep_record.recall_for(package, wanted.runtime)
    chosen = choose_for(package, Runtime(found.runtime) if found else wanted.runtime)
    for note in chosen.notes:
        console.warning(f"note: {note}")
    if package.uses_sample:
        console.warning("sample weights, sample images: predictions for photos are meaningless")
    batch = wanted.batch or (found.batch if found else _BATCH)
    if wanted.max_queue < batch:
        raise ConfigError(f"--max_queue {wanted.max_queue}: fewer than the {batch} images of a batch; give more")
    instances = wanted.instances or (found.instances if found else available_cores())
    return replace(wanted, runtime=chosen.runtime, batch=batch, instances=wanted.part.share(instances))


def load(package: Package, version: str, wanted: Wanted) -> Loaded:
    """Open a package.

    Raises:
        ConfigError, BackendError: as `settle`; the runtime refuses the model.
    """
    wanted = settle(package, wanted)
    cores = wanted.part.share(available_cores())
    placement = place(wanted.instances, cores)
    with ExitStack() as opened:
        full, single = opened.enter_context(_open(package, wanted, placement))
        meter = Meter(package.name)
        batcher = Batcher(full, single, wanted.batch, wanted.max_queue, meter, ToLoop())
        opened.callback(batcher.close)
        setup = Setup(full.name, wanted.batch, placement.streams)
        quick = find_quick_jpegs()
        model = PackageModel(package, version, batcher, full.input, full.output, cores, setup, meter, quick)
        opened.callback(model.close)
        described = (
            f"{full.name} {full.version}: batches of up to {wanted.batch}, {placement.streams} at a time on "
            f"{placement.threads} cores{', quick JPEGs' if quick is not None else ''}"
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
    runtime, wide = wanted.runtime, package.has_wide_weights
    with ExitStack() as opened:
        full = opened.enter_context(
            open_backend(runtime, package.model, batch=wanted.batch, placement=placement, wide_weights=wide)
        )
        if wanted.batch == 1 or runtime is Runtime.ONNXRUNTIME:  # its sessions take any batch
            yield full, full
        else:
            single = open_backend(runtime, package.model, batch=1, placement=placement, wide_weights=wide)
            yield full, opened.enter_context(single)
