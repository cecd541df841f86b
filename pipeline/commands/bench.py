"""The three commands: build, bench and eval."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.flags import (
    RUNTIMES,
    add_command,
    add_engine_flags,
    add_report_flag,
    check_json_path,
    check_report_path,
    cluster_of,
    file_here,
    place,
    print_json,
    sayer,
)
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.measure.bench import Load
    from pipeline.packages.package import Package


def _add_load_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m", "--model", type=Path, metavar="PREFIX", help="package as folder/name (the last one built)"
    )
    found = "what --sweep found"
    parser.add_argument("-b", "--batch", type=int, help=f"images a request ({found}, else 1)")
    parser.add_argument("-i", "--instances", type=int, help=f"requests in flight ({found}, else 1)")
    parser.add_argument("-p", "--processes", type=int, default=1, help="worker processes (1)")
    parser.add_argument(
        "--runtime", choices=RUNTIMES, help=f"auto: the one that the build found faster ({found}, else auto)"
    )


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


def add_bench(commands: Any) -> None:
    parser = add_command(
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
    parser.add_argument("--datalist", type=file_here, metavar="FILE", help="npz files to answer, a path or URL a line")
    parser.add_argument("--path_output", type=place, metavar="DIR", help="results folder, path or URL (output)")
    parser.add_argument("--duration", type=_positive, metavar="S", help="seconds of the performance run (10)")
    parser.add_argument(
        "--iterations", type=int, metavar="N", help="requests of the performance run, instead of a time"
    )
    parser.add_argument("--reference", action="store_true", help="measure the build's float32 model too, in turn")
    parser.add_argument(
        "--sweep", action="store_true", help="find the best --runtime -b -i of this machine, and keep it for later runs"
    )
    parser.add_argument(
        "--max_latency", type=_positive, metavar="MS", help="of --sweep: what 95%% of the requests must stay under"
    )
    add_engine_flags(parser, "of --datalist: ")
    add_report_flag(parser, "of --sweep: ")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file, - for standard output")


def _bench(args: argparse.Namespace) -> None:
    from pipeline.measure import bench
    from pipeline.packages.choice import choose_for
    from pipeline.packages.package import open_package
    from pipeline.run.runner import Limit

    check_json_path(args.json)
    check_report_path(args.report)
    _check_performance_flags(args)
    cluster = cluster_of(args)
    if cluster is not None:
        _check_cluster_flags(args)
    if args.sweep:
        _sweep(args)
        return
    if args.max_latency is not None:
        raise ConfigError("--max_latency: is a limit for --sweep; add that, or leave it out")
    if args.report is not None:
        raise ConfigError("--report: is the page of --sweep; add that, or give --report to eval, for accuracy")
    given = _load(args)
    package = open_package(args.model)
    bench.check_shape(package, args.shape)
    spec, notes = bench.resolve_preprocess(package, args.vdsp_params)
    load, found = (given, []) if given else _swept_load(package, args.processes)
    notes += [*found, *choose_for(package, load.runtime).notes]
    # The documents' long form measures speed, or with --datalist makes results; the short form does both.
    datalist = args.datalist
    if datalist is None and (args.model is None or args.path_output is not None):
        datalist = package.workspace_file("datalist")
    if datalist is None and args.path_output is not None:
        raise ConfigError("--path_output: there are no images to answer; give --datalist FILE (image2npz makes it)")
    out = args.path_output or Path("output")
    if datalist is not None:
        bench.check_accuracy_run(datalist, out)
    say = sayer(args.json)
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
        accuracy = bench.run_accuracy(package, load, spec, datalist, out, cluster)
        if accuracy is not None:
            say("\n".join(bench.describe(accuracy, "from npz to results", cluster)))
        say(f"results in {out}/")
    print_json(args.json, bench.report(package, load, performance, comparison, accuracy, cluster))


def _load(args: argparse.Namespace) -> Load | None:
    """Return the load that the flags name; None where they leave it open."""
    from pipeline.measure import bench
    from pipeline.runtimes.base import Runtime
    from pipeline.runtimes.opening import choose

    if args.batch is None and args.instances is None and args.runtime is None:
        bench.Load(processes=args.processes)  # says what is wrong with it
        return None
    batch = 1 if args.batch is None else args.batch
    instances = 1 if args.instances is None else args.instances
    runtime = Runtime(args.runtime or "auto")
    choose(runtime)  # says where it is not installed
    return bench.Load(batch=batch, instances=instances, processes=args.processes, runtime=runtime)


def _swept_load(package: Package, processes: int) -> tuple[Load, list[str]]:
    """Return the load that a sweep found best here, or the least there is, and what the user should know of it."""
    from pipeline.measure import bench
    from pipeline.run import sweep
    from pipeline.runtimes.base import Runtime

    found = sweep.recall(package)
    if found is None:
        return bench.Load(processes=processes), []
    setting, path = found
    runtime = Runtime(setting.runtime)
    load = bench.Load(batch=setting.batch, instances=setting.instances, processes=processes, runtime=runtime)
    return load, [f"{setting.flags()}, which --sweep found best here ({path})"]


def _sweep(args: argparse.Namespace) -> None:
    from pipeline.measure import bench
    from pipeline.packages.package import open_package
    from pipeline.run import sweep
    from pipeline.runtimes.base import Runtime
    from pipeline.runtimes.opening import choose

    others = ("batch", "instances", "datalist", "path_output", "vdsp_params", "iterations", "reference")
    given = [name for name in others if getattr(args, name) not in (None, False)]
    if given or args.processes != 1:
        raise ConfigError(f"--sweep: chooses the load and runs nothing else; leave --{(*given, 'processes')[0]} out")
    runtime = Runtime(args.runtime or "auto")
    choose(runtime)
    package = open_package(args.model)
    bench.check_shape(package, args.shape)
    say = sayer(args.json)
    say(f"package {package.prefix}{' (sample weights, sample images)' if package.uses_sample else ''}")
    found = sweep.sweep(package, runtime, args.max_latency, args.duration or sweep.SECONDS)
    say("\n".join(sweep.describe(found)))
    say(f"kept in {sweep.remember(package, found)}: bench without --runtime, -b and -i takes it from there")
    if args.report is not None:
        from pipeline.reports import sweep as page

        page.write(package, found, args.report)
        say(f"report in {args.report}")
    print_json(args.json, sweep.as_dict(package, found))


def _check_performance_flags(args: argparse.Namespace) -> None:
    if args.iterations is not None and args.iterations < 1:
        raise ConfigError(f"--iterations: must be at least 1, got {args.iterations}")
    given = [flag for flag in ("reference", "iterations", "duration") if getattr(args, flag)]
    if args.datalist is not None and given:
        raise ConfigError(f"--{given[0]}: a run over --datalist ends with its images; leave one of the two out")


def _check_cluster_flags(args: argparse.Namespace) -> None:
    if args.datalist is None:
        raise ConfigError("--engine ray: is for a run over --datalist FILE; speed is measured on one machine at a time")
    if args.processes != 1:
        raise ConfigError(
            "--processes: --engine ray starts as many workers as have room, one for -i cores; leave -p out"
        )
