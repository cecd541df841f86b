"""Decode the images of a data set into npz files and the datalist that names them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.choices import PreprocessAs
from pipeline.data import preprocess
from pipeline.data.imagenet import Sample, list_images
from pipeline.data.npz import is_image_of, write_datalist, write_image_npz
from pipeline.data.sources import ImageSource
from pipeline.data.storage import REQUESTS_AT_ONCE, Location, Stamp, Url, absolute
from pipeline.errors import DataError
from pipeline.host.cluster import Cluster
from pipeline.host.hardware import available_cores
from pipeline.host.locks import LockedError, exclusive
from pipeline.host.worker_pool import run_in_workers
from pipeline.terminal.progress import progress_bar

_CHUNK = 8  # images a task: a tenth of a second, the longest that Ctrl-C waits
_CLUSTER_CHUNK = 256  # images of a Ray task, a second or two: what a lost node costs
_SHOWN_FAILURES = 20


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a conversion did."""

    converted: int
    kept: int  # complete npz files of an earlier run, made from the same images
    datalist: Path
    faults: Mapping[ImageSource, str]  # images that cannot be decoded, and why


@dataclass(frozen=True, slots=True)
class _Job:
    source: ImageSource
    npz: Location
    preprocess_as: PreprocessAs


_Outcome = tuple[_Job, str]  # and why it failed; "" if it did not


def convert(
    images: Location | Sequence[Sample],
    target: Location,
    datalist: Path,
    *,
    workers: int | None = None,
    cluster: Cluster | None = None,
    preprocess_as: PreprocessAs = PreprocessAs.TORCHVISION,
    tolerates_bad: bool = False,
) -> Report:
    """Decode every image into `<target>/<its folder's name>/<stem>.npz` and list the files in `datalist`.

    A complete npz made from the same image (by size and modification time) is kept, so an interrupted run resumes.

    Args:
        images: a folder or tar, in any layout, or samples of one (`list_images` chooses them by suffix).
        target: folder of the npz files. In a store nothing keeps another run from writing there, and an npz is kept
            that is younger than its image: the store's time cannot be set to the image's.
        datalist: written last: absolute paths in the order of the images.
        workers: processes; None takes as many as there are cores for this process, or in the cluster.
        cluster: where to compute; its nodes must see the images and the target by the same names. None: here.
        preprocess_as: what the package does; see `preprocess.decode`.
        tolerates_bad: leave images that cannot be decoded to the caller, in the report.

    Raises:
        DataError: two images would share an npz (before any work), an image cannot be decoded (after the others are
            done and listed), the target cannot be written, or another run writes there.
        PipelineError: a worker process died.
    """
    samples = list_images(images) if isinstance(images, Path | Url) else images
    jobs = _plan(samples, absolute(target), preprocess_as)
    with _sole_writer(target):
        _remove_leftovers(jobs)
        present = target.files(deep=True) if isinstance(target, Url) else {}
        pending = [job for job in jobs if not _is_done(job, present)]
        with progress_bar(len(jobs), "image2npz", "img", done=len(jobs) - len(pending), span=(0, 1)) as bar:
            reasons: dict[_Job, str] = {}
            with closing(_run(pending, workers, target, cluster)) as outcomes:
                for finished in outcomes:
                    reasons.update((job, reason) for job, reason in finished if reason)
                    bar.update(len(finished))
        if cluster is not None:
            _remove_leftovers(jobs)  # of workers that died
        failures = [(job, reasons[job]) for job in pending if job in reasons]
        failed = {job for job, _ in failures}
        good = [job.npz for job in jobs if job not in failed]
        if good:
            write_datalist(datalist, good)
    if failures and not tolerates_bad:
        raise DataError(_failure_text(failures, len(jobs), datalist))
    return Report(
        converted=len(pending) - len(failures),
        kept=len(jobs) - len(pending),
        datalist=datalist,
        faults={job.source: reason for job, reason in failures},
    )


def _plan(samples: Sequence[Sample], target: Location, preprocess_as: PreprocessAs) -> list[_Job]:
    if not samples:
        raise DataError(f"{target}: there are no images to convert")
    taken: dict[str, ImageSource] = {}
    for sample in samples:
        first = taken.setdefault(sample.key, sample.source)
        if first is not sample.source:
            raise DataError(
                f"{first} and {sample.source} would both become {target}/{sample.key}.npz; rename one of them, or "
                "take one kind of images by dataset.sampler.suffix (--suffix of image2npz)"
            )
    return [_Job(sample.source, target / sample.folder / f"{sample.name}.npz", preprocess_as) for sample in samples]


def _is_done(job: _Job, present: Mapping[str, Stamp]) -> bool:
    """Tell whether an image was converted before.

    Args:
        present: files of a target in a store.
    """
    if isinstance(job.npz, Url):
        size, written_ns = present.get(f"{job.npz.parent.name}/{job.npz.name}", (0, 0))
        return size > 0 and written_ns >= job.source.stamp()[1]
    return is_image_of(job.npz, job.source.stamp(), decoded_as=job.preprocess_as)


@contextmanager
def _sole_writer(target: Location) -> Iterator[None]:
    """Lock the target folder: two runs at once would remove each other's scratch files. Stores have no such files."""
    if isinstance(target, Url):
        yield
        return
    try:
        target.mkdir(parents=True, exist_ok=True)
        lock = ExitStack()
        lock.enter_context(exclusive(target, waits=False))
    except OSError as err:
        raise DataError(
            f"{target}: cannot be made a folder ({err.strerror}); give another (--target_path of image2npz)"
        ) from err
    except LockedError as err:
        raise DataError(f"{target}: another image2npz is writing there; wait for it, or stop it") from err
    with lock:
        yield


def _remove_leftovers(jobs: Iterable[_Job]) -> None:
    """Remove the scratch files of a run that was killed (see `artefacts.whole_file`)."""
    for folder in sorted({job.npz.parent for job in jobs if isinstance(job.npz, Path)}):
        for leftover in sorted(folder.glob(".*.npz-????????")):
            leftover.unlink(missing_ok=True)


def _run(
    jobs: Sequence[_Job], workers: int | None, target: Location, cluster: Cluster | None
) -> Generator[list[_Outcome], None, None]:
    """Convert the jobs; yield their outcomes as they finish."""
    if not jobs:
        return
    if cluster is None:
        yield from run_in_workers(
            _convert_chunk,
            _in_order_of_bytes(jobs),
            chunk=_CHUNK,
            workers=min(workers or available_cores(), len(jobs)),
            name="image2npz",
            hint=f"the files in {target} are whole, run the same command again to go on "
            "(fewer --workers of image2npz need less memory)",
        )
        return
    with cluster.connect() as nodes:
        yield from nodes.run(_open_nothing, None, _in_order_of_bytes(jobs), chunk=_CLUSTER_CHUNK, workers=workers)


def _open_nothing(_: None) -> Callable[[Sequence[_Job]], list[_Outcome]]:
    return _convert_chunk


def _in_order_of_bytes(jobs: Sequence[_Job]) -> list[_Job]:
    """Sort members of a tar as they lie in it: going back in a compressed one starts over."""
    return sorted(jobs, key=lambda job: job.source.offset or 0)


def _convert_chunk(jobs: Sequence[_Job]) -> list[_Outcome]:
    """Convert some images in a worker; return each with the reason why it failed, "" if it did not."""
    if not any(isinstance(place, Url) for job in jobs for place in (job.source.root, job.npz)):
        return [(job, _convert_one(job)) for job in jobs]
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return list(zip(jobs, pool.map(_convert_one, jobs), strict=True))


def _convert_one(job: _Job) -> str:
    try:
        # The stamp is read first: an image that changes while it is read is then converted again next time.
        stamp = job.source.stamp()
        content = job.source.content()
        image_chw = preprocess.decode(content, job.preprocess_as)
    except DataError as err:
        return str(err) if str(err).startswith(str(job.source)) else f"{job.source}: {err}"
    try:
        write_image_npz(job.npz, image_chw, stamp, decoded_as=job.preprocess_as)
    except OSError as err:
        raise DataError(
            f"{err.filename or job.npz}: cannot be written ({err.strerror}); fix that, then run again"
        ) from err
    return ""


def _failure_text(failures: Sequence[_Outcome], total: int, datalist: Path) -> str:
    good = total - len(failures)
    listed = f"{datalist} lists the other {good}" if good else f"{datalist} was not written"
    lines = [f"{len(failures)} of {total} images cannot be decoded; {listed}; replace or remove these and run again:"]
    lines += [f"  {reason}" for _, reason in failures[:_SHOWN_FAILURES]]
    if len(failures) > _SHOWN_FAILURES:
        lines.append(f"  ... and {len(failures) - _SHOWN_FAILURES} more")
    return "\n".join(lines)
