from __future__ import annotations

import json

from pipeline.run.prediction import Prediction


def test_prediction_turns_into_a_dict() -> None:
    found = Prediction("a.jpg", (2, 0), (0.7, 0.1234567), ("two", "zero")).as_dict()
    assert json.loads(json.dumps(found)) == {
        "file_name": "a.jpg",
        "class_ids": [2, 0],
        "scores": [0.7, 0.123457],
        "label_names": ["two", "zero"],
    }
