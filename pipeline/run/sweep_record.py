"""The record of a sweep, in the user's cache, for one model on one machine.

Commands take from it what their flags leave open: runtime, images per request, requests in flight.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.artefacts import fingerprint, write_json
from pipeline.errors import DataError
from pipeline.host import hardware
from pipeline.host.user_cache import cache_folder
from pipeline.packages.package import Package
from pipeline.run.sweep import Point, Setting, Sweep
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import installed_runtimes, version_of


def remember(package: Package, found: Sweep) -> Path:
    """Keep the outcome for this package on this machine; return the file."""
    path = _path(package)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, as_dict(package, found))
    except OSError as err:
        raise DataError(
            f"{path}: cannot be written ({err.strerror}); name another folder in INT8_PIPELINE_CACHE"
        ) from None
    return path


def recall(package: Package) -> tuple[Setting, Path] | None:
    """Return the best setting that a sweep of this package found on this machine, and the file it is kept in.

    Raises:
        DataError: the file is damaged.
    """
    path = _path(package)
    try:
        setting = Setting(**json.loads(path.read_text(encoding="utf-8"))["best"]["setting"])
        if Runtime(setting.runtime) in installed_runtimes() and min(setting.batch, setting.instances) > 0:
            return setting, path
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DataError(f"{path}: invalid record of a sweep; delete it, or run bench --sweep again")


def recall_for(package: Package, runtime: Runtime) -> Setting | None:
    """Return the best setting that a sweep found, if it is one of `runtime`, or `runtime` is auto.

    Raises:
        DataError: the file is damaged.
    """
    found = recall(package)
    return found[0] if found and runtime in (Runtime.AUTO, Runtime(found[0].runtime)) else None


def recall_points(package: Package) -> list[Point]:
    """Return everything that a sweep of this package measured on this machine; empty where there was none.

    Raises:
        DataError: the file is damaged.
    """
    if recall(package) is None:
        return []
    loaded = json.loads(_path(package).read_text(encoding="utf-8"))
    try:
        return [
            Point(Setting(**each["setting"]), float(each["throughput"]), float(each["latency_ms"]))
            for each in loaded["points"]
        ]
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{_path(package)}: invalid record of a sweep; run bench --sweep again") from None


def _path(package: Package) -> Path:
    machine = [hardware.describe(), {each.value: version_of(each) for each in installed_runtimes()}]
    return cache_folder() / "sweeps" / f"{package.digest[:16]}-{fingerprint(machine)[:16]}.json"


def as_dict(package: Package, found: Sweep) -> dict[str, Any]:
    """Return the outcome as plain data, for `--json` and for `recall`."""
    return {
        "package": package.name,
        "model_sha256": package.digest,
        "machine": hardware.describe(),
        "max_latency_ms": found.max_latency,
        "best": asdict(found.best),
        "points": [asdict(point) for point in found.points],
    }
