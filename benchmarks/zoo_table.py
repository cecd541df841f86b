"""The table of `zoo.py`: a row per build file, with what came of it and how far int8 is from float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TITLES = ("build file", "network", "outcome", "exact", "OpenVINO", "ONNX Runtime", "CPU s")


def figures(found: Mapping[str, Any] | None, images: int) -> str:
    if not found:
        return "-"
    if found["sqnr_db"] is None:
        return f"{found['same']}/{images}, no noise"
    return f"{found['same']}/{images}, {max(found['kl'], 0):.4f}, {found['sqnr_db']:.1f} dB"


def cells(result: Mapping[str, Any]) -> list[str]:
    """Return a row of the table: same answers, KL and SQNR of the logits beside float32."""
    outcome = result["outcome"]
    if result.get("dtype") != "int8" and outcome == "built":
        outcome = f"built, {result['dtype']}"
    if "why" in result:
        outcome += f": {result['why'].removeprefix('error: ').partition('; ')[0]}"  # advice follows
    exact = result.get("exact") or {}
    inside = {"same": exact.get("same_answers"), "kl": exact.get("kl"), "sqnr_db": exact.get("sqnr_db")}
    measured = result.get("evaluation") or {}
    return [
        result["key"],
        result.get("form", "-"),
        outcome,
        figures(inside, exact["images"]) if "images" in exact else "-",
        *(figures(measured.get(name), measured.get("images", 0)) for name in ("openvino", "onnxruntime")),
        str(result.get("cpu_seconds", "-")),
    ]


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    rows = [list(TITLES), ["---"] * len(TITLES), *map(cells, results)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
