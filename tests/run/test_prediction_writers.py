"""prediction_writers.py: answers one after the other, in each form."""

from __future__ import annotations

import io
import json

import pytest

from pipeline.run.prediction import Prediction
from pipeline.run.prediction_writers import Form, write_csv, write_json_list, write_lines

HEN = Prediction("farm/hen.jpg", class_ids=(8, 7), scores=(0.979684, 0.02), labels=("hen", "cock"))
COCK = Prediction("farm/cock.jpg", class_ids=(7,), scores=(1.0,), labels=("cock, rooster",))


@pytest.mark.parametrize(
    ("form", "lines"),
    [
        (
            Form.PLAIN,
            [
                "farm/hen.jpg:\tclass id(s): [8, 7], score(s): [0.98, 0.02], label_name(s): ['hen', 'cock']",
                "farm/cock.jpg:\tclass id(s): [7], score(s): [1.00], label_name(s): ['cock, rooster']",
            ],
        ),
        (
            Form.PREDICT_CLS,
            [
                "hen.jpg:\tclass id(s): [8, 7], score(s): [0.98, 0.02], label_name(s): ['hen', 'cock']",
                "cock.jpg:\tclass id(s): [7], score(s): [1.00], label_name(s): ['cock, rooster']",
            ],
        ),
        (
            Form.PIP,
            [
                "class_ids: [8, 7], scores: [0.97968, 0.02], label_names: ['hen', 'cock'], filename: farm/hen.jpg",
                "class_ids: [7], scores: [1.0], label_names: ['cock, rooster'], filename: farm/cock.jpg",
                "Predict complete!",
            ],
        ),
    ],
)
def test_lines_are_those_of_the_program(form: Form, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with write_lines(form, 1) as write:
        write(HEN)
        write(COCK)
    assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.parametrize(("batch", "sizes"), [(1, [1, 1, 1]), (2, [2, 1]), (8, [3])])
def test_infer_prints_a_list_a_batch(batch: int, sizes: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    with write_lines(Form.INFER, batch) as write:
        for found in (HEN, COCK, HEN):
            write(found)
    lines = [json.loads(line.replace("'", '"')) for line in capsys.readouterr().out.splitlines()]
    assert [len(line) for line in lines] == sizes
    assert list(lines[0][0]) == ["class_ids", "scores", "file_name", "label_names"]


@pytest.mark.parametrize("given", [[], [HEN], [HEN, COCK]])
def test_json_is_a_list_of_what_as_dict_has(given: list[Prediction]) -> None:
    stream = io.StringIO()
    with write_json_list(stream) as write:
        for found in given:
            write(found)
    assert json.loads(stream.getvalue()) == [found.as_dict() for found in given]


def test_csv_has_a_row_a_class_below_its_columns() -> None:
    stream = io.StringIO()
    with write_csv(stream) as write:
        write(HEN)
        write(COCK)
    assert stream.getvalue().splitlines() == [
        "file,rank,class_id,score,label",
        "farm/hen.jpg,1,8,0.979684,hen",
        "farm/hen.jpg,2,7,0.020000,cock",
        'farm/cock.jpg,1,7,1.000000,"cock, rooster"',
    ]
