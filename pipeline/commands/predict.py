"""The `predict` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.flags import (
    RUNTIMES,
    add_command,
    add_engine_flags,
    add_model_flag,
    add_override_flag,
    check_json_path,
    cluster_of,
    count,
    open_output,
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
    from pipeline.run.prediction_writers import Form, Write


_TOPK = 5


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What is asked: of the flags and, where they say nothing, of a config of PaddleClas."""

    images: Sequence[Location]
    package: Package | Path | None  # None: the one built last
    topk: int
    batch: int  # 0: what suits the machine
    form: Form
    names: Mapping[int, str]  # class names in place of the package's


def add_predict(commands: Any) -> None:
    parser = add_command(
        commands,
        "predict",
        _predict,
        "classify images",
        "python -m pipeline predict cat.jpg photos/ --topk 3",
    )
    parser.add_argument(
        "images",
        type=read_location,
        nargs="*",
        metavar="IMAGE|FOLDER",
        help="image files, npz files or folders; paths or URLs",
    )
    parser.add_argument("--infer_imgs", type=read_location, metavar="PATH", help="PaddleClas's name for the same")
    parser.add_argument(
        "--model_name",
        metavar="NAME",
        help="a PaddleClas network: take the last package built of it, and print lines as PaddleClas does",
    )
    parser.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help="take images, batch size and topk from a PaddleClas config"
    )
    add_override_flag(parser)
    add_model_flag(parser)
    parser.add_argument("--topk", type=count, metavar="K", help=f"classes per image (default: {_TOPK})")
    parser.add_argument(
        "-b", "--batch", type=count, help="images per inference (default: what bench --sweep found, else 8)"
    )
    parser.add_argument("--runtime", choices=RUNTIMES, default="auto", help="auto: what bench --sweep found")
    parser.add_argument(
        "--skip_bad", action="store_true", help="skip images that cannot be read, with a warning; the exit code stays 0"
    )
    written = parser.add_mutually_exclusive_group()
    written.add_argument(
        "--json", type=read_local_path, metavar="FILE", help="write a list of JSON objects; - is standard output"
    )
    written.add_argument(
        "--csv", type=read_local_path, metavar="FILE", help="write one row per class; - is standard output"
    )
    add_engine_flags(parser)


def _predict(args: argparse.Namespace) -> None:
    from pipeline.run.inputs import find_images
    from pipeline.run.predict import Classifier
    from pipeline.terminal.progress import progress_bar

    check_json_path(args.json)
    cluster = cluster_of(args)
    asked = _read_request(args)
    paths = find_images(asked.images)
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
        Classifier(asked.package, runtime=args.runtime, batch=asked.batch) as classifier,
        _writer(args, asked) as write,
        progress_bar(len(paths), "predict", "img", shown=not shows_lines) as progress,
    ):
        for note in classifier.notes:
            console.warning(f"note: {note}")
        if classifier.package.uses_sample:
            console.warning("sample weights, sample images: predictions for photos are meaningless")
        with closing(_predictions(cluster, classifier, paths, asked.topk, skip)) as predictions:
            for prediction in predictions:
                write(prediction.renamed(asked.names))
                progress.update()
    if len(paths) > 1:
        spent = "  ".join(f"{name} {seconds:.1f}" for name, seconds in classifier.seconds.items())
        console.detail(f"thread seconds in: {spent} (infer includes waiting for a stream)")
    if bad:
        _end_with_bad(len(bad), len(paths), accepted=args.skip_bad)


def _read_request(args: argparse.Namespace) -> _Request:
    """Return what the flags ask for.

    Raises:
        ConfigError: no images are named, or flags that exclude each other are given.
    """
    if args.config is not None:
        asked = _read_config(args)
    elif args.set:
        raise ConfigError(f"-o {args.set[0]}: overrides a config of PaddleClas; give one by -c FILE")
    else:
        asked = _read_flags(args)
    if not asked.images:
        raise ConfigError("predict: no images; name files or folders")
    return asked


def _images(args: argparse.Namespace) -> list[Location]:
    return [*args.images, *([] if args.infer_imgs is None else [args.infer_imgs])]


def _read_flags(args: argparse.Namespace) -> _Request:
    from pipeline.packages.origin import open_package_of
    from pipeline.run.prediction_writers import Form

    package, form = args.model, Form.PLAIN if args.infer_imgs is None else Form.PREDICT_CLS
    if args.model_name is not None:
        if args.model is not None:
            raise ConfigError(f"--model_name {args.model_name}: -m {args.model} names a package; leave one of them out")
        package, form = open_package_of(args.model_name), Form.PIP
    return _Request(
        images=_images(args), package=package, topk=args.topk or _TOPK, batch=args.batch or 0, form=form, names={}
    )


def _read_config(args: argparse.Namespace) -> _Request:
    """Return what a config of PaddleClas asks for; flags win over it."""
    from pipeline.config.class_map import read_class_map
    from pipeline.config.paddleclas import read_infer_config
    from pipeline.run.prediction_writers import Form

    if args.model_name is not None:
        raise ConfigError(f"--model_name {args.model_name}: {args.config} names a network too; leave one of them out")
    said = read_infer_config(args.config, args.set)
    return _Request(
        images=_images(args) or [read_location(image) for image in said.images],
        package=args.model or _package_of_config(args),
        topk=args.topk or said.topk or _TOPK,
        batch=args.batch or said.batch or 0,
        form=Form.INFER if said.trains else Form.PREDICT_CLS,
        names=read_class_map(said.class_names),
    )


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
def _writer(args: argparse.Namespace, asked: _Request) -> Iterator[Write]:
    """Yield what writes one prediction in the form that the flags ask for."""
    from pipeline.run.prediction_writers import write_csv, write_json_list, write_lines

    if args.csv is not None:
        with open_output("--csv", args.csv) as stream, write_csv(stream) as write:
            yield write
    elif args.json is not None:
        with open_output("--json", args.json) as stream, write_json_list(stream) as write:
            yield write
    else:
        with write_lines(asked.form, max(asked.batch, 1)) as write:
            yield write
