"""The table that `models` prints: what is known of each network, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.errors import ConfigError
from pipeline.models.published import BATCHES, published_of
from pipeline.models.zoo import MODELS, Model

_COLUMNS = (
    f"{'':12} {'':21} {'':>4} {'counted':>15} {'in the documents':>30} {'reference':>15}\n"
    f"{'library':12} {'model':21} {'px':>4} {'params M':>8} {'MACs G':>6} {'params M':>8} {'flops G':>7} {'top-1':>6} "
    f"{'top-5':>6} {'top-1':>8} {'top-5':>6} weights"
)
_NOTE = (
    "MACs: multiply-accumulates of convolutions and the classifier at px x px. The documents count flops otherwise:\n"
    "of the Wide ResNets, MACs with norms and pools; of PaddleClas's, about twice the MACs; iResNets, 2.24 times.\n"
    "reference: what the network's own paper reports, as the documents give it.\n"
    "weights: auto: `build --weights auto` downloads them; by hand: no hash is known, `models --json` has the address."
    "\n"
    "An installed timm or torchvision adds its own: frontend.type timm or torchvision with any name that it lists."
)


def select(words: Sequence[str]) -> list[Model]:
    """Return the networks whose library or name holds any of the words; all of them if there are none.

    Raises:
        ConfigError: none does.
    """
    folded = [word.casefold() for word in words]
    found = [
        model
        for model in MODELS
        if not folded or any(word in f"{model.library} {model.name}".casefold() for word in folded)
    ]
    if not found:
        raise ConfigError(f"models {' '.join(words)}: no network of that name; `models` without words lists all")
    return found


def facts(model: Model) -> dict[str, Any]:
    """Return what is known of a network, as plain data; counting takes a fraction of a second."""
    from pipeline.models import cost

    counted = cost.count(model)
    published = published_of(model.library, model.name)
    reference_top1, reference_top5 = published.reference or (None, None)
    return {
        "library": model.library,
        "model": model.name,
        "size": model.size,
        "params": counted.params,
        "macs": counted.macs,
        "documents": {
            "params_m": model.params,
            "flops_g": model.flops,
            "top1": model.top1,
            "top5": model.top5,
            "reference_top1": reference_top1,
            "reference_top5": reference_top5,
            "latency_ms": {"batches": BATCHES, **published.latencies()},
        },
        "url": model.url,
        "sha256": model.sha256,
    }


def lines(models: Sequence[Model]) -> Iterator[str]:
    """Yield the table, a line as soon as it is known."""
    yield _COLUMNS
    for model in models:
        row = facts(model)
        documents = row["documents"]
        weights = "auto" if row["url"] and row["sha256"] else "by hand" if row["url"] else "-"
        yield (
            f"{model.library:12} {model.name:21} {model.size:4} {row['params'] / 1e6:8.3f} {row['macs'] / 1e9:6.3f} "
            f"{_or_dash(documents['params_m'], 8, 3)} {_or_dash(documents['flops_g'], 7, 3)} "
            f"{_or_dash(documents['top1'], 6, 3)} {_or_dash(documents['top5'], 6, 3)} "
            f"{_or_dash(documents['reference_top1'], 8, 3)} {_or_dash(documents['reference_top5'], 6, 3)} {weights}"
        )
    yield _NOTE


def latency_lines(models: Sequence[Model]) -> list[str]:
    """Return the documents' latencies of each network that they measured, in ms per request.

    Raises:
        ConfigError: they measured none of these.
    """
    batches = " ".join(f"{f'batch {batch}':>9}" for batch in BATCHES)
    lines = [f"{'model':21} {'ms per request, with TensorRT':29} {batches}"]
    for model in models:
        for gpu, row in published_of(model.library, model.name).latencies().items():
            lines.append(f"{model.name:21} {gpu:29} " + " ".join(f"{ms:9.3f}" for ms in row))
    if len(lines) == 1:
        raise ConfigError("models --latency: the documents give latencies of PaddleClas's networks only")
    return [*lines, "`bench --documents` sets the latencies of a package on this machine beside them"]


def as_json(models: Sequence[Model]) -> str:
    return json.dumps([facts(model) for model in models], indent=1)


def _or_dash(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"
