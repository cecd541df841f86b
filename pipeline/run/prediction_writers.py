"""Answers of `predict` as text, one after the other: lines of several programs, JSON, or CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import IO, Any, TypeAlias

from pipeline.run.prediction import COLUMNS, Prediction

Write: TypeAlias = Callable[[Prediction], object]


class Form(Enum):
    """What the lines look like: ours, or those of a program of PaddleClas."""

    PLAIN = "plain"
    PREDICT_CLS = "predict_cls"  # deploy/python/predict_cls.py: the base name of the file first
    INFER = "infer"  # tools/infer.py: a list of dictionaries a batch
    PIP = "pip"  # the command of the pip package


@contextmanager
def write_lines(form: Form, batch: int) -> Iterator[Write]:
    """Yield what prints a prediction in a form; `batch` images are a line of INFER."""
    if form is Form.PIP:
        yield lambda found: print(
            ", ".join(f"{key}: {value}" for key, value in found.as_paddleclas().items()), flush=True
        )
        print("Predict complete!")
    elif form is Form.INFER:
        waiting: list[dict[str, Any]] = []

        def write(prediction: Prediction) -> None:
            waiting.append(prediction.as_paddleclas(command="infer"))
            if len(waiting) == batch:
                print(waiting, flush=True)
                waiting.clear()

        yield write
        if waiting:
            print(waiting)
    else:
        base_name = form is Form.PREDICT_CLS
        yield lambda found: print(found.as_text(base_name=base_name), flush=True)


@contextmanager
def write_json_list(stream: IO[str]) -> Iterator[Write]:
    """Yield what writes a prediction as an object of a JSON list, a line each; the list ends with the context."""
    begun = False

    def write(prediction: Prediction) -> None:
        nonlocal begun
        stream.write(",\n" if begun else "[\n")
        stream.write(json.dumps(prediction.as_dict(), ensure_ascii=False))
        begun = True

    yield write
    stream.write("\n]\n" if begun else "[]\n")


@contextmanager
def write_csv(stream: IO[str]) -> Iterator[Write]:
    """Yield what writes a prediction as rows of a table, which begins with the names of its columns."""
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(COLUMNS)
    yield lambda prediction: table.writerows(prediction.as_rows())
