"""What is sent to the workers of a cluster, whose nodes may not have the files of this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHUNK_IMAGES = 128  # of one Ray task, some seconds of a core: what a lost node costs at most


@dataclass(frozen=True)
class Shipment:
    """Files by their paths below a folder."""

    files: Mapping[str, bytes]

    @classmethod
    def pack(cls, folder: Path, names: Iterable[str]) -> Shipment:
        return cls({name: (folder / name).read_bytes() for name in names})

    @contextmanager
    def unpack(self) -> Iterator[Path]:
        """Yield a folder that holds the files until the end of the `with`; a loaded model does not need them."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for below, content in self.files.items():
                path = folder / below
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            yield folder
