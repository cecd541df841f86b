from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.host import hardware

StartPython = Callable[..., "subprocess.Popen[str]"]

linux = pytest.mark.skipif(platform.system() != "Linux", reason="reads what only Linux has")


@linux
def test_available_cores_are_at_most_the_affinity(start_python: StartPython) -> None:
    """In a process of its own: an affinity stays with the process."""
    code = (
        "import os; from pipeline.host.hardware import available_cores\n"
        "print(available_cores())\n"
        "os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])\n"
        "print(available_cores())"
    )
    printed, _ = start_python("-c", code).communicate(timeout=60)
    before, after = map(int, printed.split())
    assert 1 <= before <= len(os.sched_getaffinity(0))
    assert after == 1


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "200000 100000\n"}, 2.0),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense\n"}, None),
        ({}, None),
    ],
    ids=["version 2", "a part of a core", "no limit", "version 1", "version 1 no limit", "not understood", "none"],
)
def test_cgroup_quota_reads_both_versions_of_control_groups(
    tmp_path: Path, files: dict[str, str], cores: float | None
) -> None:
    assert hardware._cgroup_quota(write(tmp_path, files), tmp_path / "none") == cores


SERVICE = "0::/system.slice/classify.service\n"
JOB = "9:name=systemd:/\n4:cpu,cpuacct:/batch/job7\n3:memory:/other\n"


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        (SERVICE, {"system.slice/classify.service/cpu.max": "300000 100000\n"}, 3.0),
        (
            SERVICE,
            {"system.slice/cpu.max": "200000 100000\n", "system.slice/classify.service/cpu.max": "max 100000"},
            2.0,
        ),
        (SERVICE, {"unified/system.slice/classify.service/cpu.max": "300000 100000\n"}, 3.0),
        (SERVICE, {"system.slice/another.service/cpu.max": "100000 100000\n"}, None),
        (
            JOB,
            {
                "cpu,cpuacct/batch/job7/cpu.cfs_quota_us": "250000\n",
                "cpu,cpuacct/batch/job7/cpu.cfs_period_us": "50000\n",
                "cpu,cpuacct/batch/cpu.cfs_quota_us": "-1\n",
                "cpu,cpuacct/batch/cpu.cfs_period_us": "100000\n",
            },
            5.0,
        ),
        (JOB, {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1.0),
        ("0::/../elsewhere\n", {"cpu.max": "400000 100000\n"}, 4.0),
    ],
    ids=[
        *("a service", "the slice above it", "beside version 1", "another service", "a job, version 1"),
        *("a container, version 1", "a group outside of the container"),
    ],
)
def test_cgroup_quota_is_the_least_of_the_groups_that_hold_the_process(
    tmp_path: Path, membership: str, files: dict[str, str], cores: float | None
) -> None:
    (tmp_path / "cgroup").write_text(membership)
    assert hardware._cgroup_quota(write(tmp_path / "mounted", files), tmp_path / "cgroup") == cores


def test_memory_bytes_is_the_limit_of_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cgroup").write_text(SERVICE)
    monkeypatch.setattr(hardware, "_MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(hardware, "_CGROUPS", tmp_path)
    whole = hardware.memory_bytes()
    write(tmp_path, {"system.slice/memory.max": "max\n", "system.slice/classify.service/memory.max": "1000000\n"})
    assert whole is not None
    assert whole > 1_000_000
    assert hardware.memory_bytes() == 1_000_000


def test_describe_tells_the_machine_in_plain_values() -> None:
    described = hardware.describe()
    assert described["cores"] == hardware.available_cores()
    assert described["cpu"]
    sets = described["instruction_sets"]
    assert isinstance(sets, list)
    order = list(hardware._INT8_FLAGS.values())
    assert [order.index(name) for name in sets] == sorted(order.index(name) for name in sets)


@linux
def test_instruction_sets_are_those_of_the_kernel() -> None:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    for flag, name in hardware._INT8_FLAGS.items():
        assert (name in hardware.instruction_sets()) == (f" {flag} " in text.replace("\n", " \n"))


@linux
def test_peak_memory_grows_with_what_is_used_and_is_forgotten_on_reset(start_python: StartPython) -> None:
    code = (
        "from pipeline.host.hardware import peak_memory_mib, reset_peak_memory\n"
        "before = peak_memory_mib(); block = b'x' * (200 << 20); held = peak_memory_mib(); del block\n"
        "freed = peak_memory_mib(); reset_peak_memory()\n"
        "print(held - before, freed - before, peak_memory_mib() - before)"
    )
    printed, errors = start_python("-c", code).communicate(timeout=60)
    held, freed, after_reset = map(float, printed.split())
    assert 190 < held < 230, errors
    assert freed > 190
    assert after_reset < 50


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the names are of x86")
@pytest.mark.parametrize(
    ("variable", "value", "openvino", "onnxruntime"),
    [
        ("ONEDNN_MAX_CPU_ISA", "AVX2", ["AVX2"], None),
        ("ONEDNN_MAX_CPU_ISA", "avx512_core", ["AVX2", "AVX-512"], None),
        ("DNNL_MAX_CPU_ISA", "AVX2_VNNI", ["AVX2", "AVX-VNNI"], None),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI", ["AVX2", "AVX-512", "AVX-VNNI", "AVX-512 VNNI"], None),
        ("ONEDNN_MAX_CPU_ISA", "ALL", None, None),
        ("INT8_PIPELINE_MAX_ISA", "AVX2", ["AVX2"], ["AVX2"]),
    ],
)
def test_instruction_sets_are_those_that_a_variable_allows_each_runtime(
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    openvino: list[str] | None,
    onnxruntime: list[str] | None,
) -> None:
    everything = "avx2 avx512f avx_vnni avx512_vnni amx_int8"
    monkeypatch.setattr(hardware, "_cpuinfo", lambda: {"flags": everything})
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "INT8_PIPELINE_MAX_ISA"):
        monkeypatch.delenv(name, raising=False)
    whole = hardware.instruction_sets()
    assert len(whole) == 5
    monkeypatch.setenv(variable, value)
    assert hardware.instruction_sets("openvino") == (openvino or whole)
    assert hardware.instruction_sets("onnxruntime") == hardware.instruction_sets() == (onnxruntime or whole)
    assert hardware.isa_cap("openvino") == value
    assert hardware.isa_cap("onnxruntime") == (value if onnxruntime else "")
    assert hardware.saturates("openvino") == (openvino in (["AVX2"], ["AVX2", "AVX-512"]))
    assert hardware.saturates("onnxruntime") == (onnxruntime == ["AVX2"])


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries give memory back by rules of their own"
)
def test_release_memory_gives_back_what_small_blocks_took() -> None:
    blocks = [b"1" * 100_000 for _ in range(2000)]  # not zeros, which a fresh page has without being touched
    last = b"1" * 100_000  # above them, so that they are not given back as they are freed
    del blocks
    before = _resident_mib()
    hardware.release_memory()
    assert _resident_mib() < before - 100
    assert len(last) == 100_000


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.parametrize(
    ("flags", "cap", "computes"),
    [
        ("avx2 avx512f avx512_bf16", "", True),
        ("avx2 amx_bf16", "", True),
        ("avx2 avx512f avx512_vnni", "", False),
        ("avx2 avx512_bf16", "AVX2", False),
        ("avx2 avx512_bf16", "AVX512_CORE_VNNI", False),
        ("avx2 avx512_bf16", "AVX512_CORE_BF16", True),
        ("avx2 avx512_bf16", "AVX10_1_512_AMX", True),
    ],
)
@pytest.mark.parametrize("variable", ["INT8_PIPELINE_MAX_ISA", "ONEDNN_MAX_CPU_ISA"])
def test_computes_bfloat16_obeys_the_cpu_and_what_restricts_it(
    flags: str, cap: str, computes: bool, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("INT8_PIPELINE_MAX_ISA", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(variable, cap)
    monkeypatch.setattr(hardware, "_cpuinfo", lambda: {"flags": flags})
    assert hardware.computes_bfloat16() is computes


def test_collect_garbage_rarely_makes_few_collections() -> None:
    """In a process of its own, for which alone it holds."""
    script = """
import gc
from pipeline.host.hardware import collect_garbage_rarely
collect_garbage_rarely()
before = gc.get_stats()[0]["collections"]
kept = [[] for _ in range(200_000)]
print(gc.get_stats()[0]["collections"] - before)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(ended.stdout) <= 4  # without it 280


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_keep_freed_memory_spares_the_pages_of_what_is_wanted_again() -> None:
    """In a process of its own, whose memory nobody else needs."""
    script = """
import resource
import numpy as np
from pipeline.host.hardware import keep_freed_memory
keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        np.ones(1 << 20), np.ones(1 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(ended.stdout) < 1000  # without it 200,000: all pages of all arrays but the last
