"""A call in a separate process, for code that may crash its process, as runtimes do on some models.

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
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pipeline.errors import DataError, PipelineError, in_a_line, is_our_bug
from pipeline.host.processes import sigint_held_back

R = TypeVar("R")

_TASK, _RESULT, _SAID = "task", "result", "said"
# Whose lines call into runtimes: what those raise there for a model, or after an upgrade, is not our bug.
_BINDINGS = ("runtimes",)
_MAIN = "import sys; sys.path[:] = sys.argv[2:]; from pipeline.host.isolated import _child; _child(sys.argv[1])"


class LostError(Exception):
    """The process ended without a result: it died, hung, or a library raised what is no error of the user's."""


class _RemoteError(Exception):
    """Where an exception was raised in the other process; the cause of the same exception here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def call(function: Callable[..., R], *arguments: Any, seconds: float) -> R:
    """Return `function(*arguments)`, computed in a separate process.

    It has the environment and the import path of this process. When memory runs out, the kernel ends it before this
    one (Linux).

    Args:
        function: defined in a module that can be imported.
        arguments: picklable.
        seconds: time limit; then the process is ended.

    Raises:
        LostError: it died, hung, or a library failed; the text says how, in a part of a sentence.
        PipelineError: that the call raised.
        Exception: that the call raised, where a line of this package is at fault: our bug, with its traceback.
    """
    with tempfile.TemporaryDirectory(prefix="isolated-") as folder:
        task = Path(folder) / _TASK
        task.write_bytes(pickle.dumps((function, arguments)))
        with (Path(folder) / _SAID).open("wb") as said, sigint_held_back():  # Ctrl-C is for the parent only
            process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, folder, *(path or str(Path.cwd()) for path in sys.path)],
                stdin=subprocess.PIPE,  # closed whenever this process ends; the child then ends too
                stdout=said,
                stderr=said,
            )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            # Its own cause is this bound and nothing else.
            raise LostError(f"did not end within {seconds:.0f} s") from None
        finally:
            process.kill()
            process.communicate()
        try:
            result = pickle.loads((Path(folder) / _RESULT).read_bytes())
        except (OSError, EOFError, pickle.UnpicklingError) as err:
            raise LostError(_death(process.returncode, Path(folder) / _SAID)) from err
    if isinstance(result, _Failed):
        raise result.error from _RemoteError(result.trace)
    answer: R = result[0]
    return answer


def call_on_file(
    path: Path, library: str, advice: str, function: Callable[..., R], *arguments: Any, seconds: float
) -> R:
    """As `call`, of a library's work on a user's file; its errors begin with the file's path.

    Args:
        library: whose process it is.
        advice: what follows on how the process ended, as in " on this file; export it to ONNX".

    Raises:
        DataError: the function raised one, or the process was lost.
    """
    try:
        return call(function, *arguments, seconds=seconds)
    except LostError as err:
        lost = str(err).partition(" (")[0]  # what was printed last says nothing of the cause
        raise DataError(f"{path}: {library} {lost}{advice}") from err
    except DataError as err:
        raise DataError(f"{path}: {err}") from err


@dataclass(frozen=True)
class _Failed:
    """What the parent is to raise, and the traceback of the child, which pickling would lose."""

    error: Exception
    trace: str


def _to_raise(err: Exception) -> Exception:
    """Return what the parent raises for an exception of the call."""
    if isinstance(err, PipelineError):
        return type(err)(str(err))
    if is_our_bug(err, except_in=_BINDINGS):
        try:
            pickle.loads(pickle.dumps(err))
        except Exception:  # an exception class that cannot be made again from its arguments
            return RuntimeError(f"{type(err).__name__}: {in_a_line(err)}")
        return err
    # MemoryError and what a runtime's binding raises: the caller tells what it costs.
    return LostError(f"failed with {type(err).__name__}" + (f": {in_a_line(err)}" if str(err).strip() else ""))


def _death(code: int, said: Path) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"died by {name}" + (", as the kernel does when memory runs out" if name == "SIGKILL" else "")
    lines = said.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"ended with exit code {code}" + (f" ({last})" if last else "")


def _child(folder: str) -> NoReturn:
    """Run the task of a folder, and exit without the destructors of libraries, whose crash would hide the result."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(OSError):  # Linux only
        Path("/proc/self/oom_score_adj").write_text("1000")
    result: Any
    try:
        function, arguments = pickle.loads((Path(folder) / _TASK).read_bytes())
        result = (function(*arguments),)
    except Exception as err:
        result = _Failed(_to_raise(err), "".join(traceback.format_exception(err)))
    scratch = Path(folder) / f"{_RESULT}.new"
    scratch.write_bytes(pickle.dumps(result))
    scratch.replace(Path(folder) / _RESULT)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _end_with_parent() -> None:
    os.read(0, 1)  # not sys.stdin: its lock must not be held by a thread when the interpreter exits
    os._exit(1)
