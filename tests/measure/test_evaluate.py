from __future__ import annotations

import glob
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image
from run_fixtures import (
    CLASS_IDS,
    IMAGES,
    SPEC,
    TinyWorkspace,
    float32_model,
    plain_answers,
    read_local_datalist,
    write_package,
    write_scores,
)

from pipeline.artefacts import write_json, write_manifest
from pipeline.commands.cli import main
from pipeline.config.vdsp import to_vdsp_dict
from pipeline.data import npz
from pipeline.errors import DataError, PipelineError
from pipeline.measure import bench, reference
from pipeline.measure.accuracy import Accuracy
from pipeline.measure.comparison import compare_answers
from pipeline.measure.evaluate import evaluate as run_evaluate
from pipeline.measure.load import Load
from pipeline.measure.result_scores import load_ranks
from pipeline.quant.divergence import Divergence
from pipeline.run import runner
from pipeline.run.plan import Entry
from pipeline.run.results import read_run

COUNT = len(CLASS_IDS)


def bench_tiny(space: TinyWorkspace, out: Path) -> Path:
    bench.run_accuracy(space.package, Load(batch=4), space.package.preprocess(), space.datalist, out)
    return out


@pytest.fixture
def out(in_workspace: TinyWorkspace, tmp_path: Path) -> Path:
    """Results of the tiny package over its own images."""
    return bench_tiny(in_workspace, tmp_path / "output")


@pytest.fixture
def by_hand(tiny: TinyWorkspace, tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Results with random answers, which say that they are the tiny package's; and the answers."""
    scores = np.random.default_rng(5).normal(0, 1, (IMAGES, COUNT)).astype(np.float32)
    write_by_hand(tiny, tmp_path / "by_hand", scores)
    return tmp_path / "by_hand", scores


def write_by_hand(space: TinyWorkspace, out: Path, scores: np.ndarray) -> None:
    facts = {
        "package": str(space.prefix),
        "model_sha256": space.package.digest,
        "runtime": "onnxruntime",
        "preprocess": to_vdsp_dict(SPEC),
        "datalist": str(space.datalist),
    }
    write_scores(out, space.images, scores, **facts)


def slow_top(scores: np.ndarray, truth: list[int], k: int) -> int:
    """Count the rows whose true class has fewer than k better ones; of equal scores the lower class is better."""
    correct = 0
    for row, wanted in zip(scores.tolist(), truth, strict=True):
        better = sum(x > row[wanted] or (x == row[wanted] and i < wanted) for i, x in enumerate(row))
        correct += better < k
    return correct


def build_truth() -> list[int]:
    return [index % COUNT for index in range(IMAGES)]


def test_evaluation_equals_the_slow_reference(tiny: TinyWorkspace, by_hand: tuple[Path, np.ndarray]) -> None:
    folder, scores = by_hand
    found = run_evaluate(folder)
    truth = build_truth()
    expected = np.concatenate([npz.read_result_npz(s.result) for s in read_run(_reference_folder(tiny), None).entries])
    assert found.reference is not None
    assert found.top1 == Accuracy(slow_top(scores, truth, 1), IMAGES)
    assert found.top5 == Accuracy(slow_top(scores, truth, 5), IMAGES)
    assert found.reference.top1 == Accuracy(slow_top(expected, truth, 1), IMAGES)
    assert found.reference.top5 == Accuracy(slow_top(expected, truth, 5), IMAGES)
    int8, float32 = scores.argmax(axis=1).tolist(), expected.argmax(axis=1).tolist()
    pairs = list(zip(int8, float32, truth, strict=True))
    assert found.reference.agreement == Accuracy(sum(a == b for a, b, _ in pairs), IMAGES)
    assert found.reference.right_to_wrong == sum(b == t != a for a, b, t in pairs)
    assert found.reference.wrong_to_right == sum(a == t != b for a, b, t in pairs)
    changed = [f"flat/ILSVRC2012_tiny_{i:04d}" for i, (a, b, _) in enumerate(pairs) if a != b]
    assert [flip.name for flip in found.reference.flips] == changed
    answers = [(flip.truth, flip.float32, flip.answer) for flip in found.reference.flips]
    assert answers == [(t, b, a) for a, b, t in pairs if a != b]
    assert all(flip.image.is_file() for flip in found.reference.flips)
    assert 0 < len(changed) < IMAGES
    separately = Divergence()
    separately.add(expected, scores)
    assert found.reference.divergence.kl == pytest.approx(separately.kl)
    assert found.reference.divergence.sqnr_db == pytest.approx(separately.sqnr_db)


def _reference_folder(space: TinyWorkspace) -> Path:
    (folder,) = (path for path in (space.deploy / ".cache" / "reference").iterdir() if path.is_dir())
    return folder


def test_reference_is_the_float32_models_answers(out: Path, in_workspace: TinyWorkspace) -> None:
    found = run_evaluate(out)
    samples = read_run(_reference_folder(in_workspace), None).entries
    answers = np.concatenate([npz.read_result_npz(sample.result) for sample in samples])
    package = in_workspace.package
    shutil.copy(in_workspace.float32_model, package.model)
    np.testing.assert_allclose(answers, plain_answers(package, in_workspace.images), atol=1e-4)
    assert found.reference is not None
    assert found.reference.agreement.correct >= IMAGES - 4  # a sound int8 model


def documented_scores(result_path: Path, datalist: Path, label: Path) -> tuple[int, int]:
    """Return the right first and first-five answers as the documents' scoring script counts them.

    It takes every file of the folder, sorted, for the answer to the line of the datalist in that place, knows an image
    by its name up to the first dot, and reads labels as `name index`.
    """
    stems = [line.strip().split("/")[-1].split(".")[0] for line in datalist.read_text().splitlines()]
    lines = (line.split() for line in label.read_text().splitlines())
    truth = {name.split(".")[0]: int(index) for name, index in lines}
    first = five = 0
    for position, name in enumerate(sorted(glob.glob(f"{result_path}/*"))):  # noqa: PTH207  as such scripts have it
        with np.load(name) as result:
            scores = result["output_0"][0]
        best = np.argsort(scores)[::-1][:5].tolist()
        first += best[0] == truth[stems[position]]
        five += truth[stems[position]] in best
    return first, five


def test_scripts_of_the_documents_count_the_same_answers(in_workspace: TinyWorkspace, tmp_path: Path) -> None:
    datalist, label, folder = tmp_path / "list.txt", tmp_path / "val_label.txt", tmp_path / "output"
    images = in_workspace.images[::-1]  # an order that is not that of their names
    npz.write_datalist(datalist, images)
    truth = dict(zip(in_workspace.images, build_truth(), strict=True))
    label.write_text("".join(f"{image.stem}.JPEG {truth[image]}\n" for image in images))
    bench.run_accuracy(in_workspace.package, Load(batch=4), SPEC, datalist, folder)
    found = run_evaluate(folder, datalist=datalist, reference=False)
    assert documented_scores(folder, datalist, label) == (found.top1.correct, found.top5.correct)
    by_label = run_evaluate(folder, datalist=datalist, label=label, reference=False)
    assert (by_label.top1, by_label.top5) == (found.top1, found.top5)
    shutil.rmtree(in_workspace.folder)
    alone = run_evaluate(folder, datalist=datalist, label=label)
    assert (alone.top1, alone.top5) == (found.top1, found.top5)


def test_ties_go_to_the_lower_class(tmp_path: Path) -> None:
    samples = []
    for index, row in enumerate(([1, 3, 3, 0, 3, 2, 2], [0] * 7)):
        samples.append(Entry(tmp_path / "x", tmp_path / f"{index}.npz"))
        npz.write_result_npz(samples[-1].result, np.array([row], np.float32))
    assert load_ranks(samples, 7).tolist() == [[1, 2, 4, 5, 6], [0, 1, 2, 3, 4]]


def sort_classes(row: list[float]) -> list[int]:
    return sorted(range(len(row)), key=lambda index: (-row[index], index))


@pytest.mark.parametrize("classes", [2, 3, 5, 6, 1000])
def test_load_ranks_equals_sorting(tmp_path: Path, classes: int) -> None:
    scores = np.random.default_rng(0).integers(0, 40, (20, classes)).astype(np.float32)  # many ties
    samples = [Entry(tmp_path / "x", tmp_path / f"{index}.npz") for index in range(len(scores))]
    for sample, row in zip(samples, scores, strict=True):
        npz.write_result_npz(sample.result, row[None])
    expected = [sort_classes(row)[:5] for row in scores.tolist()]
    assert load_ranks(samples, classes).tolist() == expected


def test_compare_counts_flips_of_each_kind() -> None:
    truth = np.array([0, 1, 2, 0, 1])
    int8 = np.array([[0, 1], [0, 1], [2, 0], [1, 2], [0, 2]])
    float32 = np.array([[0, 2], [1, 0], [1, 0], [2, 0], [0, 1]])
    found = compare_answers(int8, float32, Divergence(), truth, [Path("x", f"{name}.npz") for name in "abcde"])
    assert [flip.name for flip in found.flips] == ["x/b", "x/c", "x/d"]
    assert (found.right_to_wrong, found.wrong_to_right) == (1, 1)
    assert found.p_value == 1
    assert found.change_interval == pytest.approx((-53.6, 53.6), abs=0.1)
    assert (found.agreement.correct, found.top1.correct, found.top5.correct) == (2, 2, 4)


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [
        # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3: Wilson's without continuity correction
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_interval_is_the_published_one(correct: int, count: int, low: float, high: float) -> None:
    found = Accuracy(correct, count).interval
    assert found == pytest.approx((100 * low, 100 * high), abs=0.005)


def test_interval_stays_within_0_and_100() -> None:
    assert Accuracy(0, 10).interval[0] == pytest.approx(0.0, abs=1e-9)
    assert Accuracy(10, 10).interval[1] == pytest.approx(100.0, abs=1e-9)
    assert Accuracy(10, 10).interval[0] < 75


def test_val_label_comes_before_folder_and_build(by_hand: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, scores = by_hand
    answers = scores.argmax(axis=1)
    lines = [f"ILSVRC2012_tiny_{index:04d}.JPEG {answer}\n" for index, answer in enumerate(answers)]
    (tmp_path / "val_label.txt").write_text("".join(lines))
    found = run_evaluate(folder, val_label=tmp_path / "val_label.txt", reference=False)
    assert found.top1 == Accuracy(IMAGES, IMAGES)


@pytest.mark.slow
def test_list_beside_the_images_decides_when_image2npz_found_it(
    tiny: TinyWorkspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images with names of ImageNet's, whose official labels are others, and a list of their own in either place."""
    data = tmp_path / "data"
    (data / "val").mkdir(parents=True)
    truth = {f"ILSVRC2012_val_{number:08d}": number % COUNT for number in range(1, 9)}
    for number, stem in enumerate(truth):
        Image.fromarray(np.full((40, 40, 3), 30 * number, np.uint8)).save(data / "val" / f"{stem}.JPEG")
    for place in (data / "val_list.txt", data / "val" / "val_label.txt"):
        place.write_text("".join(f"val/{stem}.JPEG {index}\n" for stem, index in truth.items()))
        target, datalist = tmp_path / f"npz_{place.stem}", tmp_path / f"{place.stem}_datalist.txt"
        line = ["image2npz", "--dataset_path", data / "val", "--target_path", target, "--text_path", datalist]
        assert main([*map(str, line), "--workers", "1"]) == 0
        assert f"labels of 8 images by {place}, kept beside the npz files for eval" in capsys.readouterr().out
        out = tmp_path / f"out_{place.stem}"
        bench.run_accuracy(tiny.package, Load(), tiny.package.preprocess(), datalist, out)
        found = run_evaluate(out, reference=False)
        images = read_local_datalist(datalist)
        answers = plain_answers(tiny.package, images).argmax(axis=1)
        wanted = np.array([truth[image.stem] for image in images])
        assert found.top1 == Accuracy(int((answers == wanted).sum()), 8)
        place.unlink()


def test_image2npz_keeps_no_labels_when_the_list_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "val").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "val" / "a.JPEG")
    (tmp_path / "val_list.txt").write_text("only names\n")
    line = ["image2npz", "--dataset_path", tmp_path / "val", "--target_path", tmp_path / "npz", "--workers", "1"]
    assert main([*map(str, line), "--text_path", str(tmp_path / "list.txt")]) == 0
    found = capsys.readouterr()
    assert f"note: labels are not kept: {tmp_path}/val_list.txt:1: expected 'name index'" in found.err
    assert [path.name for path in (tmp_path / "npz" / "val").iterdir()] == ["a.npz"]


def test_class_folder_comes_before_the_build(tiny: TinyWorkspace, tmp_path: Path) -> None:
    moved = []
    for path in tiny.images:  # the build's list says class 0, 1, 2, ...; all of them now lie in the folder of class 3
        (tmp_path / CLASS_IDS[3]).mkdir(exist_ok=True)
        moved.append(Path(shutil.copy(path, tmp_path / CLASS_IDS[3] / path.name)))
    npz.write_datalist(tmp_path / "moved.txt", moved)
    out = tmp_path / "out"
    bench.run_accuracy(tiny.package, Load(), tiny.package.preprocess(), tmp_path / "moved.txt", out)
    found = run_evaluate(out, reference=False)
    answers = plain_answers(tiny.package, moved).argmax(axis=1)
    assert found.top1.correct == int((answers == 3).sum())


def test_val_label_that_lacks_a_sample_falls_back_and_one_out_of_range_is_refused(
    by_hand: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    folder, scores = by_hand
    label = tmp_path / "label.txt"
    label.write_text(f"ILSVRC2012_tiny_0000 {scores[0].argmax()}\n")
    truth = build_truth()
    truth[0] = int(scores[0].argmax())
    found = run_evaluate(folder, val_label=label, reference=False)
    assert found.top1.correct == slow_top(scores, truth, 1)
    label.write_text(f"ILSVRC2012_tiny_0000 {COUNT}\n")
    with pytest.raises(DataError, match=f"class index {COUNT}, expected 0 to {COUNT - 1}"):
        run_evaluate(folder, val_label=label, reference=False)


def test_package_built_again_since_is_refused(out: Path, in_workspace: TinyWorkspace) -> None:
    write_package(in_workspace.folder, float32_model(seed=7))
    with pytest.raises(DataError) as raised:
        run_evaluate(out)
    text = f"{in_workspace.prefix}: was built again since these results were made; run bench again"
    assert str(raised.value) == text


def test_package_that_is_gone_leaves_the_labels_to_the_flag(out: Path, in_workspace: TinyWorkspace) -> None:
    labels = in_workspace.datalist.parent / "val_label.txt"
    (in_workspace.root / "names.txt").write_text("".join(f"{class_id}\n" for class_id in CLASS_IDS))
    with_package = run_evaluate(out, reference=False)
    shutil.rmtree(in_workspace.folder)
    with pytest.raises(DataError) as raised:
        run_evaluate(out)
    assert str(raised.value) == "the package of these results is not here; give the class names with --label FILE"
    flags: dict[str, Any] = {"label": in_workspace.root / "names.txt", "val_label": labels}
    assert run_evaluate(out, **flags).top1 == with_package.top1
    assert run_evaluate(out, **flags).facts["sample"] is True
    with pytest.raises(DataError) as raised:
        run_evaluate(out, **flags, reference=True)
    text = f"--reference: {in_workspace.prefix} is not here any more; make them with bench"
    assert str(raised.value) == text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_result_that_is_not_finite_is_named(tiny: TinyWorkspace, tmp_path: Path, value: float) -> None:
    scores = np.zeros((IMAGES, COUNT), np.float32)
    scores[4, 2] = value
    write_by_hand(tiny, tmp_path / "out", scores)
    with pytest.raises(DataError) as raised:
        run_evaluate(tmp_path / "out")
    result = tmp_path / "out" / "000004-ILSVRC2012_tiny_0004.npz"
    assert str(raised.value) == f"{result}: holds NaN or Inf; run bench again"


def test_wrong_number_of_classes_is_named(tiny: TinyWorkspace, tmp_path: Path) -> None:
    write_by_hand(tiny, tmp_path / "out", np.zeros((IMAGES, COUNT + 1), np.float32))
    with pytest.raises(DataError, match=r"000000-ILSVRC2012_tiny_0000\.npz: 7 classes, expected 6; check --label"):
        run_evaluate(tmp_path / "out")
    (tmp_path / "names.txt").write_text("a\nb\n")
    with pytest.raises(DataError) as raised:
        run_evaluate(tmp_path / "out", label=tmp_path / "names.txt")
    text = f"--label {tmp_path / 'names.txt'}: 2 class names, but the package has 6 classes"
    assert str(raised.value) == text


def test_damaged_result_is_named(out: Path) -> None:
    path = out / "000003-ILSVRC2012_tiny_0003.npz"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"000003-ILSVRC2012_tiny_0003\.npz: not a readable npz file"):
        run_evaluate(out, reference=False)


def test_second_eval_runs_no_inference(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_evaluate(out)
    monkeypatch.setattr(runner, "infer_requests", lambda *arguments: pytest.fail("it was run again"))
    assert run_evaluate(out) == first
    assert run_evaluate(out, reference=True) == first


def test_reference_is_made_again_when_an_image_changed(out: Path, in_workspace: TinyWorkspace) -> None:
    run_evaluate(out)
    before = {path: path.stat().st_mtime_ns for path in _reference_folder(in_workspace).glob("*.npz")}
    image = in_workspace.images[0]
    npz.write_image_npz(image, npz.read_image_npz(in_workspace.images[1]))
    run_evaluate(out)
    assert all(path.stat().st_mtime_ns > stamp for path, stamp in before.items())


def test_reference_of_many_images_waits_to_be_asked_for(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_UNASKED", IMAGES - 1)
    found = run_evaluate(out)
    assert found.reference is None
    assert found.notes == (f"float32 not compared: {IMAGES} images take a while; add --reference",)
    assert found.as_lines()[-1] == found.notes[0]
    assert run_evaluate(out, reference=True).reference is not None
    assert run_evaluate(out).reference is not None  # it is there now


def test_no_reference_compares_nothing(out: Path, in_workspace: TinyWorkspace) -> None:
    found = run_evaluate(out, reference=False)
    assert found.reference is None
    assert found.notes == ()
    assert not (in_workspace.deploy / ".cache" / "reference").exists()


def test_reference_without_the_float32_model(out: Path, in_workspace: TinyWorkspace) -> None:
    in_workspace.float32_model.unlink()
    found = run_evaluate(out)
    assert found.notes == ("float32 not compared: the build's float32 model is not on this machine",)
    with pytest.raises(DataError) as raised:
        run_evaluate(out, reference=True)
    text = f"--reference: the float32 model of {in_workspace.prefix} is not here; build it on this machine"
    assert str(raised.value) == text


def test_reference_when_the_images_are_gone(out: Path, in_workspace: TinyWorkspace) -> None:
    gone = in_workspace.images[1]
    gone.unlink()
    text = f"1 of {IMAGES} images are gone (first: {gone})"
    assert run_evaluate(out).notes == (f"float32 not compared: {text}",)
    with pytest.raises(DataError) as raised:
        run_evaluate(out, reference=True)
    assert str(raised.value) == f"--reference: {text}"


def test_results_of_another_program_are_scored_with_label_and_datalist(tiny: TinyWorkspace, tmp_path: Path) -> None:
    scores = np.random.default_rng(3).normal(0, 1, (IMAGES, COUNT)).astype(np.float32)
    (tmp_path / "theirs").mkdir()
    for index, row in enumerate(scores):
        np.savez(tmp_path / "theirs" / f"out{index:03d}.npz", output_0=row[None])
    (tmp_path / "names.txt").write_text("".join(f"{class_id}\n" for class_id in CLASS_IDS))
    flags: dict[str, Any] = {
        "datalist": tiny.datalist,
        "label": tmp_path / "names.txt",
        "val_label": tiny.datalist.parent / "val_label.txt",
    }
    found = run_evaluate(tmp_path / "theirs", **flags)
    assert found.top1 == Accuracy(slow_top(scores, build_truth(), 1), IMAGES)
    assert found.as_lines()[0] == f"{IMAGES} images, predicted by another program, 95% intervals in brackets"
    with pytest.raises(DataError, match="--reference: the results do not say which package they are of"):
        run_evaluate(tmp_path / "theirs", **flags, reference=True)


def test_report_is_plain_data_with_the_change_in_points(out: Path) -> None:
    found = run_evaluate(out)
    report = json.loads(json.dumps(found.as_dict()))
    assert found.reference is not None
    change = 100 * (found.reference.wrong_to_right - found.reference.right_to_wrong) / IMAGES
    assert found.top1_change == pytest.approx(change)
    compared = report["comparison"]
    assert compared["top1_change"] == pytest.approx(change, abs=1e-3)
    assert compared["top1_drop"] == pytest.approx(found.reference.top1.percent - found.top1.percent, abs=1e-3)
    low, high = compared["top1_change_interval_95"]
    assert low <= change <= high
    assert compared["top1_drop_interval_95"] == [-high, -low]
    assert report["int8"]["top1"]["count"] == IMAGES
    assert report["run"]["sample"] is True
    text = "\n".join(found.as_lines())
    assert "float32  top-1" in text
    assert "agreement" in text


def test_evaluation_calls_a_gain_a_change_above_0(tiny: TinyWorkspace, tmp_path: Path) -> None:
    reference = run_evaluate(bench_tiny(tiny, tmp_path / "output")).reference
    assert reference is not None
    scores = np.eye(COUNT, dtype=np.float32)[build_truth()]  # all right
    write_by_hand(tiny, tmp_path / "right", scores)
    found = run_evaluate(tmp_path / "right")
    gained = IMAGES - reference.top1.correct
    assert gained > 0
    line = next(line for line in found.as_lines() if line.startswith("change in "))
    assert line.startswith(f"change in top-1 {100 * gained / IMAGES:+.2f} points [+")
    assert f"], in top-5 {100 - reference.top5.percent:+.2f} points" in line


@pytest.mark.parametrize(("classes", "shown"), [(6, True), (5, False), (2, False)])
def test_evaluation_says_top5_of_more_than_five_classes_only(
    tmp_path: Path, classes: int, shown: bool, tiny: TinyWorkspace
) -> None:
    scores = np.random.default_rng(3).normal(0, 1, (IMAGES, classes)).astype(np.float32)
    write_scores(tmp_path / "out", tiny.images, scores)
    (tmp_path / "names.txt").write_text("".join(f"class{index}\n" for index in range(classes)))
    labels = "".join(f"{image.stem} {index % classes}\n" for index, image in enumerate(tiny.images))
    (tmp_path / "labels.txt").write_text(labels)
    found = run_evaluate(tmp_path / "out", label=tmp_path / "names.txt", val_label=tmp_path / "labels.txt")
    assert any("top-5" in line for line in found.as_lines()) is shown
    assert "top5" in found.as_dict()["int8"]  # a program need not look


def test_load_ranks_is_fast(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).normal(0, 1, (1000, 1000)).astype(np.float32)
    samples = [Entry(tmp_path / "x", tmp_path / f"{index}.npz") for index in range(len(scores))]
    for sample, row in zip(samples, scores, strict=True):
        npz.write_result_npz(sample.result, row[None])
    begun = time.process_time()
    load_ranks(samples, 1000)
    assert time.process_time() - begun < 2.0


def test_faults_are_pipeline_errors(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"list\.txt: cannot be read"):
        run_evaluate(tmp_path, datalist=tmp_path / "list.txt")


def test_scores_of_sigmoids_are_compared_label_by_label(tiny: TinyWorkspace, tmp_path: Path) -> None:
    for model in (tiny.package.model, tiny.float32_model):
        changed = onnx.load(model)
        changed.graph.node.append(helper.make_node("Sigmoid", ["logits"], ["scores"], "each"))
        changed.graph.output[0].name = "scores"
        onnx.save(changed, model)
    facts = json.loads((tiny.folder / "package.json").read_text(encoding="utf-8"))
    write_json(tiny.folder / "package.json", {**facts, "scores": "sigmoid"})
    write_manifest(tiny.folder, "package")
    found = run_evaluate(bench_tiny(tiny, tmp_path / "output"))
    assert found.reference is not None
    int8, float32 = (
        np.concatenate([npz.read_result_npz(sample.result) for sample in read_run(folder, None).entries]).astype(float)
        for folder in (tmp_path / "output", _reference_folder(tiny))
    )
    slow = (float32 * np.log(float32 / int8) + (1 - float32) * np.log((1 - float32) / (1 - int8))).sum() / IMAGES
    assert found.reference.divergence.kl == pytest.approx(slow, rel=1e-4)
    assert found.as_dict()["comparison"]["scores"] == "sigmoid"
    assert any("of sigmoids" in line for line in found.as_lines())
