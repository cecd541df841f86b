"""The `predict` command."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline.commands.flags import (
    RUNTIMES,
    add_command,
    add_engine_flags,
    check_json_path,
    cluster_of,
    count,
    file_here,
    is_standard_output,
    place,
)
from pipeline.errors import ConfigError, DataError
from pipeline.terminal import console

if TYPE_CHECKING:
    from pipeline.data.storage import Location
    from pipeline.host.cluster import Cluster
    from pipeline.run.answer import Skip
    from pipeline.run.predict import Classifier
    from pipeline.run.prediction import Prediction


_TOPK = 5


def add_predict(commands: Any) -> None:
    parser = add_command(
        commands,
        "predict",
        _predict,
        "the best classes of images",
        "python -m pipeline predict cat.jpg photos/ --topk 3",
    )
    parser.add_argument(
        "images", type=place, nargs="*", metavar="IMAGE|FOLDER", help="image files, npz, or folders; paths or URLs"
    )
    parser.add_argument("--infer_imgs", type=place, metavar="PATH", help="the same, as PaddleClas names it")
    parser.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help="a config of PaddleClas: its images, batch size and topk"
    )
    parser.add_argument(
        "-o", dest="set", action="append", default=[], metavar="KEY=VALUE", help="override a key of that config"
    )
    parser.add_argument(
        "-m", "--model", type=Path, metavar="PREFIX", help="package: folder/name (default: the one built last)"
    )
    parser.add_argument("--topk", type=count, metavar="K", help=f"classes an image (default: {_TOPK})")
    parser.add_argument("-b", "--batch", type=count, help="images at once (default: what bench --sweep found, else 8)")
    parser.add_argument("--runtime", choices=RUNTIMES, default="auto", help="auto: what bench --sweep found")
    parser.add_argument(
        "--skip_bad", action="store_true", help="images that cannot be read are no error: the exit code stays 0"
    )
    written = parser.add_mutually_exclusive_group()
    written.add_argument(
        "--json", type=file_here, metavar="FILE", help="write a list of objects, - for standard output"
    )
    written.add_argument("--csv", type=file_here, metavar="FILE", help="write a row a class, - for standard output")
    add_engine_flags(parser)


def _predict(args: argparse.Namespace) -> None:
    from pipeline.run.inputs import find_images
    from pipeline.run.predict import Classifier
    from pipeline.terminal.progress import progress_bar

    check_json_path(args.json)
    cluster = cluster_of(args)
    _take_config(args)
    paths = find_images(args.images)
    bad: list[str] = []

    def skip(name: str, reason: Exception) -> None:
        bad.append(name)
        if args.skip_bad:
            console.warning(f"skipped: {reason}")
        else:
            console.error(str(reason))

    # Lines that appear one by one on a terminal show progress already.
    shows_lines = args.json is None and args.csv is None and sys.stdout.isatty()
    with (
        Classifier(args.model, runtime=args.runtime, batch=args.batch) as classifier,
        _writer(args) as write,
        progress_bar(len(paths), "predict", "img", shown=not shows_lines) as progress,
    ):
        for note in classifier.notes:
            console.warning(f"note: {note}")
        if classifier.package.uses_sample:
            console.warning("sample weights, sample images: the answers to photos mean nothing")
        with closing(_predictions(cluster, classifier, paths, args.topk, skip)) as predictions:
            for prediction in predictions:
                write(prediction)
                progress.update()
    if len(paths) > 1:
        spent = "  ".join(f"{name} {seconds:.1f}" for name, seconds in classifier.seconds.items())
        console.note(f"thread seconds in: {spent} (infer includes waiting for a stream)")
    if bad:
        _end_with_bad(len(bad), len(paths), accepted=args.skip_bad)


def _take_config(args: argparse.Namespace) -> None:
    """Set images, topk and batch, where no flag does, to what a config of PaddleClas says, and to the defaults."""
    images = [*args.images, *([] if args.infer_imgs is None else [args.infer_imgs])]
    if args.config is not None:
        from pipeline.config.paddleclas import read_infer_config

        said = read_infer_config(args.config, args.set)
        images = images or [place(image) for image in said.images]
        args.topk, args.batch = args.topk or said.topk, args.batch or said.batch
    elif args.set:
        raise ConfigError(f"-o {args.set[0]}: overrides a config of PaddleClas; give one by -c FILE")
    if not images:
        raise ConfigError("predict: no images; name files or folders")
    args.images, args.topk, args.batch = images, args.topk or _TOPK, args.batch or 0


def _end_with_bad(bad: int, images: int, *, accepted: bool) -> None:
    """Say how many images could not be read; raise DataError, for exit code 2, unless that is accepted."""
    if not accepted:
        answered = "the others are answered; " if bad < images else ""
        raise DataError(f"{bad} of {images} images cannot be read; {answered}add --skip_bad to accept that")
    console.warning(f"{bad} of {images} images skipped")


def _predictions(
    cluster: Cluster | None, classifier: Classifier, paths: Sequence[Location], topk: int, skip: Skip
) -> Generator[Prediction, None, None]:
    from pipeline.run import cluster_predict

    if cluster is None:
        return classifier.predict(paths, topk, skip=skip)
    return cluster_predict.predict(cluster, classifier, paths, topk, skip=skip)


@contextmanager
def _writer(args: argparse.Namespace) -> Iterator[Callable[[Prediction], None]]:
    """Yield what writes one prediction in the form that the flags ask for."""
    from pipeline.run.prediction import COLUMNS

    if args.json is None and args.csv is None:
        as_paddleclas = args.config is not None or args.infer_imgs is not None
        yield lambda prediction: print(prediction.as_text(base_name=as_paddleclas), flush=True)
    elif args.csv is not None:
        with _output("--csv", args.csv) as stream:
            table = csv.writer(stream, lineterminator="\n")
            table.writerow(COLUMNS)
            yield lambda prediction: table.writerows(prediction.as_rows())
    else:
        with _output("--json", args.json) as stream:
            begun = False

            def write(prediction: Prediction) -> None:
                nonlocal begun
                stream.write(",\n" if begun else "[\n")
                stream.write(json.dumps(prediction.as_dict(), ensure_ascii=False))
                begun = True

            yield write
            stream.write("\n]\n" if begun else "[]\n")


@contextmanager
def _output(flag: str, path: Path) -> Iterator[IO[str]]:
    """Yield standard output for `-`, else a file that appears when it is complete."""
    from pipeline.artefacts import whole_file

    if is_standard_output(path):
        yield sys.stdout
        return
    if path.is_dir():
        raise ConfigError(f"{flag} {path}: is a folder; give a file")
    try:
        # Names that are not UTF-8 hold lone surrogates; replaced by backslashes, they become JSON escapes.
        with whole_file(path) as scratch, scratch.open("w", encoding="utf-8", errors="backslashreplace") as stream:
            yield stream
    except OSError as err:
        raise ConfigError(f"{flag} {path}: cannot be written ({err.strerror}); give another") from None
