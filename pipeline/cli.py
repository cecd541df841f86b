"""The command line: parse, call one function, print. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pipeline.errors import ConfigError, PipelineError

EXIT_FAULT = 2  # something the user can fix
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_READER_GONE = 141  # 128 + SIGPIPE

_RUNTIMES = ("auto", "openvino", "onnxruntime")


class _Parser(argparse.ArgumentParser):
    """Takes full flag names only: `--data` must not come to mean `--datalist` today and something else tomorrow."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_FAULT, f"error: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0, 2 for a fault the user can fix, 130 after Ctrl-C."""
    args = make_parser().parse_args(argv)
    try:
        args.run(args)
        sys.stdout.flush()
    except PipelineError as err:
        for line in str(err).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return EXIT_FAULT
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on where it was", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `| head` has read enough; Python would complain of it when it flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_READER_GONE
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m pipeline", description="Image classifiers in int8 on CPUs: build, bench, eval.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Parser)
    for add in (_add_build, _add_bench, _add_eval, _add_export, _add_calibset, _add_image2npz, _add_check, _add_models):
        add(commands)
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], text: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, epilog=f"example: {example}"
    )
    parser.set_defaults(run=run)
    return parser


def _add_build(commands: Any) -> None:
    parser = _command(
        commands,
        "build",
        _build,
        "make an int8 package from a build file",
        "python -m pipeline build timm_wideres.yaml",
    )
    parser.add_argument("config", metavar="CONFIG", help="a build file, or the name of one in build_configs/")
    parser.add_argument(
        "--weights", metavar="FILE", help="checkpoint, or auto: the published one (frontend.checkpoint)"
    )
    parser.add_argument("--dataset", metavar="DIR", help="calibration images, folder or tar (dataset.path)")
    parser.add_argument("--evaluation", metavar="DIR", help="evaluation images, folder or tar (evaluation.path)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override any key of the build file"
    )


def _build(args: argparse.Namespace) -> None:
    from pipeline.config.build_file import load_build_file

    flags = {
        "frontend.checkpoint": args.weights,
        "dataset.path": args.dataset,
        "evaluation.path": args.evaluation,
    }
    cfg = load_build_file(args.config, args.set, extra=flags)
    from pipeline.build import build, check, summary

    check(cfg)
    for notice in cfg.notices:
        print(f"note: {notice}")
    if cfg.uses_sample:
        print("sample weights, sample images (give --weights and --dataset for your own)")
    built = build(cfg, lambda line: print(line, flush=True))
    print("\n".join(summary(built)))


def _add_load_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m", "--model", type=Path, metavar="PREFIX", help="package as folder/name (the last one built)"
    )
    parser.add_argument("-b", "--batch", type=int, default=1, help="images a request (1)")
    parser.add_argument("-i", "--instances", type=int, default=1, help="requests in flight (1)")
    parser.add_argument("-p", "--processes", type=int, default=1, help="worker processes (1)")
    parser.add_argument("--runtime", choices=_RUNTIMES, default="auto", help="auto: OpenVINO, else ONNX Runtime")


def _shape(text: str) -> list[int]:
    try:
        shape = json.loads(text if text.startswith("[") else f"[{text}]")
    except ValueError:
        shape = None
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(axis) is int for axis in shape):
        raise argparse.ArgumentTypeError(f"expected [C,H,W] such as [3,256,256], got {text!r}")
    return shape


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number > 0, got {text!r}")
    return value


def _add_bench(commands: Any) -> None:
    parser = _command(
        commands,
        "bench",
        _bench,
        "measure throughput and latency; write the answers to a datalist",
        "python -m pipeline bench -b 22 -i 8",
    )
    _add_load_flags(parser)
    parser.add_argument(
        "-s", "--shape", type=_shape, metavar="[C,H,W]", help="input shape, checked against the package"
    )
    parser.add_argument("--vdsp_params", metavar="FILE", help="preprocessing (the package's own)")
    parser.add_argument("--datalist", type=Path, metavar="FILE", help="npz files to answer, a path a line")
    parser.add_argument("--path_output", type=Path, metavar="DIR", help="results folder (output)")
    parser.add_argument("--duration", type=_positive, metavar="S", help="seconds of the performance run (10)")
    parser.add_argument(
        "--iterations", type=int, metavar="N", help="requests of the performance run, instead of a time"
    )
    parser.add_argument("--reference", action="store_true", help="measure the build's float32 model too, in turn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file, - for standard output")


def _bench(args: argparse.Namespace) -> None:
    from pipeline import bench
    from pipeline.package import open_package
    from pipeline.runner import Limit
    from pipeline.runtimes.base import Runtime, choose

    _check_json_path(args.json)
    _check_performance_flags(args)
    load = bench.Load(
        batch=args.batch, instances=args.instances, processes=args.processes, runtime=choose(Runtime(args.runtime))
    )
    package = open_package(args.model)
    bench.check_shape(package, args.shape)
    spec, notes = bench.resolve_preprocess(package, args.vdsp_params)
    # The documents' long form measures speed, or with --datalist makes results; the short form does both.
    datalist = args.datalist
    if datalist is None and (args.model is None or args.path_output is not None):
        datalist = package.workspace_file("datalist")
    if datalist is None and args.path_output is not None:
        raise ConfigError("--path_output: there are no images to answer; give --datalist FILE (image2npz makes it)")
    out = args.path_output or Path("output")
    if datalist is not None:
        bench.check_accuracy_run(datalist, out)
    say = _sayer(args.json)
    say(f"package {package.prefix}{' (sample weights, sample images)' if package.uses_sample else ''}")
    for note in notes:
        say(f"note: {note}")
    performance = comparison = accuracy = None
    limit = Limit(args.duration or Limit.duration_s, args.iterations)
    if args.reference:
        comparison = bench.run_comparison(package, load, spec, limit)
        say("\n".join([*bench.describe(comparison.package[-1], "performance, last round"), str(comparison)]))
    elif args.datalist is None:
        performance = bench.run_performance(package, load, spec, limit)
        say("\n".join(bench.describe(performance, "performance")))
    if datalist is not None:
        accuracy = bench.run_accuracy(package, load, spec, datalist, out)
        if accuracy is not None:
            say("\n".join(bench.describe(accuracy, "from npz to results")))
        say(f"results in {out}/")
    _write_json(args.json, bench.report(package, load, performance, comparison, accuracy))


def _check_performance_flags(args: argparse.Namespace) -> None:
    if args.iterations is not None and args.iterations < 1:
        raise ConfigError(f"--iterations: must be at least 1, got {args.iterations}")
    given = [flag for flag in ("reference", "iterations", "duration") if getattr(args, flag)]
    if args.datalist is not None and given:
        raise ConfigError(f"--{given[0]}: a run over --datalist ends with its images; leave one of the two out")


def _sayer(json_path: Path | None) -> Callable[[str], None]:
    """Return what prints lines for people: on standard error where JSON has standard output."""
    stream = sys.stderr if json_path == Path("-") else sys.stdout
    return lambda text: print(text, file=stream, flush=True)


def _check_json_path(path: Path | None) -> None:
    if path is not None and path.is_dir():
        raise ConfigError(f"--json {path}: is a folder; give a file")


def _write_json(path: Path | None, value: object) -> None:
    from pipeline.artefacts import write_json

    if path == Path("-"):
        print(json.dumps(value, indent=1, sort_keys=True))
    elif path is not None:
        try:
            write_json(path, value)
        except OSError as err:
            raise ConfigError(f"--json {path}: cannot be written ({err.strerror}); give another") from None


def _add_eval(commands: Any) -> None:
    parser = _command(
        commands,
        "eval",
        _eval,
        "top-1 and top-5 of a run, beside float32",
        "python -m pipeline eval --result_path output",
    )
    parser.add_argument("--result_path", type=Path, required=True, metavar="DIR", help="results folder of bench")
    parser.add_argument("--datalist", type=Path, metavar="FILE", help="the datalist of the run, to check it against")
    parser.add_argument(
        "--label", type=Path, metavar="FILE", help="class names, a line a class (the package's), or as --val_label"
    )
    parser.add_argument("--val_label", type=Path, metavar="FILE", help="ground truth: lines 'name index'")
    parser.add_argument(
        "--reference",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="run float32 on the same images and compare (done by itself up to 2000 images)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file, - for standard output")


def _eval(args: argparse.Namespace) -> None:
    from pipeline import evaluate

    _check_json_path(args.json)
    evaluation = evaluate.evaluate(
        evaluate.Request(
            result_path=args.result_path,
            datalist=args.datalist,
            label=args.label,
            val_label=args.val_label,
            reference=args.reference,
        )
    )
    say = _sayer(args.json)
    if evaluation.facts["sample"]:
        say("sample weights, sample images")
    say("\n".join(evaluate.describe(evaluation)))
    _write_json(args.json, evaluate.as_dict(evaluation))


def _add_export(commands: Any) -> None:
    parser = _command(
        commands,
        "export",
        _export,
        "write one network as an ONNX model",
        "python -m pipeline export --model_library timm --model_name wide_resnet50_2 --size 256 --save_dir onnx "
        "--pretrained_weights wide_resnet50_2.pth",
    )
    parser.add_argument("--model_library", default="timm", choices=("timm", "torchvision", "official", "paddleclas"))
    parser.add_argument("--model_name", required=True, help="as `models` lists it")
    parser.add_argument("--size", type=int, default=224, help="height and width of the input, px (224)")
    parser.add_argument("--save_dir", type=Path, default=Path("onnx"), metavar="DIR", help="folder of the model (onnx)")
    parser.add_argument(
        "--pretrained_weights", type=Path, required=True, metavar="FILE", help="checkpoint, or auto: the published one"
    )
    parser.add_argument("--num_classes", type=int, default=1000, help="classes of the checkpoint (1000)")


def _export(args: argparse.Namespace) -> None:
    from pipeline.export_model import export_model

    path, error = export_model(
        args.model_library, args.model_name, args.size, args.save_dir, args.pretrained_weights, args.num_classes
    )
    print(f"{path}: largest difference from torch {error:.1e} of the largest logit")


def _add_calibset(commands: Any) -> None:
    parser = _command(
        commands,
        "calibset",
        _calibset,
        "choose calibration images, every class present",
        "python -m pipeline calibset --dataset_path ILSVRC2012_img_val --num 1000 --out calibration.txt",
    )
    parser.add_argument("--dataset_path", type=Path, required=True, metavar="DIR", help="images, folder or tar")
    parser.add_argument("--num", type=int, default=1000, help="images to choose (1000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another choice (0)")
    parser.add_argument("--suffix", default="JPEG", help="of the image files (JPEG, which takes .jpg and .jpeg)")
    parser.add_argument("--val_label", type=Path, metavar="FILE", help="labels of a flat folder: lines 'name index'")
    parser.add_argument("--out", type=Path, default=Path("calibration.txt"), metavar="FILE", help="(calibration.txt)")


def _calibset(args: argparse.Namespace) -> None:
    from pipeline.data.calibration_list import write_calibration_list
    from pipeline.data.imagenet import list_dataset
    from pipeline.stages.calibset import choose

    dataset = list_dataset(args.dataset_path, args.suffix, args.val_label)
    chosen = choose(dataset, args.num, args.seed)
    write_calibration_list(chosen, args.out, args.seed)
    print(f"{args.out}: {len(chosen)} images of {len({sample.class_index for sample in chosen})} classes")


def _add_image2npz(commands: Any) -> None:
    parser = _command(
        commands,
        "image2npz",
        _image2npz,
        "decode images into npz files and list them",
        "python -m pipeline image2npz --dataset_path ILSVRC2012_img_val --target_path input_npz "
        "--text_path npz_datalist.txt",
    )
    parser.add_argument("--dataset_path", type=Path, required=True, metavar="DIR", help="images, folder or tar")
    parser.add_argument("--target_path", type=Path, required=True, metavar="DIR", help="folder of the npz files")
    parser.add_argument("--text_path", type=Path, default=Path("npz_datalist.txt"), metavar="FILE", help="the datalist")
    parser.add_argument("--suffix", default="JPEG", help="of the image files (JPEG, which takes .jpg and .jpeg)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (one a core)")


def _image2npz(args: argparse.Namespace) -> None:
    from pipeline.stages.image2npz import convert

    if args.workers is not None and args.workers < 1:
        raise ConfigError(f"--workers: must be at least 1, got {args.workers}")
    report = convert(args.dataset_path, args.target_path, args.text_path, args.suffix, args.workers)
    print(f"{report.datalist}: {report.converted + report.kept} images ({report.kept} were done already)")


def _add_check(commands: Any) -> None:
    parser = _command(
        commands,
        "check",
        _check,
        "load build files and vdsp_params and name every fault",
        "python -m pipeline check build_configs/timm_wideres.yaml",
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="build files (.yaml) and vdsp_params (.json)"
    )


def _check(args: argparse.Namespace) -> None:
    from pipeline.config.build_file import load_build_file
    from pipeline.config.vdsp import load_vdsp

    faults = []
    for path in args.files:
        try:
            if path.suffix == ".json":
                load_vdsp(path)
            else:
                load_build_file(path)
            print(f"{path}: ok")
        except PipelineError as err:
            faults.append(str(err))
    if faults:
        raise ConfigError("\n".join(faults))


def _add_models(commands: Any) -> None:
    parser = _command(commands, "models", _models, "list the known networks", "python -m pipeline models iresnet")
    parser.add_argument("words", nargs="*", metavar="WORD", help="only networks whose library or name holds a word")
    parser.add_argument("--json", action="store_true", help="all that is known of them, as JSON")


def _models(args: argparse.Namespace) -> None:
    from pipeline import model_table

    models = model_table.select(args.words)
    for line in [model_table.as_json(models)] if args.json else model_table.lines(models):
        print(line, flush=True)
