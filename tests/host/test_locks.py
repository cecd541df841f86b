from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.host.locks import LockedError, exclusive


@pytest.fixture(params=["folder", "file"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, bool]:
    """What is locked, and whether the lock makes it."""
    return (tmp_path, False) if request.param == "folder" else (tmp_path / "x.lock", True)


def test_exclusive_refuses_when_another_holds_it_and_it_does_not_wait(target: tuple[Path, bool]) -> None:
    path, creates = target
    with (
        exclusive(path, creates=creates),
        pytest.raises(LockedError, match="another process holds it"),
        exclusive(path, creates=creates, waits=False),
    ):
        pass
    with exclusive(path, creates=creates, waits=False):
        pass


def test_exclusive_waits_until_the_other_is_done(target: tuple[Path, bool]) -> None:
    path, creates = target
    order: list[str] = []

    def second() -> None:
        with exclusive(path, creates=creates):
            order.append("second")

    thread = threading.Thread(target=second)
    with exclusive(path, creates=creates):
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_exclusive_is_free_again_when_its_process_was_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from pipeline.host.locks import exclusive\n"
        "with exclusive(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError), exclusive(tmp_path, waits=False):
            pass
        holder.kill()
    with exclusive(tmp_path, waits=False):
        pass


def test_exclusive_leaves_nothing_in_a_folder(tmp_path: Path) -> None:
    with exclusive(tmp_path):
        assert list(tmp_path.iterdir()) == []
