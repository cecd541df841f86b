"""Prepared images that a later stage of the same build reads again: preparing one takes 2 ms, a fifth of its inference.

They are kept in this process only, a few MiB of them; whoever reads one for the last time drops it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.config.vdsp import PreprocessSpec
from pipeline.data import preprocess
from pipeline.data.preprocess import Prepared
from pipeline.data.sources import ImageSource

_MOST = 32 << 20  # bytes of all that are kept: 128 images of 256 pixels as uint8 take 25 MB
_Key = tuple[PreprocessSpec, bool, ImageSource, tuple[int, int]]


class _Kept:
    """Images by what they were made from."""

    def __init__(self) -> None:
        self.images: dict[_Key, Prepared] = {}
        self.lock = threading.Lock()
        self.builds = 0  # that run


_kept = _Kept()


@contextmanager
def kept() -> Iterator[None]:
    """Keep images while the body runs; where none does, nothing is kept."""
    with _kept.lock:
        _kept.builds += 1
    try:
        yield
    finally:
        with _kept.lock:
            _kept.builds -= 1
            if not _kept.builds:
                _kept.images.clear()


def load(spec: PreprocessSpec, source: ImageSource, *, raw: bool, again: bool) -> Prepared:
    """Return what `preprocess.load` makes of an image; to be read only.

    Args:
        raw: as of `preprocess.load`.
        again: whether the image will be wanted once more: it is kept as far as there is room. One whose file has
            changed since is prepared anew.

    Raises:
        DataError: as `preprocess.load`.
    """
    content = source.content()
    if not _kept.builds:
        return preprocess.load(spec, content, raw=raw)
    key = (spec, raw, source, _version(content))
    with _kept.lock:
        found = _kept.images.get(key) if again else _kept.images.pop(key, None)
    if found is None:
        found = preprocess.load(spec, content, raw=raw)
        with _kept.lock:
            if again and (len(_kept.images) + 1) * found.nbytes <= _MOST:
                _kept.images[key] = found
    return found


def _version(content: Path | bytes) -> tuple[int, int]:
    """Return what changes with a file, or with the bytes of a tar's member."""
    if isinstance(content, bytes):
        return len(content), hash(content)
    try:
        found = content.stat()
    except OSError:  # decoding says what is wrong
        return 0, 0
    return found.st_size, found.st_mtime_ns
