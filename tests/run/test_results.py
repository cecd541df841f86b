from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path

import numpy as np
import pytest
from run_fixtures import SPEC, TinyWorkspace, plain_answers, read_folder, write_scores

from pipeline.data import npz
from pipeline.errors import DataError
from pipeline.run import results
from pipeline.run.plan import Plan
from pipeline.run.results import check_folder, is_finished, open_run, read_run, write_results
from pipeline.runtimes.base import Runtime

FACTS = {"model_sha256": "ab", "datalist": "/somewhere/list.txt"}


def some_images(tmp_path: Path, *names: str) -> list[Path]:
    """Return npz files in an order that is not that of their names."""
    paths = [tmp_path / "npz" / f"{name}.npz" for name in names or ("n02/b", "n01/a", "n02/a", "n01/c")]
    for path in paths:
        npz.write_image_npz(path, np.zeros((3, 2, 2), np.uint8))
    return paths


def some_scores(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (count, 5)).astype(np.float32)


def plan_for(space: TinyWorkspace, batch: int = 4) -> Plan:
    return Plan(space.package.model, Runtime.ONNXRUNTIME, SPEC, batch=batch, instances=2)


def test_scripts_that_zip_sorted_names_with_the_datalist_pair_right(tiny: TinyWorkspace, tmp_path: Path) -> None:
    images = tiny.images[::-1]
    write_results(plan_for(tiny), FACTS, images, tmp_path / "out", "test")
    expected = plain_answers(tiny.package, images)
    names = sorted(os.listdir(tmp_path / "out"))  # noqa: PTH208  as the vendor's script has it
    for name, wanted, image in zip(names, expected, images, strict=False):
        assert name.endswith(f"-{image.stem}.npz")
        output = np.load(tmp_path / "out" / name)["output_0"]
        assert (output.dtype, output.shape) == (np.float32, (1, len(wanted)))
        np.testing.assert_allclose(output[0], wanted, atol=1e-6)
    assert len(names) == len(images)


def test_names_sort_in_the_order_of_a_datalist_of_more_than_a_million(tmp_path: Path) -> None:
    class Million(list):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 1_000_001

    images = Million(some_images(tmp_path))
    with open_run(tmp_path / "out", FACTS, images) as samples:
        names = [sample.result.name for sample in samples]
    assert names == sorted(names)
    assert names[0] == "0000000-b.npz"


def test_write_results_goes_on_where_a_run_was_stopped(tiny: TinyWorkspace, tmp_path: Path) -> None:
    out, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    write_results(plan_for(tiny), FACTS, tiny.images, undisturbed, "test")
    with pytest.raises(KeyboardInterrupt), open_run(out, FACTS, tiny.images) as samples:
        for sample in samples[:6]:
            npz.write_result_npz(sample.result, np.zeros((1, 6), np.float32))
        (out / f".{samples[7].result.name}-abcd1234").write_bytes(b"half")
        (tmp_path / ".out.run.json-abcd1234").write_bytes(b"{")
        raise KeyboardInterrupt
    kept = (out / samples[3].result.name).stat().st_mtime_ns
    figures = write_results(plan_for(tiny), FACTS, tiny.images, out, "test")
    assert figures is not None
    assert figures.images == len(tiny.images) - 4  # the second request of four had two results
    assert (out / samples[3].result.name).stat().st_mtime_ns == kept
    assert list(read_folder(out)) == list(read_folder(undisturbed))
    assert not list(tmp_path.glob(".*"))
    assert list(read_folder(out).values())[4:] == list(read_folder(undisturbed).values())[4:]


def test_write_results_has_nothing_to_say_when_only_the_end_was_missing(tiny: TinyWorkspace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), open_run(out, FACTS, tiny.images) as samples:
        for sample in samples:
            npz.write_result_npz(sample.result, np.zeros((1, 6), np.float32))
        raise KeyboardInterrupt
    assert write_results(plan_for(tiny), FACTS, tiny.images, out, "test") is None
    assert is_finished(out, FACTS, tiny.images)


@pytest.mark.parametrize("change", ["facts", "image", "finished"])
def test_results_of_another_run_are_removed(tmp_path: Path, change: str) -> None:
    images, out = some_images(tmp_path), tmp_path / "out"
    write_scores(out, images, some_scores(4), **FACTS)
    (out / "notes.txt").write_text("mine")
    facts = {**FACTS, "runtime": "other"} if change == "facts" else FACTS
    if change == "image":
        os.utime(images[0], ns=(1, 1))
    shorter = images[:3] if change != "finished" else images
    with open_run(out, facts, shorter):
        assert sorted(path.name for path in out.iterdir()) == ["notes.txt"]
    assert is_finished(out, facts, shorter)
    assert not is_finished(out, {**facts, "runtime": "a third"}, shorter)


@pytest.mark.parametrize("with_run", [False, True])
def test_folder_with_results_of_others_is_refused_and_left_alone(tmp_path: Path, with_run: bool) -> None:
    images, out = some_images(tmp_path), tmp_path / "out"
    if with_run:
        write_scores(out, images, some_scores(4), **FACTS)
    out.mkdir(exist_ok=True)
    (out / "theirs.npz").write_bytes(b"1")
    before = read_folder(out)
    text = f"--path_output {out}: holds files that bench did not write (first: theirs.npz); give an empty or new folder"
    for attempt in (lambda: check_folder(out), lambda: open_run(out, {}, images).__enter__()):
        with pytest.raises(DataError) as raised:
            attempt()
        assert str(raised.value) == text
        assert read_folder(out) == before


def test_path_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(DataError, match=r"--path_output .*out: is a file; give a folder"):
        check_folder(tmp_path / "out")
    with pytest.raises(DataError, match=r"--path_output .*out: cannot be made a folder \(File exists\)"):
        open_run(tmp_path / "out", {}, some_images(tmp_path)).__enter__()
    check_folder(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    images, out = some_images(tmp_path), tmp_path / "out"
    out.mkdir()
    handle = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another run is writing there"):
            open_run(out, {}, images).__enter__()
    finally:
        os.close(handle)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("content", ["{", "[]", '{"samples": []}'])
def test_damaged_run_json_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out.run.json").write_text(content)
    with pytest.raises(DataError, match=r"out\.run\.json: .*remove it and the folder and run bench again"):
        read_run(tmp_path / "out", None)


def test_record_is_found_in_the_folder_when_both_were_moved(tmp_path: Path) -> None:
    images, out, moved = some_images(tmp_path), tmp_path / "out", tmp_path / "moved"
    write_scores(out, images, some_scores(4), **FACTS)
    found = read_run(out, None)
    out.rename(moved)
    (tmp_path / "out.run.json").rename(moved / "run.json")
    assert read_run(moved, None).facts == found.facts
    with open_run(moved, FACTS, images[:2]):
        assert list(moved.iterdir()) == []
    assert (tmp_path / "moved.run.json").is_file()


def test_read_run_returns_what_was_written(tmp_path: Path) -> None:
    images, out = some_images(tmp_path, "n01/a", "n01/\udcff\xe9", f"n02/{'x' * 240}"), tmp_path / "out"
    scores = some_scores(3)
    write_scores(out, images, scores, **FACTS)
    run = read_run(out, images)
    assert [sample.image for sample in run.entries] == images
    for sample, wanted in zip(run.entries, scores, strict=True):
        np.testing.assert_array_equal(npz.read_result_npz(sample.result)[0], wanted)
    assert {**run.facts, **FACTS} == run.facts
    assert read_run(out, None) == run
    assert json.loads((tmp_path / "out.run.json").read_text(encoding="utf-8"))["finished"] is True


def test_read_run_refuses_an_interrupted_run(tmp_path: Path) -> None:
    images, out = some_images(tmp_path), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), open_run(out, FACTS, images) as samples:
        npz.write_result_npz(samples[0].result, some_scores(1))
        raise KeyboardInterrupt
    with pytest.raises(DataError) as raised:
        read_run(out, None)
    assert str(raised.value) == f"{out}: 1 of 4 results; the run was interrupted, repeat it"


def test_read_run_counts_missing_and_strange_results(tmp_path: Path) -> None:
    images, out = some_images(tmp_path), tmp_path / "out"
    write_scores(out, images, some_scores(4), **FACTS)
    (out / "000002-a.npz").rename(out / "000009-z.npz")
    with pytest.raises(DataError) as raised:
        read_run(out, None)
    assert str(raised.value) == f"{out}: 1 of 4 results missing (first: 000002-a.npz); run bench again"
    (out / "000002-a.npz").touch()
    with pytest.raises(DataError) as raised:
        read_run(out, None)
    assert str(raised.value) == f"{out}: 1 results of no sample (first: 000009-z.npz); run bench again"


def test_read_run_names_what_differs_from_the_datalist(tmp_path: Path) -> None:
    images, out = some_images(tmp_path), tmp_path / "out"
    write_scores(out, images, some_scores(4), **FACTS)
    other = tmp_path / "other.npz"
    end = "run bench with this --datalist, or eval with /somewhere/list.txt"
    for datalist, count, odd in (
        ([*images, other], 5, f"first that has no result: {other}"),
        (images[::-1], 4, "some are left out, or their order differs"),
        (images[1:], 3, "some are left out, or their order differs"),
    ):
        with pytest.raises(DataError) as raised:
            read_run(out, datalist)
        assert str(raised.value) == f"{out}: holds results of 4 samples, the datalist names {count} ({odd}); {end}"


@pytest.mark.slow
def test_read_run_compares_long_datalists_at_once(tmp_path: Path) -> None:
    images = [tmp_path / f"{index}.npz" for index in range(30_000)]
    record = {"finished": True, "samples": {f"{i:06d}-x.npz": str(path) for i, path in enumerate(images)}}
    (tmp_path / "out").mkdir()
    (tmp_path / "out.run.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="order differs"):  # a set a line once took a quarter of an hour for this
        read_run(tmp_path / "out", images[::-1])


def test_folder_of_another_program_needs_the_datalist_and_its_length(tmp_path: Path) -> None:
    images, out = some_images(tmp_path), tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError, match=r"no results \(\*\.npz\) in it"):
        read_run(out, images)
    for index, row in enumerate(some_scores(4)):
        np.savez(out / f"out_{index:02d}.npz", output_0=row[None])
    with pytest.raises(DataError) as raised:
        read_run(out, None)
    assert str(raised.value) == (
        f"{out}: has no out.run.json beside it, so the order of its results is unknown; give --datalist FILE"
    )
    with pytest.raises(DataError) as raised:
        read_run(out, images[:3])
    assert str(raised.value) == f"{out}: 4 results for 3 samples of the datalist; run it again"
    run = read_run(out, images)
    assert run.facts == {}
    assert [(s.image, s.result.name) for s in run.entries] == [(p, f"out_{i:02d}.npz") for i, p in enumerate(images)]


def test_result_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        read_run(tmp_path / "none", None)
    assert str(raised.value).startswith(f"--result_path {tmp_path / 'none'}: no such folder; run: python -m pipeline")


def test_earlier_results_that_cannot_be_removed_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, out = some_images(tmp_path), tmp_path / "out"
    write_scores(out, images, np.zeros((len(images), 3), np.float32))

    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    told = r"out: an earlier run's files cannot be removed \(Read-only file system\); give another$"
    with pytest.raises(DataError, match=told):
        open_run(out, {"other": 1}, images).__enter__()


def test_full_disk_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "write_json", fail)
    with pytest.raises(DataError, match=r"run\.json: cannot be written \(No space left on device\)"):
        open_run(tmp_path / "out", {}, some_images(tmp_path)).__enter__()
