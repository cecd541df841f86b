"""The `package` command: a package in the formats of other servers and runtimes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.commands.flags import add_command, add_model_flag, count
from pipeline.errors import ConfigError


def add_package(commands: Any) -> None:
    parser = add_command(
        commands,
        "package",
        _package,
        "convert a package to OpenVINO IR or ORT format, or for Triton or KServe",
        "python -m pipeline package --format triton --out models",
    )
    add_model_flag(parser)
    parser.add_argument("--format", required=True, choices=("openvino", "ort", "triton", "kserve"))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="an empty or new folder")
    served = parser.add_argument_group("with --format triton and kserve")
    served.add_argument(
        "--backend", choices=("onnxruntime", "openvino"), help="the runtime there (default: onnxruntime)"
    )
    served.add_argument(
        "-b",
        "--batch",
        type=count,
        metavar="N",
        help="largest batch (default: what bench --sweep found, else 32)",
    )
    served.add_argument(
        "-i", "--instances", type=count, metavar="N", help="model instances (default: one per core of this machine)"
    )
    served.add_argument(
        "--storage_uri", metavar="URI", help="with kserve: where the folder will be, such as s3://BUCKET/FOLDER"
    )


def _package(args: argparse.Namespace) -> None:
    from pipeline.host import hardware
    from pipeline.packages import formats
    from pipeline.packages.package import open_package
    from pipeline.run import sweep_record

    served = ("backend", "batch", "instances", "storage_uri")
    given = [name for name in served if getattr(args, name) is not None]
    if given and args.format not in ("triton", "kserve"):
        raise ConfigError(f"--{given[0]}: works only with --format triton or kserve; leave it out")
    if args.storage_uri is not None and args.format != "kserve":
        raise ConfigError("--storage_uri: works only with --format kserve; leave it out")
    package = open_package(args.model)
    swept = sweep_record.recall(package)
    instances = args.instances or hardware.available_cores()
    wanted = formats.Wanted(
        format=formats.Format(args.format),
        out=args.out,
        backend=formats.TritonBackend(args.backend or "onnxruntime"),
        batch=args.batch or (swept[0].batch if swept else formats.Wanted.batch),
        instances=instances,
        threads=max(1, hardware.available_cores() // instances),
        storage_uri=args.storage_uri,
    )
    for path in formats.write(package, wanted):
        print(path)
