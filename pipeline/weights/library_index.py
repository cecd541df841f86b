"""The names and shapes of the tensors of the libraries' networks, as an index that comes with this program.

It tells in a second which networks a checkpoint may be of; without it hundreds of networks are made to learn their
keys. It is a hint: what it names is made and compared shape by shape, so that it may be of another release of the
library than the installed one.

`renew` writes it anew, for the installed releases.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from torch import nn

from pipeline.errors import PipelineError
from pipeline.models import libraries
from pipeline.terminal.progress import progress_bar
from pipeline.weights import matching
from pipeline.weights.library_keys import made_without_values

_FILE = Path(__file__).with_name("library_index.json.gz")
_CLASSES = 1003  # a number that no network has as a width: what has it depends on the number of classes

Shapes = Mapping[str, Sequence[int]]
# By library, by the names of the tensors that depend on the number of classes, the digest of the others by network.
Index = dict[str, dict[str, dict[str, str]]]


def candidates(library: str, shapes: Shapes) -> list[str]:
    """Return the networks of a library that have tensors of these names and shapes, whatever the number of classes.

    Args:
        shapes: of the tensors of a checkpoint, by name.
    """
    found = []
    for classifier, networks in _index().get(library, {}).items():
        outside = classifier.split()
        if shapes.keys() >= set(outside):
            wanted = digest_of_shapes(shapes, outside)
            found += [name for name, digest in networks.items() if digest == wanted]
    return found or _with_renamed_classifier(library, shapes)


def _with_renamed_classifier(library: str, shapes: Shapes) -> list[str]:
    """Return the networks of which all but a linear layer is there, which stands under another name."""
    found = []
    for name, shape in shapes.items():
        layer, _, part = name.rpartition(".")
        if part == "weight" and len(shape) == 2:
            found += networks_without(library, shapes, {name, f"{layer}.bias"} & shapes.keys())
    return sorted(set(found))


def networks_without(library: str, shapes: Shapes, others: Collection[str]) -> list[str]:
    """Return the networks that have these tensors, but for some and but for their own classifier.

    Args:
        others: names among `shapes` that count as no tensors of the network.
    """
    wanted = digest_of_shapes(shapes, others)
    by_network = (item for networks in _index().get(library, {}).values() for item in networks.items())
    return [name for name, digest in by_network if digest == wanted]


def is_known(library: str, name: str) -> bool:
    """Tell whether the index has a network."""
    return any(name in networks for networks in _index().get(library, {}).values())


def digest_of_shapes(shapes: Shapes, without: Collection[str]) -> str:
    """Return what tells the tensors of a network from others': without some, counters and branches of training."""
    branches = tuple(f"{branch}." for branch in libraries.AUXILIARY)
    lines = [
        f"{name} {list(shape)}"
        for name, shape in shapes.items()
        if name not in without and not name.endswith(matching.COUNTER) and not name.startswith(branches)
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def learn(library: str, names: Collection[str]) -> dict[str, dict[str, str]]:
    """Return the part of an index for some networks of an installed library; what cannot be made is left out."""
    found: dict[str, dict[str, str]] = {}
    with progress_bar(len(names), f"{library}'s networks", "network") as progress:
        for name in names:
            progress.update()
            try:
                network: nn.Module = made_without_values(functools.partial(libraries.build, library, name, _CLASSES))
            except PipelineError:
                continue
            shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
            branches = tuple(f"{branch}." for branch in libraries.AUXILIARY)
            classifier = sorted(
                key for key, shape in shapes.items() if _CLASSES in shape and not key.startswith(branches)
            )
            found.setdefault(" ".join(classifier), {})[name] = digest_of_shapes(shapes, classifier)
    return found


def renew() -> None:
    """Write the index of the installed libraries beside this module: takes minutes."""
    made = {library: learn(library, libraries.names_of(library)) for library in libraries.LIBRARIES}
    content = json.dumps(made, sort_keys=True, separators=(",", ":")).encode()
    _FILE.write_bytes(gzip.compress(content, 9, mtime=0))


@functools.cache
def _index() -> Index:
    found: Index = json.loads(gzip.decompress(_FILE.read_bytes()))
    return found
