"""What `predict` and the server return for one image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

COLUMNS = ("file", "rank", "class_id", "score", "label")  # of `Prediction.as_rows`


@dataclass(frozen=True)
class Prediction:
    """The best classes of one image, best first; all tuples are of one length.

    >>> prediction = pipeline.Prediction("cat.jpg", class_ids=(281, 285), scores=(0.75, 0.125), labels=("tabby", "Mau"))
    >>> prediction.as_dict()["label_names"]
    ['tabby', 'Mau']
    """

    source: str  # the file as it was given; "image 3" for the third that was no file
    class_ids: tuple[int, ...]  # indices of the network's output
    scores: tuple[float, ...]  # probabilities; where the network ends in sigmoids, an independent score for each label
    labels: tuple[str, ...]  # of the package's classes

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, with the keys of PaddleClas: file_name, class_ids, scores (6 decimals), label_names."""
        return {
            "file_name": self.source,
            "class_ids": list(self.class_ids),
            "scores": [round(score, 6) for score in self.scores],
            "label_names": list(self.labels),
        }

    def as_paddleclas(self, *, command: str = "paddleclas") -> dict[str, Any]:
        """Return plain data as PaddleClas has it, scores of 5 decimals, keys in its order.

        Args:
            command: whose: `paddleclas`, the Python package, whose last key is filename; or `infer`, its
                tools/infer.py, where that is file_name and stands before label_names.

        >>> list(pipeline.Prediction("cat.jpg", class_ids=(281,), scores=(0.75,), labels=("tabby",)).as_paddleclas())
        ['class_ids', 'scores', 'label_names', 'filename']
        """
        found: dict[str, Any] = {
            "class_ids": list(self.class_ids),
            "scores": [round(score, 5) for score in self.scores],
        }
        if command == "infer":
            return {**found, "file_name": self.source, "label_names": list(self.labels)}
        return {**found, "label_names": list(self.labels), "filename": self.source}

    def renamed(self, names: Mapping[int, str]) -> Prediction:
        """Return the same answer with other class names; a class without one keeps its own."""
        labels = zip(self.class_ids, self.labels, strict=True)
        return replace(self, labels=tuple(names.get(class_id, label) for class_id, label in labels))

    def as_text(self, *, base_name: bool = False) -> str:
        """Return a line as PaddleClas prints it; `base_name`: with the last part of the path alone, as it does."""
        source = PurePath(self.source).name if base_name else self.source
        scores = ", ".join(f"{score:.2f}" for score in self.scores)
        return (
            f"{source}:\tclass id(s): {list(self.class_ids)}, score(s): [{scores}], label_name(s): {list(self.labels)}"
        )

    def as_rows(self) -> list[list[object]]:
        """Return a table row per class: file, rank from 1, class, score, label."""
        ranked = zip(self.class_ids, self.scores, self.labels, strict=True)
        return [
            [self.source, rank, class_id, f"{score:.6f}", label]
            for rank, (class_id, score, label) in enumerate(ranked, start=1)
        ]
