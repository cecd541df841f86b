"""Print which installed releases are others than a constraints file pins: `compare_releases.py constraints.txt`.

`make newest` runs it after the tests of this folder: a failure then stands beside the release that may have caused it.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path


def compare(constraints: str, installed: dict[str, str]) -> list[str]:
    """Return a line for each package that has another release than the pinned one, then those that have no pin.

    Args:
        constraints: lines `name==release`, with comments, markers and blank lines.
        installed: releases by name.
    """
    pins = dict(re.findall(r"(?m)^([A-Za-z0-9._-]+)==([^;\s]+)", constraints))
    pinned = {_normal(name): release for name, release in pins.items()}
    found = {_normal(name): release.partition("+")[0] for name, release in installed.items()}
    changed = [
        f"{name} {pinned[name]} -> {release}"
        for name, release in sorted(found.items())
        if pinned.get(name, release) != release
    ]
    more = [f"{name} {release}" for name, release in sorted(found.items()) if name not in pinned]
    return [
        f"{len(changed)} of {len(found.keys() & pinned.keys())} pinned packages have another release:",
        *(f"  {line}" for line in changed),
        f"not pinned: {', '.join(more) or 'none'}",
    ]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    print()
    versions = {each.name: each.version for each in metadata.distributions()}
    print("\n".join(compare(Path(sys.argv[1]).read_text(encoding="utf-8"), versions)))
