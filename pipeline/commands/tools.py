"""The steps by themselves, and what is known of files, networks and this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.commands.flags import add_command, add_engine_flags, cluster_of, file_here, place, sayer
from pipeline.errors import ConfigError, PipelineError


def add_export(commands: Any) -> None:
    parser = add_command(
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
    _add_checkpoint_key(parser)


def _add_checkpoint_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint_key", metavar="KEY", help="which weights of the checkpoint (the averaged ones, or all there are)"
    )


def _export(args: argparse.Namespace) -> None:
    from pipeline.prepare.export_model import export_model

    path, error = export_model(
        args.model_library,
        args.model_name,
        args.size,
        args.save_dir,
        args.pretrained_weights,
        args.num_classes,
        args.checkpoint_key,
    )
    print(f"{path}: largest difference from torch {error:.1e} of the largest logit")


def add_calibset(commands: Any) -> None:
    parser = add_command(
        commands,
        "calibset",
        _calibset,
        "choose calibration images, every class present",
        "python -m pipeline calibset --dataset_path ILSVRC2012_img_val --num 1000 --out calibration.txt",
    )
    parser.add_argument("--dataset_path", type=Path, required=True, metavar="DIR", help="images, folder or tar")
    parser.add_argument("--num", type=int, default=1000, help="images to choose (1000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another choice (0)")
    _add_suffix(parser)
    parser.add_argument("--val_label", type=Path, metavar="FILE", help="labels of a flat folder: lines 'name index'")
    parser.add_argument(
        "--class_order", choices=("text", "numeric"), help="of class folders that are numbers (dataset.class_order)"
    )
    parser.add_argument("--out", type=Path, default=Path("calibration.txt"), metavar="FILE", help="(calibration.txt)")


def _add_suffix(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suffix", default="any", help="of the image files: JPEG (.jpg too), png, ... (any)")


def _calibset(args: argparse.Namespace) -> None:
    from pipeline.config.build_config import ClassOrder
    from pipeline.data.calibration_list import write_calibration_list
    from pipeline.data.imagenet import list_dataset
    from pipeline.stages.calibset import choose

    order = None if args.class_order is None else ClassOrder(args.class_order)
    dataset = list_dataset(args.dataset_path, args.suffix, args.val_label, class_order=order)
    chosen = choose(dataset, args.num, args.seed)
    write_calibration_list(chosen, args.out, args.seed)
    print(f"{args.out}: {len(chosen)} images of {len({sample.class_index for sample in chosen})} classes")


def add_image2npz(commands: Any) -> None:
    parser = add_command(
        commands,
        "image2npz",
        _image2npz,
        "decode images into npz files and list them",
        "python -m pipeline image2npz --dataset_path ILSVRC2012_img_val --target_path input_npz "
        "--text_path npz_datalist.txt",
    )
    parser.add_argument("--dataset_path", type=place, required=True, metavar="DIR", help="images: folder, tar or URL")
    parser.add_argument(
        "--target_path", type=place, required=True, metavar="DIR", help="folder or URL of the npz files"
    )
    parser.add_argument(
        "--text_path", type=file_here, default=Path("npz_datalist.txt"), metavar="FILE", help="the datalist"
    )
    _add_suffix(parser)
    parser.add_argument("--workers", type=int, metavar="N", help="processes (one a core)")
    add_engine_flags(parser)


def _image2npz(args: argparse.Namespace) -> None:
    from pipeline.stages.image2npz import convert

    if args.workers is not None and args.workers < 1:
        raise ConfigError(f"--workers: must be at least 1, got {args.workers}")
    cluster = cluster_of(args)
    report = convert(args.dataset_path, args.target_path, args.text_path, args.suffix, args.workers, cluster)
    print(f"{report.datalist}: {report.converted + report.kept} images ({report.kept} were done already)")


def add_check(commands: Any) -> None:
    parser = add_command(
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


def add_models(commands: Any) -> None:
    parser = add_command(commands, "models", _models, "list the known networks", "python -m pipeline models iresnet")
    parser.add_argument("words", nargs="*", metavar="WORD", help="only networks whose library or name holds a word")
    parser.add_argument("--json", action="store_true", help="all that is known of them, as JSON")


def _models(args: argparse.Namespace) -> None:
    from pipeline.prepare import model_table

    models = model_table.select(args.words)
    for line in [model_table.as_json(models)] if args.json else model_table.lines(models):
        print(line, flush=True)


def add_doctor(commands: Any) -> None:
    parser = add_command(
        commands,
        "doctor",
        _doctor,
        "say whether this machine is fit, and what to install",
        "python -m pipeline doctor",
    )
    parser.add_argument(
        "--workspace", type=Path, default=Path("deploy_weights"), metavar="DIR", help="where builds go (deploy_weights)"
    )


def _doctor(args: argparse.Namespace) -> None:
    from pipeline.prepare import doctor

    findings = doctor.examine(args.workspace)
    print("\n".join(map(str, findings)))
    faults = doctor.faults(findings)
    if faults:
        raise PipelineError(f"this machine is not fit: {faults} fault(s) to mend, see above")
    print("this machine is fit")


def add_init(commands: Any) -> None:
    parser = add_command(
        commands,
        "init",
        _init,
        "write a build file for your own weights and images",
        "python -m pipeline init mynet.yaml --weights mynet.pth --dataset images/train --evaluation images/val",
    )
    parser.add_argument("out", type=Path, metavar="FILE.yaml", help="the build file to write, - for standard output")
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="checkpoint, or an ONNX model")
    parser.add_argument("--dataset", type=Path, required=True, metavar="DIR", help="a folder a class, or a tar of that")
    parser.add_argument("--evaluation", type=Path, metavar="DIR", help="the same of images to evaluate on")
    parser.add_argument("--model", metavar="LIBRARY/NAME", help="as `models` lists it (found out from the weights)")
    parser.add_argument("--size", type=int, metavar="PX", help="height and width of the input (the network's usual)")
    _add_checkpoint_key(parser)
    _add_suffix(parser)
    parser.add_argument("--val_label", type=Path, metavar="FILE", help="labels of the dataset: lines 'name index'")


def _init(args: argparse.Namespace) -> None:
    from pipeline.prepare import new_build_file

    if args.size is not None and not 1 <= args.size <= 16384:
        raise ConfigError(f"--size: must be in 1..16384, got {args.size}")
    given = new_build_file.Given(
        args.out,
        args.weights,
        args.dataset,
        args.evaluation,
        args.model,
        args.size,
        args.checkpoint_key,
        args.suffix,
        args.val_label,
    )
    say = sayer(args.out)
    say("\n".join(new_build_file.write(given)))
    if args.out.is_file():
        say(f"{args.out} written; next: python -m pipeline build {args.out}")
