"""Calls in processes of their own: processes that really end, hang and fail."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import preprocess
from pipeline.errors import BackendError, DataError
from pipeline.host import isolated

REPOSITORY = Path(__file__).parents[2]


def process_of_a_sum(one: int, other: int) -> tuple[int, int]:
    return os.getpid(), one + other


def end_by(number: int) -> None:
    os.kill(os.getpid(), number)


def exit_with_a_word() -> None:
    raise SystemExit("cannot go on")


def wait_for(seconds: float) -> None:
    time.sleep(seconds)


def refuse() -> None:
    raise BackendError("model.onnx: does not load")


def use_up_memory() -> bytes:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    return bytes(2 << 30)


def print_much() -> int:
    print("x" * 200_000, flush=True)  # more than a pipe holds
    return 7


def test_call_computes_in_another_process() -> None:
    pid, total = isolated.call(process_of_a_sum, 2, 3, seconds=60)
    assert total == 5
    assert pid != os.getpid()


def test_call_returns_the_result_when_the_process_prints_much() -> None:
    assert isolated.call(print_much, seconds=60) == 7


@pytest.mark.parametrize(
    ("function", "arguments", "reason"),
    [
        (end_by, (signal.SIGSEGV,), "died by SIGSEGV"),
        (end_by, (signal.SIGKILL,), "died by SIGKILL, as the kernel does when memory runs out"),
        (exit_with_a_word, (), "ended with exit code 1 (cannot go on)"),
        (use_up_memory, (), "failed with MemoryError"),
    ],
)
def test_call_says_how_a_process_was_lost(
    function: Callable[..., None], arguments: tuple[int, ...], reason: str
) -> None:
    with pytest.raises(isolated.LostError) as lost:
        isolated.call(function, *arguments, seconds=60)
    assert str(lost.value) == reason


def test_call_ends_a_process_that_hangs() -> None:
    begun = time.monotonic()
    with pytest.raises(isolated.LostError, match=r"^did not end within 1 s$"):
        isolated.call(wait_for, 60.0, seconds=1)
    assert time.monotonic() - begun < 20


def test_call_raises_what_the_user_can_fix_as_it_is() -> None:
    with pytest.raises(BackendError, match=r"^model\.onnx: does not load$"):
        isolated.call(refuse, seconds=60)


def test_call_raises_our_own_bug_with_the_traceback_of_the_process() -> None:
    with pytest.raises(AttributeError, match=r"^'int' object has no attribute 'resize_hw'$") as caught:
        isolated.call(preprocess.apply, 3, np.zeros((3, 4, 4), np.uint8), seconds=60)
    shown = "".join(traceback.format_exception(caught.value))
    assert f'{REPOSITORY}/pipeline/data/preprocess.py", line ' in shown
    assert "in _child" in shown


def test_call_keeps_where_a_library_failed_and_goes_on() -> None:
    with pytest.raises(isolated.LostError, match=r"^failed with JSONDecodeError: Expecting property name") as caught:
        isolated.call(json.loads, "{no", seconds=60)
    assert "json/decoder.py" in str(caught.value.__cause__)


def test_call_keeps_the_cause_of_what_the_user_can_fix() -> None:
    with pytest.raises(DataError) as caught:
        isolated.call(preprocess.decode, b"no image", seconds=60)
    assert "UnidentifiedImageError" in str(caught.value.__cause__)


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads what only Linux has")
def test_process_ends_with_its_parent_when_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_isolated import wait_for\nfrom pipeline.host import isolated\n"
        "isolated.call(wait_for, 120.0, seconds=120)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{Path(__file__).parent}"}
    parent = subprocess.Popen([sys.executable, "-c", code, str(Path(__file__).parent)], env=environment)

    def children() -> list[int]:
        try:
            listed = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        except OSError:
            return []
        return [int(pid) for pid in listed if "isolated" in Path(f"/proc/{pid}/cmdline").read_text()]

    found = wait_until(children)
    time.sleep(0.5)  # it listens for its parent's end by now
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in found))


def wait_until(condition: Callable[[], object]) -> list[int]:
    deadline = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found  # type: ignore[return-value]
