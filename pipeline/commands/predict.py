"""The `predict` command."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from enum import Enum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline.commands.flags import (
    RUNTIMES,
    add_command,
    add_engine_flags,
    check_json_path,
    cluster_of,
    count,
    is_standard_output,
    read_local_path,
    read_location,
)
from pipeline.errors import ConfigError, DataError
from pipeline.terminal import console

if TYPE_CHECKING:
    from pipeline.data.storage import Location
    from pipeline.host.cluster import Cluster
    from pipeline.packages.package import Package
    from pipeline.run.answer import Skip
    from pipeline.run.predict import Classifier
    from pipeline.run.prediction import Prediction


_TOPK = 5


class Form(Enum):
    """What the lines look like: ours, or those of a program of PaddleClas."""

    PLAIN = "plain"
    PREDICT_CLS = "predict_cls"  # deploy/python/predict_cls.py: the base name of the file first
    INFER = "infer"  # tools/infer.py: a list of dictionaries a batch
    PIP = "pip"  # the command of the pip package


def add_predict(commands: Any) -> None:
    parser = add_command(
        commands,
        "predict",
        _predict,
        "the best classes of images",
        "python -m pipeline predict cat.jpg photos/ --topk 3",
    )
    parser.add_argument(
        "images",
        type=read_location,
        nargs="*",
        metavar="IMAGE|FOLDER",
        help="image files, npz, or folders; paths or URLs",
    )
    parser.add_argument("--infer_imgs", type=read_location, metavar="PATH", help="the same, as PaddleClas names it")
    parser.add_argument(
        "--model_name",
        metavar="NAME",
        help="one of PaddleClas's networks: its package built last, and lines as its pip package prints them",
    )
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
        "--json", type=read_local_path, metavar="FILE", help="write a list of objects, - for standard output"
    )
    written.add_argument(
        "--csv", type=read_local_path, metavar="FILE", help="write a row a class, - for standard output"
    )
    add_engine_flags(parser)


def _predict(args: argparse.Namespace) -> None:
    from pipeline.run.inputs import find_images
    from pipeline.run.predict import Classifier
    from pipeline.terminal.progress import progress_bar

    check_json_path(args.json)
    cluster = cluster_of(args)
    names = _take_config(args)
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
                write(prediction.renamed(names))
                progress.update()
    if len(paths) > 1:
        spent = "  ".join(f"{name} {seconds:.1f}" for name, seconds in classifier.seconds.items())
        console.note(f"thread seconds in: {spent} (infer includes waiting for a stream)")
    if bad:
        _end_with_bad(len(bad), len(paths), accepted=args.skip_bad)


def _take_config(args: argparse.Namespace) -> Mapping[int, str]:
    """Set package, images, topk, batch and form, where no flag does, to what a config of PaddleClas says.

    Returns:
        The class names that it gives, by index.
    """
    images = [*args.images, *([] if args.infer_imgs is None else [args.infer_imgs])]
    names: Mapping[int, str] = {}
    args.form = Form.PLAIN if args.infer_imgs is None else Form.PREDICT_CLS
    if args.config is not None:
        from pipeline.config.paddleclas import read_infer_config

        if args.model_name is not None:
            raise ConfigError(
                f"--model_name {args.model_name}: {args.config} names a network too; leave one of them out"
            )
        said = read_infer_config(args.config, args.set)
        images = images or [read_location(image) for image in said.images]
        args.topk, args.batch = args.topk or said.topk, args.batch or said.batch
        args.form = Form.INFER if said.trains else Form.PREDICT_CLS
        args.model = args.model or _package_of_config(args)
        names = _read_names(said.class_names)
    elif args.set:
        raise ConfigError(f"-o {args.set[0]}: overrides a config of PaddleClas; give one by -c FILE")
    if args.model_name is not None:
        from pipeline.packages.origin import open_package_of

        if args.model is not None:
            raise ConfigError(f"--model_name {args.model_name}: -m {args.model} names a package; leave one of them out")
        args.model, args.form = open_package_of(args.model_name), Form.PIP
    if not images:
        raise ConfigError("predict: no images; name files or folders")
    args.images, args.topk, args.batch = images, args.topk or _TOPK, args.batch or 0
    return names


def _package_of_config(args: argparse.Namespace) -> Package:
    """Return the package of the config's network that was built last, else the one built last of all, with a note."""
    from pipeline.config.paddleclas import read_network
    from pipeline.packages.origin import compare_weights, find_packages_of
    from pipeline.packages.package import open_package

    said = read_network(args.config, args.set)
    found = find_packages_of(said.name)
    package = open_package(found[-1] if found else None)
    note = compare_weights(package, said.weights)
    if not found:
        note = f"no package of {said.name} is here; the one built last answers: {package.prefix}"
    if note is not None:
        console.warning(f"note: {note}")
    return package


def _read_names(path: Path | None) -> Mapping[int, str]:
    """Return the class names of a config's class_id_map_file, lines `index name`; none where it is not here."""
    if path is None:
        return {}
    if not path.is_file():
        console.note(f"{path} (class_id_map_file) is not here: class names are the package's")
        return {}
    names = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        index, _, name = line.partition(" ")
        if line.strip() and not index.isdecimal():
            raise DataError(f"{path}:{number}: expected an index and a name, got {line[:80]!r}")
        if line.strip():
            names[int(index)] = name
    return names


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
        with _lines(args) as write_line:
            yield write_line
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
def _lines(args: argparse.Namespace) -> Iterator[Callable[[Prediction], None]]:
    """Yield what prints a prediction in the form of the program whose flags were used."""
    if args.form is Form.PIP:
        yield lambda found: print(
            ", ".join(f"{key}: {value}" for key, value in found.as_paddleclas().items()), flush=True
        )
        print("Predict complete!")
    elif args.form is Form.INFER:
        batch: list[dict[str, Any]] = []

        def write(prediction: Prediction) -> None:
            batch.append(prediction.as_paddleclas(command="infer"))
            if len(batch) == max(args.batch, 1):
                print(batch, flush=True)
                batch.clear()

        yield write
        if batch:
            print(batch)
    else:
        base_name = args.form is Form.PREDICT_CLS
        yield lambda found: print(found.as_text(base_name=base_name), flush=True)


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
