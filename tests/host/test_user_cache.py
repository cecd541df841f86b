from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.host.user_cache import cache_folder


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("INT8_PIPELINE_CACHE", raising=False)
    assert cache_folder() == Path("/home/me/.cache/int8-pipeline")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path("/home/me/.cache/int8-pipeline")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/tmp/cache")
    assert cache_folder() == Path("/var/tmp/cache/int8-pipeline")
    monkeypatch.setenv("INT8_PIPELINE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
