"""Images read and decoded once in full, before anything is computed from them: which are damaged, and their digests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.data import preprocess
from pipeline.data.sources import ImageSource
from pipeline.errors import DataError
from pipeline.terminal.progress import progress_bar

_SHOWN = 50


@dataclass(frozen=True)
class Inspected:
    """What was found of an image file."""

    sha256: str = ""  # "" where it cannot be read
    fault: str = ""  # why it cannot be used; "": it can
    largest: int | None = None  # value of an image of 16 bits a channel that uses 12 at most: it comes out nearly black


def inspect(sources: Sequence[ImageSource], cores: int, *, decodes: bool = True) -> dict[ImageSource, Inspected]:
    """Read every image, in threads: Pillow's decoders and the digest leave the interpreter to others.

    Args:
        cores: threads.
        decodes: False takes the images for good and only reads them. Decoding is complete: of a file that was cut
            short, the header and a reduced image decode without an error.
    """
    found: dict[ImageSource, Inspected] = {}
    # As they lie in a tar: going back in a compressed one starts over.
    ordered = sorted(sources, key=lambda source: source.offset or 0)
    with ThreadPoolExecutor(cores) as pool, progress_bar(len(ordered), "check images", "img", span=(0, 1)) as progress:
        for source, result in zip(ordered, pool.map(lambda each: _inspect(each, decodes), ordered), strict=True):
            found[source] = result
            progress.update()
    return found


def _inspect(source: ImageSource, decodes: bool) -> Inspected:
    try:
        content = source.read()
    except DataError as err:
        return Inspected(fault=str(err))
    digest = hashlib.sha256(content).hexdigest()
    largest = None
    try:
        if decodes:
            largest = preprocess.check(content)
    except DataError as err:
        reason = str(err)
        return Inspected(digest, reason if reason.startswith(str(source)) else f"{source}: {_without_size(reason)}")
    return Inspected(digest, largest=largest)


def _without_size(reason: str) -> str:
    """Drop `image of 123 bytes: `, which `decode` calls what has no name."""
    head, _, rest = reason.partition(": ")
    return rest if head.startswith("image of ") else reason


def list_faults(faults: Mapping[ImageSource, str]) -> str:
    """Return a line for each damaged image, in the order of their names."""
    lines = [f"  {faults[source]}" for source in sorted(faults, key=lambda source: source.name)]
    more = [f"  ... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n".join([*lines[:_SHOWN], *more])
