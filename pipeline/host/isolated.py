"""A call in a process of its own, for code that may end its process: what a runtime does to it reaches nobody else.

Not `multiprocessing`, whose children run the main script of their parent again.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pipeline.errors import PipelineError
from pipeline.host.processes import sigint_held_back

R = TypeVar("R")

_TASK, _RESULT, _SAID = "task", "result", "said"
_MAIN = "import sys; sys.path[:] = sys.argv[2:]; from pipeline.host.isolated import _child; _child(sys.argv[1])"


class LostError(Exception):
    """The process ended without a result: it died, hung, or the call raised what is no error of the user's."""


def call(function: Callable[..., R], *arguments: Any, seconds: float) -> R:
    """Return `function(*arguments)`, computed in a process of its own.

    The process sees the environment and the import path of this one. When memory runs out the kernel ends it before
    this one (Linux).

    Args:
        function: of a module that can be imported.
        arguments: what can be pickled.
        seconds: that it may take; then it is ended.

    Raises:
        LostError: it died, hung or failed; the text says how, in a part of a sentence.
        PipelineError: that the call raised.
    """
    with tempfile.TemporaryDirectory(prefix="isolated-") as folder:
        task = Path(folder) / _TASK
        task.write_bytes(pickle.dumps((function, arguments)))
        with (Path(folder) / _SAID).open("wb") as said, sigint_held_back():  # Ctrl-C is the parent's alone
            process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, folder, *(path or str(Path.cwd()) for path in sys.path)],
                stdin=subprocess.PIPE,  # closed when this process ends, however it ends: the child then ends too
                stdout=said,
                stderr=said,
            )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise LostError(f"did not end within {seconds:.0f} s") from None
        finally:
            process.kill()
            process.communicate()
        try:
            result = pickle.loads((Path(folder) / _RESULT).read_bytes())
        except (OSError, EOFError, pickle.UnpicklingError):
            raise LostError(_death(process.returncode, Path(folder) / _SAID)) from None
    if isinstance(result, PipelineError | LostError):
        raise result
    answer: R = result[0]
    return answer


def _death(code: int, said: Path) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"died by {name}" + (", as the kernel does when memory runs out" if name == "SIGKILL" else "")
    lines = said.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"ended with exit code {code}" + (f" ({last})" if last else "")


def _child(folder: str) -> NoReturn:
    """Do the task of a folder, and end before the destructors of libraries, which have no say in the result."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(OSError):  # of Linux
        Path("/proc/self/oom_score_adj").write_text("1000")
    result: Any
    try:
        function, arguments = pickle.loads((Path(folder) / _TASK).read_bytes())
        result = (function(*arguments),)
    except PipelineError as err:
        result = type(err)(str(err))
    except Exception as err:  # MemoryError and what a runtime's binding raises: the parent tells what it costs
        text = " ".join(str(err).split())
        result = LostError(f"failed with {type(err).__name__}" + (f": {text[:300]}" if text else ""))
    scratch = Path(folder) / f"{_RESULT}.new"
    scratch.write_bytes(pickle.dumps(result))
    scratch.replace(Path(folder) / _RESULT)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _end_with_parent() -> None:
    os.read(0, 1)  # not by sys.stdin, whose lock a thread must not hold when the interpreter ends
    os._exit(1)
