"""How many threads the runtimes take under an affinity mask and a CPU quota, and how many cores we count there.

Seen with onnxruntime 1.32.0, openvino 2026.4.1 and Linux 6.18. Left to choose, ONNX Runtime takes the machine's cores
whatever the mask, and neither looks at a quota: so both are always told how many threads to take.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(platform.system() != "Linux", reason="affinities and quotas of Linux"),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core cannot be shared out"),
]

StartPython = Callable[..., "subprocess.Popen[str]"]

GROUPS = Path("/sys/fs/cgroup")
PERIOD_US = 100_000
MODEL = """
import os, sys
from onnx import TensorProto, helper
nodes = [helper.make_node("MatMul", ["x", "x"], ["y"])]
values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (64, 64)) for name in "xy"]
graph = helper.make_graph(nodes, "made by hand", values[:1], values[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
"""
ONE_CORE = "import os; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])\n"
OURS = "from pipeline.host.hardware import available_cores; print(available_cores())"
ONNXRUNTIME = """
import onnxruntime
before = len(os.listdir("/proc/self/task"))
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.intra_op_num_threads = int(sys.argv[1])
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
print(1 + len(os.listdir("/proc/self/task")) - before)
"""
OPENVINO = """
import openvino
compiled = openvino.Core().compile_model(openvino.Core().read_model(model), "CPU")
print(compiled.get_property("INFERENCE_NUM_THREADS"))
"""


@pytest.fixture
def count(start_python: StartPython) -> Callable[..., int]:
    """Run a program in a process of its own, and return the number that it prints."""

    def run(*arguments: str) -> int:
        printed, errors = start_python("-c", *arguments).communicate(timeout=60)
        assert printed, errors
        return int(printed)

    return run


@pytest.fixture
def one_core_group() -> Iterator[str]:
    """A control group with a quota of one core, as a program's first line, which joins it."""
    name = f"int8-pipeline-test-{os.getpid()}"
    unified = (GROUPS / "cpu.max").exists() or (GROUPS / "cgroup.controllers").exists()
    group = GROUPS / name if unified else GROUPS / "cpu" / name
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"a control group cannot be made here: {error}")
    try:
        try:
            if unified:
                (group / "cpu.max").write_text(f"{PERIOD_US} {PERIOD_US}")
            else:
                (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (group / "cpu.cfs_quota_us").write_text(str(PERIOD_US))
        except OSError as error:
            pytest.skip(f"a control group cannot be given a quota here: {error}")
        yield f"import os; open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
    finally:
        group.rmdir()


def test_we_count_the_cores_of_the_mask(count: Callable[..., int]) -> None:
    assert count(ONE_CORE + OURS) == 1


def test_onnxruntime_takes_more_threads_than_the_mask_has_cores_when_left_to_choose(count: Callable[..., int]) -> None:
    assert count(ONE_CORE + MODEL + ONNXRUNTIME, "0") > 1


@pytest.mark.parametrize("threads", [1, 2])
def test_onnxruntime_takes_the_threads_that_it_is_told(count: Callable[..., int], threads: int) -> None:
    assert count(ONE_CORE + MODEL + ONNXRUNTIME, str(threads)) == threads


@pytest.mark.openvino
def test_openvino_takes_the_cores_of_the_mask(count: Callable[..., int]) -> None:
    pytest.importorskip("openvino")
    assert count(ONE_CORE + MODEL + OPENVINO) == 1


def test_we_count_the_cores_of_a_quota(count: Callable[..., int], one_core_group: str) -> None:
    """Of a real control group, not the root of all; tests/host/test_hardware.py has the other shapes as files."""
    assert count(OURS) > 1
    assert count(one_core_group + OURS) == 1


def test_onnxruntime_takes_more_threads_than_the_quota_has_cores(
    count: Callable[..., int], one_core_group: str
) -> None:
    assert count(one_core_group + MODEL + ONNXRUNTIME, "0") > 1


@pytest.mark.openvino
def test_openvino_takes_more_threads_than_the_quota_has_cores(count: Callable[..., int], one_core_group: str) -> None:
    pytest.importorskip("openvino")
    assert count(one_core_group + MODEL + OPENVINO) > 1
