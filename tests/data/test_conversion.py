from __future__ import annotations

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_fixtures import read_local_datalist

from pipeline.config.choices import PreprocessAs
from pipeline.data.conversion import Report, convert
from pipeline.data.imagenet import list_dataset, list_images
from pipeline.data.npz import read_image_npz
from pipeline.errors import DataError, PipelineError

REPOSITORY = Path(__file__).parents[2]
REAL = REPOSITORY.parent / "shared" / "data"
RUN = """
import sys
from pathlib import Path
from pipeline.data.conversion import convert
convert(*(Path(name) for name in sys.argv[1:4]), workers=2)
"""


def jpeg(seed: int, side: int = 9, mode: str = "RGB") -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (side, side + 1, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(stream, "JPEG")
    return stream.getvalue()


def put(root: Path, name: str, content: bytes) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for seed, name in enumerate(("n01443537/b.JPEG", "n01443537/a.jpg", "n01440764/c.jpeg")):
        put(tmp_path / "set", name, jpeg(seed))
    put(tmp_path / "set", "n01440764/grey.JPEG", jpeg(3, mode="L"))
    return tmp_path / "set"


@pytest.fixture
def many_images(tmp_path: Path) -> Path:
    """Return a folder whose conversion takes a while."""
    content = jpeg(0, side=480)
    for index in range(160):
        put(tmp_path / "many", f"n01440764/{index:03d}.JPEG", content)
    return tmp_path / "many"


def test_convert_writes_what_pillow_decodes_in_the_data_sets_order(images: Path, tmp_path: Path) -> None:
    report = convert(images, tmp_path / "npz", tmp_path / "list.txt", workers=2)
    assert report == Report(converted=4, kept=0, datalist=tmp_path / "list.txt", faults={})
    paths = read_local_datalist(tmp_path / "list.txt")
    names = ["n01440764/c", "n01440764/grey", "n01443537/a", "n01443537/b"]
    assert paths == [tmp_path / "npz" / f"{name}.npz" for name in names]
    for path, sample in zip(paths, list_dataset(images).samples, strict=True):
        image_hwc = np.asarray(Image.open(images / sample.source.name).convert("RGB"))
        np.testing.assert_array_equal(read_image_npz(path), image_hwc.transpose(2, 0, 1))
    assert sorted(path for path in (tmp_path / "npz").rglob("*") if path.is_file()) == paths


def test_convert_takes_every_kind_of_image_or_the_one_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (3, 9, 7, 3), np.uint8)
    (tmp_path / "mixed" / "a").mkdir(parents=True)
    for name, image in zip(("1.jpg", "2.png", "3.webp"), pixels, strict=True):
        Image.fromarray(image).save(tmp_path / "mixed" / "a" / name)
    report = convert(tmp_path / "mixed", tmp_path / "npz", tmp_path / "list.txt", workers=1)
    assert (report.converted, [path.stem for path in read_local_datalist(report.datalist)]) == (3, ["1", "2", "3"])
    assert "left out" not in capsys.readouterr().err
    report = convert(list_images(tmp_path / "mixed", "png"), tmp_path / "png", tmp_path / "png.txt", workers=1)
    assert [path.stem for path in read_local_datalist(report.datalist)] == ["2"]
    assert "1 images, left out 1 JPEG, 1 webp images;" in capsys.readouterr().err


def test_convert_needs_no_labels(tmp_path: Path) -> None:
    put(tmp_path / "set", "b.JPEG", jpeg(0))
    put(tmp_path / "set", "part/a.JPEG", jpeg(1))
    put(tmp_path / "set", "val_label.txt", b"in a form of its own")
    convert(tmp_path / "set", tmp_path / "npz", tmp_path / "list.txt", workers=1)
    assert read_local_datalist(tmp_path / "list.txt") == [tmp_path / "npz/set/b.npz", tmp_path / "npz/part/a.npz"]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_convert_gives_equal_bytes_from_a_tar(images: Path, tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("set.tar" if mode == "w" else "set.tar.gz")
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        archive.add(images, ".")
    convert(images, tmp_path / "a", tmp_path / "a.txt", workers=1)
    convert(path, tmp_path / "b", tmp_path / "b.txt", workers=1)
    for one, other in zip(
        read_local_datalist(tmp_path / "a.txt"), read_local_datalist(tmp_path / "b.txt"), strict=True
    ):
        assert one.relative_to(tmp_path / "a") == other.relative_to(tmp_path / "b")
        assert one.read_bytes() == other.read_bytes()
    assert convert(path, tmp_path / "b", tmp_path / "b.txt", workers=1).kept == 4


def test_convert_keeps_whole_files_and_mends_others(images: Path, tmp_path: Path) -> None:
    target, datalist = tmp_path / "npz", tmp_path / "list.txt"
    convert(images, target, datalist, workers=1)
    before = {path: path.stat().st_ino for path in read_local_datalist(datalist)}
    assert convert(images, target, datalist, workers=1) == Report(converted=0, kept=4, datalist=datalist, faults={})
    put(images, "n01443537/a.jpg", jpeg(9))
    cut = target / "n01440764" / "c.npz"
    mtime_ns = cut.stat().st_mtime_ns
    cut.write_bytes(cut.read_bytes()[:-10])
    os.utime(cut, ns=(mtime_ns, mtime_ns))
    (target / "n01440764" / ".c.npz-abcd1234").write_bytes(b"left by a killed run")
    assert convert(images, target, datalist, workers=1) == Report(converted=2, kept=2, datalist=datalist, faults={})
    changed = {path.stem for path, inode in before.items() if path.stat().st_ino != inode}
    assert changed == {"a", "c"}
    assert not list(target.rglob(".*"))


def test_convert_names_unreadable_images_after_the_rest_is_done(images: Path, tmp_path: Path) -> None:
    put(images, "n01440764/bad.JPEG", b"no image")
    put(images, "n01443537/cut.JPEG", jpeg(5, side=64)[:-900])
    with pytest.raises(DataError) as caught:
        convert(images, tmp_path / "npz", tmp_path / "list.txt", workers=2)
    lines = str(caught.value).splitlines()
    assert lines[0] == (
        f"2 of 6 images cannot be decoded; {tmp_path}/list.txt lists the other 4;"
        " replace or remove these and run again:"
    )
    assert lines[1].startswith(f"  {images}/n01440764/bad.JPEG: cannot be decoded as an image")
    assert lines[2].startswith(f"  {images}/n01443537/cut.JPEG: cannot be decoded as an image")
    assert [path.stem for path in read_local_datalist(tmp_path / "list.txt")] == ["c", "grey", "a", "b"]


def test_convert_leaves_no_datalist_when_no_image_can_be_read(tmp_path: Path) -> None:
    put(tmp_path / "set", "a.JPEG", b"no image")
    with pytest.raises(DataError, match=r"^1 of 1 images cannot be decoded; .*list\.txt was not written;"):
        convert(tmp_path / "set", tmp_path / "npz", tmp_path / "list.txt", workers=1)
    assert not (tmp_path / "list.txt").exists()


def test_convert_refuses_two_images_of_one_npz_before_any_work(images: Path, tmp_path: Path) -> None:
    put(images, "n01443537/a.JPEG", jpeg(9))
    with pytest.raises(DataError) as caught:
        convert(images, tmp_path / "npz", tmp_path / "list.txt")
    assert str(caught.value) == (
        f"{images}/n01443537/a.JPEG and {images}/n01443537/a.jpg would both become {tmp_path}/npz/n01443537/a.npz;"
        " rename one of them, or take one kind of images by dataset.sampler.suffix (--suffix of image2npz)"
    )
    assert not (tmp_path / "npz").exists()


def test_convert_says_so_when_the_target_cannot_be_written(images: Path, tmp_path: Path) -> None:
    put(tmp_path, "npz", b"a file")
    with pytest.raises(DataError, match=r"npz: cannot be made a folder \(File exists\); give another "):
        convert(images, tmp_path / "npz", tmp_path / "list.txt")
    put(tmp_path, "other/n01443537", b"a file in the way of a folder")
    with pytest.raises(DataError, match=r"n01443537: cannot be written \(.*\); fix that, then run again"):
        convert(images, tmp_path / "other", tmp_path / "list.txt", workers=1)


@pytest.mark.slow
def test_convert_says_which_signal_ended_a_worker_and_goes_on_next_time(many_images: Path, tmp_path: Path) -> None:
    def end_a_worker() -> None:
        wait_until(lambda: any(tmp_path.glob("npz/*/*.npz")))
        os.kill(next(child.pid or 0 for child in multiprocessing.active_children()), signal.SIGKILL)

    killer = threading.Thread(target=end_a_worker)
    killer.start()
    with pytest.raises(PipelineError) as caught:
        convert(many_images, tmp_path / "npz", tmp_path / "list.txt", workers=2)
    killer.join()
    assert "was ended by SIGKILL, as the kernel does when memory runs out; the files in" in str(caught.value)
    assert not multiprocessing.active_children()
    assert not (tmp_path / "list.txt").exists()
    report = convert(many_images, tmp_path / "npz", tmp_path / "list.txt", workers=2)
    assert report.kept > 0
    assert report.kept + report.converted == 160


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds worker processes in /proc")
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_convert_leaves_whole_files_and_no_workers_when_stopped(
    many_images: Path, tmp_path: Path, stop: signal.Signals
) -> None:
    arguments = [str(many_images), str(tmp_path / "npz"), str(tmp_path / "list.txt")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    # A session of its own, because a terminal sends Ctrl-C to the workers too.
    with subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        wait_until(lambda: any(tmp_path.glob("npz/*/*.npz")))
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        if stop == signal.SIGINT:
            os.killpg(run.pid, stop)
        else:
            run.kill()
        _, messages = run.communicate(timeout=30)
    assert run.returncode == -stop
    assert messages.count("Traceback") == (1 if stop == signal.SIGINT else 0)  # the parent's own KeyboardInterrupt
    assert len(children) >= 2
    wait_until(lambda: not any(is_running(child) for child in children))
    done = [path for path in sorted(tmp_path.glob("npz/*/*.npz")) if read_image_npz(path).any()]
    assert 0 < len(done) < 160
    report = convert(many_images, tmp_path / "npz", tmp_path / "list.txt", workers=2)
    assert report.kept == len(done)
    assert sorted(path.name for path in (tmp_path / "npz" / "n01440764").iterdir()) == [
        f"{i:03d}.npz" for i in range(160)
    ]


@pytest.mark.slow
def test_convert_refuses_a_target_that_another_run_fills(many_images: Path, tmp_path: Path) -> None:
    first = threading.Thread(target=convert, args=(many_images, tmp_path / "npz", tmp_path / "a.txt"))
    first.start()
    wait_until(lambda: any(tmp_path.glob("npz/*/*.npz")))
    with pytest.raises(DataError, match="npz: another image2npz is writing there; wait for it, or stop it"):
        convert(many_images, tmp_path / "npz", tmp_path / "b.txt")
    first.join()
    assert len(read_local_datalist(tmp_path / "a.txt")) == 160


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not there")
def test_convert_reads_the_real_evaluation_set(tmp_path: Path) -> None:
    samples = list_dataset(REAL / "nips2017_dev" / "val").samples[::5]
    convert(samples, tmp_path / "npz", tmp_path / "list.txt")
    paths = read_local_datalist(tmp_path / "list.txt")
    assert [path.stem for path in paths] == [sample.name for sample in samples]
    assert all(read_image_npz(path).shape == (3, 299, 299) for path in paths)


def wait_until(holds: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def is_running(pid: str) -> bool:
    """Tell whether a process is there and no zombie (a container need not have an init that reaps orphans)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_convert_turns_by_exif_when_as_paddleclas_and_makes_what_is_not_so_again(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    (tmp_path / "set" / "a").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "set" / "a" / "x.png", exif=exif)
    for preprocess_as, expected in (
        (PreprocessAs.TORCHVISION, pixels),
        (PreprocessAs.PADDLECLAS, np.rot90(pixels, -1)),
        (PreprocessAs.TORCHVISION, pixels),
    ):
        for converted in (1, 0):
            report = convert(tmp_path / "set", tmp_path / "npz", tmp_path / "list.txt", preprocess_as=preprocess_as)
            assert (report.converted, report.kept) == (converted, 1 - converted)
            made = read_image_npz(tmp_path / "npz" / "a" / "x.npz")
            np.testing.assert_array_equal(made, expected.transpose(2, 0, 1))
