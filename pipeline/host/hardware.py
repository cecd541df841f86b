"""What this machine is: cores that this process may use, CPU model, instruction sets that int8 speed depends on."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import platform
import resource
from collections.abc import Iterator
from pathlib import Path

# Flags of /proc/cpuinfo that decide which int8 kernels run, slowest first.
_INT8_FLAGS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "amx_int8": "AMX int8",
    "asimddp": "dot product",
    "i8mm": "int8 matrix multiply",
}
# Restricts the program to fewer instruction sets, by oneDNN's names: OpenVINO then uses no others, and ONNX Runtime,
# which queries the CPU, is treated as on a CPU that has no others.
MAX_ISA = "INT8_PIPELINE_MAX_ISA"
_ONEDNN_MAX_ISA = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
# Of oneDNN's names, those that allow instructions for bfloat16.
_BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")
_BFLOAT16_CAPS = frozenset({"AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512"})
_AVX512 = frozenset({"avx2", "avx512f"})
_CAPS = {  # what each value allows; other values allow everything
    **dict.fromkeys(("SSE41", "AVX"), frozenset[str]()),
    "AVX2": frozenset({"avx2"}),
    **dict.fromkeys(("AVX2_VNNI", "AVX2_VNNI_2"), frozenset({"avx2", "avx_vnni"})),
    "AVX512_CORE": _AVX512,
    **dict.fromkeys(
        ("AVX512_CORE_VNNI", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512"),
        _AVX512 | {"avx_vnni", "avx512_vnni"},
    ),
}


# Of glibc's mallopt: the least bytes of a block that is mapped by itself, 32 MiB at most, and the bytes kept at the end
# of the heap.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MAPPED, _KEPT = 32 << 20, 1 << 27

_CGROUPS, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_cores() -> int:
    """Return how many cores this process may use: its affinity, and below that the container's CPU quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(affinity, math.ceil(quota)) if quota else affinity)


def _cgroup_quota(root: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> float | None:
    """Return the CPU quota in cores, the least of the groups that this process is in; None where there is none."""
    quotas = []
    for folder in _cgroup_folders("cpu", root, membership):
        with contextlib.suppress(OSError, ValueError):  # version 2; the root of all groups has no such file
            limit, period = (folder / "cpu.max").read_text().split()
            quotas += [] if limit == "max" else [int(limit) / int(period)]
        with contextlib.suppress(OSError, ValueError):  # version 1
            limit_us = int((folder / "cpu.cfs_quota_us").read_text())
            quotas += [limit_us / int((folder / "cpu.cfs_period_us").read_text())] if limit_us > 0 else []
    return min(quotas, default=None)


def _cgroup_folders(controller: str, root: Path, membership: Path) -> Iterator[Path]:
    """Yield the folders of the control groups, of version 1 and 2, that a process is in, and of those that hold them.

    A container sees its own group as the root. A service of systemd or a job of a batch system lies deeper, and is
    limited by every group above it as well.

    Args:
        controller: cpu or memory.
        root: where control groups are mounted.
        membership: a file as /proc/self/cgroup: lines `number:controllers:path`, of version 2 without controllers.
    """
    lines = [f"0:{controller}:/", "0::/"]
    with contextlib.suppress(OSError):
        lines += membership.read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for mount in {root / controller, root / controllers} if controllers else (root, root / "unified"):
            yield from (mount.joinpath(*parts[:depth]) for depth in range(len(parts) + 1))


def _cpuinfo() -> dict[str, str]:
    """Return the fields of the first core in /proc/cpuinfo; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def cpu_name() -> str:
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def instruction_sets(runtime: str | None = None) -> list[str]:
    """Return the instruction sets that matter to int8, slowest first, e.g. ["AVX2", "AVX-512", "AVX-512 VNNI"].

    Those of the CPU, as far as `INT8_PIPELINE_MAX_ISA` allows: in emulators and some virtual machines /proc/cpuinfo
    lists more than programs may use. Runtimes differ in the other variables that they obey.

    Args:
        runtime: openvino, which uses no more than oneDNN's variable allows either; any other, or None, which has no
            such variable.
    """
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    for variable in (MAX_ISA, *(_ONEDNN_MAX_ISA if runtime == "openvino" else ())):
        flags &= _CAPS.get(os.environ.get(variable, "").upper(), flags)
    return [name for flag, name in _INT8_FLAGS.items() if flag in flags]


def isa_cap(runtime: str | None = None) -> str:
    """Return the value of the variable that restricts a runtime to fewer instruction sets; "" where none does.

    Args:
        runtime: as of `instruction_sets`.
    """
    variables = (*(_ONEDNN_MAX_ISA if runtime == "openvino" else ()), MAX_ISA)
    return next((os.environ[name] for name in variables if os.environ.get(name)), "")


def is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def is_arm() -> bool:
    return platform.machine().lower() in ("aarch64", "arm64")


def saturates(runtime: str | None = None) -> bool:
    """Tell whether int8 kernels of this CPU add pairs of products in 16 bits: an x86 CPU without VNNI and AMX.

    Args:
        runtime: as of `instruction_sets`.

    Sources: oneDNN's "Nuances of int8 computations"; ONNX Runtime's "Quantize ONNX models", on reduce_range.
    """
    exact = {_INT8_FLAGS[flag] for flag in ("avx_vnni", "avx512_vnni", "amx_int8")}
    return is_x86() and not exact.intersection(instruction_sets(runtime))


def computes_bfloat16() -> bool:
    """Tell whether an x86 CPU multiplies bfloat16, at twice the rate of float32 or more, and OpenVINO may."""
    flags = set(_cpuinfo().get("flags", "").split())
    caps = [os.environ.get(variable, "").upper() for variable in (MAX_ISA, *_ONEDNN_MAX_ISA)]
    return bool(flags.intersection(_BFLOAT16_FLAGS)) and all(cap not in _CAPS or cap in _BFLOAT16_CAPS for cap in caps)


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next that is wanted, until `release_memory`; else do nothing (glibc).

    By default it may return each block of some hundred kB to the system as soon as it is freed. Its pages are filled
    with zeros when they are wanted again, which took 6 to 9% of the CPU time of rounding resnet50.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, _MAPPED)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT)


def collect_garbage_rarely() -> None:
    """Look for cycles of unreachable objects after each 50,000 new ones, in place of 700.

    Importing torch makes hundreds of thousands, which stay: a tenth of the CPU time of a build's imports. Arrays and
    models, which take the memory, are freed without that when nothing refers to them.
    """
    gc.set_threshold(50_000, 20, 20)


def release_memory() -> None:
    """Return freed memory to the system where the C library can (glibc); else do nothing.

    glibc keeps freed blocks of up to 32 MB each: after an ONNX Runtime session of resnet18, 180 MB.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak_memory() -> None:
    """Reset `peak_memory_mib` where the kernel supports it (Linux); else do nothing."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib() -> float:
    """Return the largest resident memory of this process since the last reset, in MiB."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if platform.system() == "Darwin" else 1 << 10)


def memory_bytes() -> int | None:
    """Return the memory that this process may use: the machine's, or the container's limit; None: unknown."""
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
    limits = [pages * size]
    for folder in _cgroup_folders("memory", _CGROUPS, _MEMBERSHIP):
        for name in ("memory.max", "memory.limit_in_bytes"):  # control groups version 2 and 1
            with contextlib.suppress(OSError, ValueError):
                limits.append(int((folder / name).read_text()))
    return min(limits)


def describe() -> dict[str, object]:
    return {"cpu": cpu_name(), "instruction_sets": instruction_sets(), "cores": available_cores()}
