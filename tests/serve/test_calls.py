"""Runs calls_alone.py: KServe and tritonclient, which other tests import, define the same messages twice."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("kserve") is None, reason="serve's packages are not installed: pip install '.[serve]'"
)


def test_the_calls_that_bypass_the_framework() -> None:
    alone = Path(__file__).with_name("calls_alone.py")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(alone)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
