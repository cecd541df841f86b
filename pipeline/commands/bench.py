"""The `bench` command."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.commands.flags import (
    RUNTIMES,
    add_command,
    add_engine_flags,
    add_json_flag,
    add_model_flag,
    add_report_flag,
    add_results_flag,
    check_json_path,
    check_report_path,
    cluster_of,
    print_json,
    read_local_path,
    read_location,
    sayer,
)
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.measure.bench_options import BenchOptions
    from pipeline.run.plan import Limit


def _add_load_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flag(parser)
    found = "what --sweep found"
    parser.add_argument("-b", "--batch", type=int, help=f"images per request (default: {found}, else 1)")
    parser.add_argument("-i", "--instances", type=int, help=f"requests in flight (default: {found}, else 1)")
    parser.add_argument("-p", "--processes", type=int, default=1, help="worker processes")
    parser.add_argument(
        "--runtime", choices=RUNTIMES, help=f"auto: the one that the build found faster (default: {found}, else auto)"
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
        "measure throughput and latency; write the predictions for a datalist",
        "python -m pipeline bench -b 22 -i 8",
    )
    _add_load_flags(parser)
    parser.add_argument(
        "-s", "--shape", type=_shape, metavar="[C,H,W]", help="input shape, checked against the package"
    )
    parser.add_argument("--vdsp_params", metavar="FILE", help="preprocessing file (default: the package's own)")
    parser.add_argument(
        "--datalist", type=read_local_path, metavar="FILE", help="npz files to predict, one path or URL per line"
    )
    add_results_flag(parser, type=read_location, help="results folder, path or URL (default: output)")
    parser.add_argument(
        "--duration", type=_positive, metavar="S", help="length of the performance run in seconds (default: 10)"
    )
    parser.add_argument(
        "--iterations", type=int, metavar="N", help="length of the performance run in requests, instead of --duration"
    )
    parser.add_argument(
        "--reference", action="store_true", help="also measure the build's float32 model, in alternating rounds"
    )
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="find the best --runtime, -b and -i for this machine, and keep them for later runs",
    )
    parser.add_argument(
        "--max_latency", type=_positive, metavar="MS", help="with --sweep: limit for the 95th percentile of the latency"
    )
    parser.add_argument(
        "--documents",
        action="store_true",
        help="measure latency at batch 1, 4 and 8, beside the GPU figures of the vendor's documents for the network",
    )
    add_engine_flags(parser, "with --datalist: ")
    add_report_flag(parser, "with --sweep: ")
    add_json_flag(parser)


def _bench(args: argparse.Namespace) -> None:
    from pipeline.measure.bench import bench
    from pipeline.packages.package import open_package

    check_json_path(args.json)
    check_report_path(args.report)
    options = _options(args)
    if options.cluster is not None:
        _check_cluster_flags(args)
    if args.documents:
        _compare_with_documents(args, options.limit)
        return
    if args.sweep:
        _sweep(args)
        return
    _check_no_sweep_flags(args)
    package = open_package(args.model)
    # The documents' long form measures speed, or with --datalist makes results; the short form does both.
    if options.results is None and args.model is None and package.workspace_file("datalist"):
        options = replace(options, results="output")
    found = bench(package, options, say=sayer(args.json))
    print_json(args.json, found.as_dict())


def _options(args: argparse.Namespace) -> BenchOptions:
    from pipeline.measure.bench_options import BenchOptions

    return BenchOptions(
        batch=args.batch,
        instances=args.instances,
        processes=args.processes,
        runtime=args.runtime,
        shape=args.shape,
        vdsp_params=args.vdsp_params,
        speed=args.datalist is None,
        duration=args.duration,
        iterations=args.iterations,
        reference=args.reference,
        datalist=args.datalist,
        results=args.results,
        cluster=cluster_of(args),
    )


def _compare_with_documents(args: argparse.Namespace, limit: Limit) -> None:
    from pipeline.measure import documented_latency
    from pipeline.measure.bench import check_shape
    from pipeline.packages.package import open_package

    others = (*("batch", "instances", "datalist", "results", "vdsp_params"), *("reference", "sweep", "report"))
    given = [name for name in others if getattr(args, name) not in (None, False)]
    if given or args.processes != 1:
        raise ConfigError(
            "--documents: measures batch 1, 4 and 8 with one request in flight, and nothing else; leave "
            f"--{(*given, 'processes')[0]} out"
        )
    package = open_package(args.model)
    check_shape(package, args.shape)
    found = documented_latency.measure(package, args.runtime, limit)
    say = sayer(args.json)
    say(package.heading)
    say("\n".join(found.lines()))
    print_json(args.json, found.as_dict())


def _sweep(args: argparse.Namespace) -> None:
    from pipeline.measure.bench import check_shape
    from pipeline.packages.package import open_package
    from pipeline.run import sweep, sweep_record
    from pipeline.runtimes.base import Runtime
    from pipeline.runtimes.opening import choose

    others = ("batch", "instances", "datalist", "results", "vdsp_params", "iterations", "reference")
    given = [name for name in others if getattr(args, name) not in (None, False)]
    if given or args.processes != 1:
        raise ConfigError(f"--sweep: chooses the load and runs nothing else; leave --{(*given, 'processes')[0]} out")
    runtime = Runtime(args.runtime or "auto")
    choose(runtime)
    package = open_package(args.model)
    check_shape(package, args.shape)
    say = sayer(args.json)
    say(package.heading)
    found = sweep.sweep(package, runtime, args.max_latency, args.duration or sweep.SECONDS)
    say("\n".join(sweep.describe(found)))
    say(f"kept in {sweep_record.remember(package, found)}: bench without --runtime, -b and -i takes it from there")
    if args.report is not None:
        from pipeline.reports import sweep as page

        page.write(package, found, args.report)
        say(f"report in {args.report}")
    print_json(args.json, sweep_record.as_dict(package, found))


def _check_no_sweep_flags(args: argparse.Namespace) -> None:
    if args.max_latency is not None:
        raise ConfigError("--max_latency: is a limit for --sweep; add that, or leave it out")
    if args.report is not None:
        raise ConfigError("--report: works only with --sweep; add that, or give --report to eval, for accuracy")


def _check_cluster_flags(args: argparse.Namespace) -> None:
    if args.datalist is None:
        raise ConfigError("--engine ray: is for a run over --datalist FILE; speed is measured on one machine at a time")
    if args.processes != 1:
        raise ConfigError(
            "--processes: --engine ray starts as many workers as fit on the nodes, one for -i cores; leave -p out"
        )
