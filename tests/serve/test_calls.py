"""Runs tests that import KServe: it and tritonclient, which other tests import, define the same messages twice."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("kserve") is None, reason="serve's packages are not installed: pip install '.[serve]'"
)


@pytest.mark.parametrize("name", ["calls_alone.py", "wire_alone.py"])
def test_what_needs_a_process_of_its_own(name: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).with_name(name))],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
