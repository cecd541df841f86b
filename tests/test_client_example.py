"""examples/client.py, over REST and gRPC, and clients of Paddle Serving: they get the answers of `predict`."""

from __future__ import annotations

import ast
import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from run_fixtures import NAME, REPOSITORY, TinyWorkspace
from serve_fixtures import Server, encoded, running

from pipeline import Classifier
from pipeline.run.prediction import Prediction

# Found, not imported: the two libraries cannot be in one process, as both bring the protocol's messages.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("kserve") is None, reason="the server needs the extra `serve`"),
]


@pytest.fixture(scope="module")
def server(tiny_workspace_master: TinyWorkspace) -> Iterator[Server]:
    with running(tiny_workspace_master.package, "-b", "2", "-i", "1") as server:
        yield server


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for index, path in enumerate(paths):
        path.write_bytes(encoded(index))
    return paths


def predicted(server: Server, images: list[Path], topk: int) -> list[Prediction]:
    with Classifier(server.package.prefix) as classifier:
        return list(classifier.predict(images, topk=topk))


def run_client(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "examples" / "client.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_client_prints_what_predict_answers(server: Server, images: list[Path], protocol: str) -> None:
    if protocol == "grpc" and find_spec("tritonclient") is None:
        pytest.skip("tritonclient is not installed")
    where = ("--url", f"http://{server.http}")
    flags = where if protocol == "rest" else ("--grpc", "--url", f"http://{server.grpc}", "--model", NAME)
    done = run_client(*flags, "--topk", 2, *images)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    expected = predicted(server, images, 2)
    assert [row[0] for row in rows] == [str(path) for path in images for _ in range(2)]
    assert [int(row[1]) for row in rows] == [each for found in expected for each in found.class_ids]
    assert [float(row[2]) for row in rows] == pytest.approx(
        [score for found in expected for score in found.scores], abs=1e-5
    )
    assert [row[3] for row in rows] == [label for found in expected for label in found.labels]


def test_client_says_what_is_wrong_in_a_line(server: Server, tmp_path: Path) -> None:
    (tmp_path / "not.jpg").write_bytes(b"GIF87a--")
    done = run_client("--url", f"http://{server.http}", tmp_path / "not.jpg")
    assert done.returncode == 1
    assert done.stderr.startswith("error: 400: image: ") and done.stderr.count("\n") == 1


def test_clients_of_paddle_serving_get_the_answer_of_their_service(server: Server, images: list[Path]) -> None:
    values = [base64.b64encode(path.read_bytes()).decode() for path in images]
    body = json.dumps({"key": ["image", "image1", "image2"], "value": values}).encode()
    status, found = server.post("/imagenet/prediction", body)  # their service has a name of its own
    assert status == 200
    assert (found["err_no"], found["err_msg"], found["key"], found["tensors"]) == (0, "", ["label", "prob"], [])
    labels, scores = map(ast.literal_eval, found["value"])
    expected = predicted(server, images, 1)
    assert labels == [each.labels[0] for each in expected]
    assert scores == pytest.approx([each.scores[0] for each in expected], abs=1e-6)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{", "got no JSON"),
        (b"[]", 'expected {"key": ["image", ...], "value": [BASE64, ...]}'),
        (b'{"key": ["image"], "value": []}', 'expected {"key": ["image", ...], "value": [BASE64, ...]}'),
        (b'{"key": [], "value": []}', 'expected {"key": ["image", ...], "value": [BASE64, ...]}'),
        (b'{"key": ["image"], "value": ["?"]}', "value of image: expected an image file in base64"),
        (b'{"key": ["image"], "value": [1]}', "value of image: expected an image file in base64"),
        (b'{"key": ["image"], "value": ["AAAA"]}', "image: "),
    ],
)
def test_a_request_that_paddle_serving_would_not_take_is_a_fault(server: Server, body: bytes, text: str) -> None:
    status, found = server.post("/imagenet/prediction", body)
    assert status == 400 and text in found["error"]
