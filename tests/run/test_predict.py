"""predict.py and its command on a package that a build made: the same answers from every kind of image."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import FinishedBuild
from onnx import helper
from PIL import Image

from pipeline import Classifier
from pipeline.building import build
from pipeline.commands.cli import main
from pipeline.config.build_config import BuildConfig
from pipeline.data import npz, preprocess
from pipeline.errors import DataError
from pipeline.onnx_models import classifier as onnx_classifier
from pipeline.onnx_models.scores import Scores
from pipeline.packages.package import open_package
from pipeline.run import sweep, sweep_record
from pipeline.runtimes.base import Runtime
from pipeline.runtimes.opening import open_backend, place

MakeConfig = Callable[..., BuildConfig]


@pytest.fixture
def prefix(finished: FinishedBuild) -> Path:
    return finished.built.prefix


@pytest.fixture
def paths(image_tree: Path) -> list[Path]:
    """All 24 images."""
    return sorted(image_tree.rglob("*.JPEG"))


def probabilities(prefix: Path, paths: list[Path]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    package = open_package(prefix)
    batch = np.stack([preprocess.load(package.preprocess(), path, raw=package.takes_pixels) for path in paths])
    with open_backend(Runtime.ONNXRUNTIME, package.model, batch=len(batch), placement=place(1, 1)) as backend:
        logits = backend.infer(batch).astype(np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("batch", [0, 1, 5, 64])
def test_predict_gives_the_models_answers_in_order(prefix: Path, paths: list[Path], batch: int) -> None:
    expected = probabilities(prefix, paths)
    with Classifier(prefix, runtime="onnxruntime", batch=batch) as classifier:
        found = list(classifier.predict(paths, topk=3))
        ids = [known.id for known in classifier.package.classes()]
    assert [prediction.source for prediction in found] == [str(path) for path in paths]
    for prediction, shares in zip(found, expected, strict=True):
        assert list(prediction.class_ids) == list(np.argsort(-shares, kind="stable")[:3])
        np.testing.assert_allclose(prediction.scores, np.sort(shares)[::-1][:3], atol=1e-4)
        assert prediction.labels == tuple(ids[index] for index in prediction.class_ids)
    right = sum(prediction.labels[0] == path.parent.name for prediction, path in zip(found, paths, strict=True))
    assert right >= 22


def test_predict_takes_files_pillow_images_arrays_and_npz(prefix: Path, paths: list[Path], tmp_path: Path) -> None:
    path = paths[0]
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    npz.write_image_npz(tmp_path / "one.npz", preprocess.decode(path))
    with Classifier(prefix) as classifier:
        found = list(classifier.predict([path, str(path), image, np.asarray(image), tmp_path / "one.npz"]))
    assert {(each.class_ids, each.scores) for each in found} == {(found[0].class_ids, found[0].scores)}
    assert [each.source for each in found[2:4]] == ["image 3", "image 4"]
    assert len(found[0].class_ids) == 4  # topk of 5, but no more classes


@pytest.mark.parametrize("kind", [str, Path, "file url", "folder", "pillow", "array", "generator", "array of images"])
def test_predict_yields_predictions_when_given_one_image_of_any_kind(
    prefix: Path, image_tree: Path, paths: list[Path], kind: object
) -> None:
    path = image_tree / "n90000003" / "n90000003_1.JPEG"
    with Image.open(path) as opened:
        array = np.asarray(opened)
        given: dict[object, tuple[object, list[str]]] = {
            str: (str(path), [str(path)]),
            Path: (path, [str(path)]),
            "file url": (f"file://{path}", [f"file://{path}"]),
            "folder": (str(path.parent), [str(each) for each in paths if each.parent == path.parent]),
            "pillow": (opened, ["image 1"]),
            "array": (array, ["image 1"]),
            "generator": ((each for each in [path, array]), [str(path), "image 2"]),
            "array of images": (np.stack([array, array]), ["image 1", "image 2"]),
        }
        images, names = given[kind]
        with Classifier(prefix, batch=2) as classifier:
            found = list(classifier.predict(images))  # type: ignore[arg-type]
            (wanted,) = classifier.predict([path])
    assert [each.source for each in found] == names
    at = names.index(str(path)) if str(path) in names else 0
    assert found[at].class_ids == wanted.class_ids
    assert found[at].scores == pytest.approx(wanted.scores, abs=1e-6)
    assert all(each.labels[0] == "n90000003" for each in found)


@pytest.mark.parametrize("images", [b"\xff\xd8", 3, None])
def test_predict_says_what_it_takes_when_given_something_else(prefix: Path, images: object) -> None:
    with Classifier(prefix) as classifier, pytest.raises(TypeError, match="images: expected a path, URL, Pillow image"):
        list(classifier.predict(images))  # type: ignore[arg-type]


def test_predict_names_what_is_no_image_among_several(prefix: Path, paths: list[Path]) -> None:
    told = r"^image 2: expected a path, URL, Pillow image or uint8 \[H, W, 3\], got NoneType$"
    with Classifier(prefix) as classifier, pytest.raises(DataError, match=told):
        list(classifier.predict([paths[0], None]))  # type: ignore[list-item]


def test_predict_mixes_folders_and_files_in_the_order_given(
    prefix: Path, image_tree: Path, paths: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with Classifier(prefix) as classifier:
        found = list(classifier.predict([paths[-1], image_tree / "n90000001", paths[8]], topk=1))
        assert [each.source for each in found] == [str(each) for each in (paths[-1], *paths[:6], paths[8])]
        with pytest.raises(DataError, match=r"empty: no images in this folder"):
            list(classifier.predict([paths[0], tmp_path / "empty"]))


def test_predict_takes_one_opened_image_many_times(prefix: Path, paths: list[Path]) -> None:
    with Image.open(paths[0]) as opened, Classifier(prefix, batch=2) as classifier:  # which is not loaded yet
        found = list(classifier.predict([opened] * 40))
    assert len({(each.class_ids, each.scores) for each in found}) == 1


def test_predict_names_the_pillow_image_that_is_cut_short(prefix: Path, paths: list[Path]) -> None:
    cut = Image.open(io.BytesIO(paths[0].read_bytes()[:700]))
    with Classifier(prefix) as classifier, pytest.raises(DataError, match=r"^image 2: image: cannot be decoded"):
        list(classifier.predict([paths[0], cut]))


def test_predict_is_a_generator_that_can_be_left_and_used_again(prefix: Path, paths: list[Path]) -> None:
    taken = []

    def endless() -> object:
        while True:
            for path in paths:
                taken.append(path)
                yield path

    before = threading.active_count()
    with Classifier(prefix, batch=2) as classifier:
        predictions = classifier.predict(endless())  # type: ignore[arg-type]
        first = [next(predictions) for _ in range(4)]
        predictions.close()
        assert threading.active_count() == before
        assert len(taken) < 40
        again = list(classifier.predict(paths[:4]))
        assert [each.class_ids for each in again] == [each.class_ids for each in first]
        assert list(classifier.predict([])) == []


def test_predict_names_a_bad_image_or_skips_it(prefix: Path, paths: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.JPEG"
    bad.write_bytes(paths[0].read_bytes()[:300])
    images: list[Path | np.ndarray] = [paths[0], bad, np.zeros((4, 4), np.uint8), paths[1], tmp_path / "gone.jpg"]
    with Classifier(prefix) as classifier:
        with pytest.raises(DataError, match=r"bad\.JPEG: cannot be decoded"):
            list(classifier.predict(images))
        skipped: list[tuple[str, str]] = []
        found = list(classifier.predict(images, skip=lambda name, reason: skipped.append((name, str(reason)))))
    assert [each.source for each in found] == [str(paths[0]), str(paths[1])]
    assert sorted(skipped)[1:] == [
        (str(tmp_path / "gone.jpg"), f"{tmp_path}/gone.jpg: no such file"),
        ("image 3", "image 3: expected uint8 [H, W, 3], got uint8 [4, 4]"),
    ]


def test_classifier_takes_what_a_sweep_found(prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INT8_PIPELINE_CACHE", str(tmp_path / "cache"))
    package = open_package(prefix)
    best = sweep.Point(sweep.Setting("onnxruntime", 3, 1), 1.0, 1.0)
    sweep_record.remember(package, sweep.Sweep((best,), best, None))
    with Classifier(prefix) as classifier:
        assert (classifier.runtime, classifier.batch) == (Runtime.ONNXRUNTIME, 3)
    with Classifier(prefix, batch=2) as classifier:
        assert classifier.batch == 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"batch": -1}, "batch: expected 0 or more, got -1"),
        ({"cores": 0}, "cores: expected 1 or more, got 0"),
        ({"runtime": "tvm"}, "runtime 'tvm': expected auto, openvino, onnxruntime"),
    ],
)
def test_classifier_refuses_wrong_arguments(prefix: Path, arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Classifier(prefix, **arguments)  # type: ignore[arg-type]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_command_prints_a_line_an_image_as_paddleclas_does(
    prefix: Path, paths: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    code, printed, _ = run(capsys, "predict", "-m", prefix, paths[0], "--topk", 2)
    assert code == 0
    line = printed.splitlines()[0]
    assert re.fullmatch(
        rf"{re.escape(str(paths[0]))}:\tclass id\(s\): \[0, [123]\], score\(s\): \[[01]\.\d\d, 0\.\d\d\], "
        r"label_name\(s\): \['n90000001', 'n9000000[234]'\]",
        line,
    )


def test_command_writes_json_and_csv_of_folders(
    prefix: Path, image_tree: Path, paths: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run(capsys, "predict", "-m", prefix, image_tree, "--json", tmp_path / "out.json")[0] == 0
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [each["file_name"] for each in written] == [str(path) for path in paths]
    assert set(written[0]) == {"file_name", "class_ids", "scores", "label_names"}
    code, printed, _ = run(capsys, "predict", "-m", prefix, image_tree, "--csv", "-", "--topk", 1)
    rows = list(csv.reader(io.StringIO(printed)))
    assert (code, rows[0]) == (0, ["file", "rank", "class_id", "score", "label"])
    assert [row[2] for row in rows[1:]] == [str(each["class_ids"][0]) for each in written]


def test_command_answers_the_good_images_and_names_the_bad_ones(
    prefix: Path, image_tree: Path, paths: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("n90000002/broken.png", "n90000003/cut.JPEG"):
        (image_tree / name).write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    capsys.readouterr()
    arguments = ("predict", "-m", prefix, image_tree, "--json", tmp_path / "out.json")
    code, _, said = run(capsys, *arguments)
    assert code == 2
    faults = [line for line in said.splitlines() if line.startswith("error: ")]
    assert sorted(faults[:2]) == [
        f"error: {image_tree}/{name}: cannot be decoded as an image: it is of no format that is read here"
        for name in ("n90000002/broken.png", "n90000003/cut.JPEG")
    ]
    assert faults[2:] == [
        "error: 2 of 26 images cannot be read; the others are answered; add --skip_bad to accept that"
    ]
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [each["file_name"] for each in written] == [str(path) for path in paths]
    (tmp_path / "out.json").unlink()
    code, _, said = run(capsys, *arguments, "--skip_bad")
    assert code == 0
    assert "skipped: " in said
    assert said.endswith("2 of 26 images skipped\n")
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == written


def test_command_is_an_error_when_no_image_is_good(
    prefix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.ppm").write_bytes(b"P6 but no more")
    capsys.readouterr()
    code, printed, said = run(capsys, "predict", "-m", prefix, tmp_path / "bad.ppm")
    assert (code, printed) == (2, "")
    assert f"error: {tmp_path}/bad.ppm: cannot be decoded as an image" in said
    assert said.endswith("error: 1 of 1 images cannot be read; add --skip_bad to accept that\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("gone.jpg",), "gone.jpg: no such file"),
        (("empty",), "empty: no images in this folder"),
        (("a.jpg", "--topk", "0"), "--topk: expected a number of at least 1"),
        (("a.jpg", "--json", "a", "--csv", "b"), "not allowed with argument"),
    ],
)
def test_command_says_what_is_wrong_in_a_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    try:
        code = main(["predict", *arguments])
    except SystemExit as ended:
        code = int(ended.code or 0)
    errors = capsys.readouterr().err
    assert code == 2
    assert errors.startswith("error: ")
    assert text in errors
    assert len(errors.splitlines()) == 1


def test_command_prints_names_that_are_no_text(prefix: Path, paths: list[Path], tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    Path(os.fsdecode(odd)).write_bytes(paths[0].read_bytes())
    arguments: list[str | bytes] = [sys.executable, "-m", "pipeline", "predict", "-m", str(prefix), odd]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(arguments, capture_output=True, check=True, env=environment)
    assert b"caf\\udce9.jpg:\tclass id(s): [0, " in done.stdout
    code = main(["predict", "-m", str(prefix), os.fsdecode(odd), "--json", str(tmp_path / "out.json")])
    assert code == 0
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))[0]["class_ids"][0] == 0


ENDINGS = {
    "softmax_reshaped": (
        [
            helper.make_node("Softmax", ["logits"], ["s"], "soft"),
            helper.make_node("Flatten", ["s"], ["scores"], "flat"),
        ],
        Scores.SOFTMAX,
        "note: the outputs are probabilities already: the network ends in a softmax",
    ),
    "sigmoid": (
        [helper.make_node("Sigmoid", ["logits"], ["scores"], "each")],
        Scores.SIGMOID,
        "note: the outputs are sigmoids: an independent score for each label, which do not sum to 1 over the classes",
    ),
    "hardmax": (
        [helper.make_node("Hardmax", ["logits"], ["scores"], "one")],
        Scores.OTHER,
        "note: the outputs are neither logits nor probabilities of one class (such as Hardmax, ",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("softmax_asked", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_predict_gives_the_networks_own_scores_when_it_ends_in_scores(
    ending: str,
    softmax_asked: bool,
    make_config: MakeConfig,
    ending_in: Callable[..., Path],
    paths: list[Path],
    batch_nchw: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> None:
    nodes, scores, line = ENDINGS[ending]
    given = ending_in(*nodes)
    wanted = ["graph.extra_ops.type=softmax"] if softmax_asked else []
    said: list[str] = []
    built = build(make_config(f"frontend.checkpoint={given}", *wanted), said.append)
    (found_line,) = (each for each in said if each.startswith("note: the outputs"))
    assert found_line.startswith(line)
    assert found_line.endswith("; the softmax of graph.extra_ops is not appended") is softmax_asked
    own = onnx_classifier.run(onnx.load(given), batch_nchw)
    with Classifier(built.prefix) as classifier:
        assert classifier.package.scores is scores
        for prediction, row in zip(classifier.predict(paths, topk=4), own, strict=True):
            np.testing.assert_allclose(prediction.scores, row[list(prediction.class_ids)], atol=0.03)


@pytest.mark.slow
def test_predict_gives_probabilities_when_the_network_ends_in_a_log_softmax(
    make_config: MakeConfig, ending_in: Callable[..., Path], paths: list[Path]
) -> None:
    given = ending_in(helper.make_node("LogSoftmax", ["logits"], ["scores"], "log"))
    built = build(make_config(f"frontend.checkpoint={given}"), lambda line: None)
    with Classifier(built.prefix) as classifier:
        assert classifier.package.scores is Scores.LOG_SOFTMAX
        for prediction in classifier.predict(paths[:4], topk=4):
            assert sum(prediction.scores) == pytest.approx(1)
            assert prediction.scores[0] > 0.8
