"""The network of a build file of the vendor's zoo, as its document exports it: opset 11, batch 1, or TorchScript.

No weights of the zoo are used. Networks of timm and torchvision, and a few written here, stand for those of the code
bases that the zoo names (`NETWORKS` says which); their weights are fitted to the embedded sample. A process of its
own, since it may want another environment than the builds: pip install torch torchvision timm onnxsim.

    python benchmarks/zoo_networks.py BUILD_FILE --images FOLDER --out FOLDER
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import exit_code
from PIL import Image
from torch import nn
from zoo_arguments import read_arguments
from zoo_forms import ESNet, ShuffleNetV1, YoloV5Classifier, YoloV11Classifier

from pipeline.config.build_config import BuildConfig
from pipeline.config.build_file import load_build_file
from pipeline.config.choices import Frontend, Precision
from pipeline.config.vdsp import NormType
from pipeline.data import preprocess
from pipeline.data.imagenet import list_dataset
from pipeline.errors import ConfigError
from pipeline.models import zoo
from pipeline.models.libraries import fuse
from pipeline.weights.sample_weights import SMOOTH, fit_sample_weights

OPSET = 11  # of the zoo's documents
SIMPLIFIED = "_sim"  # part of the name of checkpoints that went through onnxsim


@dataclass(frozen=True)
class Form:
    """What stands for a network of the zoo."""

    says: str
    make: Callable[[int, tuple[int, int]], nn.Module]  # of the number of classes, and height and width of the input
    classes: int = 1000


def of_timm(name: str, classes: int, hw: tuple[int, int]) -> nn.Module:
    import timm

    more = {"img_size": hw} if name.startswith(("swin", "vit")) else {}
    network: nn.Module = timm.create_model(name, num_classes=classes, exportable=True, **more)
    return network


def of_torchvision(name: str, classes: int, hw: tuple[int, int]) -> nn.Module:
    import torchvision

    more = {"init_weights": False, "aux_logits": False, "transform_input": True} if name == "inception_v3" else {}
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **more)
    return network


def resnext152(classes: int, hw: tuple[int, int]) -> nn.Module:
    from timm.models import resnet

    network: nn.Module = resnet.ResNet(
        resnet.Bottleneck, [3, 8, 36, 3], num_classes=classes, cardinality=32, base_width=4
    )
    return network


def iresnet50(classes: int, hw: tuple[int, int]) -> nn.Module:
    return zoo.build_network(zoo.find_model("official", "iresnet50"), classes, hw)


def timm(name: str, classes: int = 1000) -> Form:
    return Form(f"timm {name}", partial(of_timm, name), classes)


def torchvision(name: str) -> Form:
    return Form(f"torchvision {name}", partial(of_torchvision, name))


def own(says: str, network: Callable[[int], nn.Module]) -> Form:
    return Form(f"{says}, own form", lambda classes, hw: network(classes))


NETWORKS = {  # folder/build file of the zoo: what stands for it
    "cspnet/mmcls_cspnet": timm("cspdarknet53"),
    "cspnet/ppcls_cspnet": timm("cspdarknet53"),
    "cspnet/timm_cspnet": timm("cspresnet50"),
    "densenet/mmcls_densenet": torchvision("densenet121"),
    "densenet/ppcls_densenet": torchvision("densenet121"),
    "densenet/timm_densenet": timm("densenet121"),
    "dlanet/ppcls_dlanet": timm("dla34"),
    "dlanet/timm_dlanet": timm("dla34"),
    "dlanet/ucbdrive_dlanet": timm("dla34"),
    "efficientnet/timm_efficientnet": timm("efficientnet_b0"),
    "efficientnet_v2/timm_efficientnet": timm("efficientnetv2_rw_t"),
    "esnet/ppcls_esnet": own("ESNet x0.5", partial(ESNet, 0.5)),
    "ghostnet/ppcls_ghostnet": timm("ghostnet_050"),
    "ghostnet/timm_ghostnet": timm("ghostnet_100"),
    "hrnet/mmcls_hrnet": timm("hrnet_w18"),
    "hrnet/official_hrnet": timm("hrnet_w18"),
    "hrnet/ppcls_hrnet": timm("hrnet_w18_ssld"),
    "hrnet/timm_hrnet": timm("hrnet_w18"),
    "inception_v3/ppcls_inceptionv3": timm("inception_v3"),
    "inception_v3/timm_inceptionv3": timm("inception_v3"),
    "inception_v3/torchvision_inceptionv3": torchvision("inception_v3"),
    "inception_v4/ppcls_inceptionv4": timm("inception_v4"),
    "inception_v4/timm_inceptionv4": timm("inception_v4"),
    "iresnet/official_iresnet": Form("official iresnet50", iresnet50),
    "mnasnet/torchvision_mnasnet": torchvision("mnasnet0_5"),
    "mobilenet_v1/ppcls_mobilenetv1": timm("mobilenetv1_100"),
    "mobilenet_v2/ppcls_mobilenetv2": torchvision("mobilenet_v2"),
    "mobilenet_v2/timm_mobilenetv2": timm("mobilenetv2_100"),
    "mobilenet_v2/torchvision_mobilenetv2": torchvision("mobilenet_v2"),
    "mobilenet_v3/ppcls_mobilenetv3": torchvision("mobilenet_v3_small"),
    "mobilenet_v3/sqlai_mobilenetv3": torchvision("mobilenet_v3_small"),
    "mobilenet_v3/timm_mobilenetv3": timm("mobilenetv3_rw"),
    "mobilenet_v3/torchvision_mobilenetv3": torchvision("mobilenet_v3_small"),
    "mobileone/official_mobileone": timm("mobileone_s4"),
    "mobilevit/mobilevit_apple": timm("mobilevit_s"),
    "pplcnet/ppcls_pplcnet": timm("lcnet_035"),
    "pplcnet_doc_ori/pplcnet_x1_0_doc_ori": timm("lcnet_100", 4),
    "pplcnet_textline_ori/pplcnet_textline_ori": timm("lcnet_100", 2),
    "pplcnet_v2/ppcls_pplcnet_v2": timm("lcnetv2_base"),
    "repopt/official_repopt": timm("repvgg_b1"),
    "repvgg/official_repvgg": timm("repvgg_a0"),
    "res2net/ppcls": timm("res2net50_14w_8s"),
    "resnest/official_resnest": timm("resnest101e"),
    "resnet/mmcls_resnet": torchvision("resnet50"),
    "resnet/ppcls_resnet": torchvision("resnet50"),
    "resnet/torch_resnet": torchvision("resnet50"),
    "resnext/mmcls_resnext": Form("timm ResNeXt-152 32x4d", resnext152),
    "resnext/ppcls_resnext": Form("timm ResNeXt-152 32x4d", resnext152),
    "resnext/timm_resnext": timm("resnext50_32x4d"),
    "resnext/torchvision_resnext": torchvision("resnext101_32x8d"),
    "senet/timm_senet": timm("legacy_seresnet18"),
    "shufflenet_v1/megvii_shufflenet_v1": own("ShuffleNet 1x, 3 groups", ShuffleNetV1),
    "shufflenet_v1/mmcls_shufflenet_v1": own("ShuffleNet 1x, 3 groups", ShuffleNetV1),
    "shufflenet_v2/megvii_shufflenetv2": torchvision("shufflenet_v2_x1_0"),
    "shufflenet_v2/mmcls_shufflenetv2": torchvision("shufflenet_v2_x1_0"),
    "shufflenet_v2/ppcls_shufflenetv2": torchvision("shufflenet_v2_x1_0"),
    "shufflenet_v2/torchvision_shufflenetv2": torchvision("shufflenet_v2_x1_0"),
    "swin_transformer/microsoft_swin_transformer": timm("swin_base_patch4_window7_224"),
    "vgg/mmpretrain_vgg": torchvision("vgg16_bn"),
    "vgg/ppcls_vgg": torchvision("vgg11"),
    "vgg/timm_vgg": timm("vgg11"),
    "vgg/torchvision_vgg": torchvision("vgg11_bn"),
    "vision_transformer/vit_huggingface": timm("vit_base_patch16_224"),
    "vovnet/timm_vovnet": timm("ese_vovnet39b"),
    "wide_resnet/timm_wideres": timm("wide_resnet50_2"),
    "wide_resnet/torchvision_wideres": torchvision("wide_resnet50_2"),
    "xception/ppcls_xception": timm("xception41"),
    "xception/timm_xception": timm("legacy_xception"),
    "yolov11_cls/official_yolov11_cls_fp16": own("YOLO11n-cls", YoloV11Classifier),
    "yolov11_cls/official_yolov11_cls_int8": own("YOLO11n-cls", YoloV11Classifier),
    "yolov5_cls/official_yolov5_cls_fp16": own("YOLOv5m-cls", YoloV5Classifier),
    "yolov5_cls/official_yolov5_cls_int8": own("YOLOv5m-cls", YoloV5Classifier),
}


def key_of(build_file: Path) -> str:
    """Return `folder/build file` of `cv/classification/FOLDER/build_in/build/BUILD_FILE.yaml`."""
    return f"{build_file.parents[2].name}/{build_file.stem}"


def form_of(build_file: Path) -> Form:
    key = key_of(build_file)
    if key not in NETWORKS:
        raise ConfigError(f"{build_file}: no network stands for {key}")
    return NETWORKS[key]


def fit(network: nn.Module, cfg: BuildConfig, images: Path, most: int) -> None:
    """Fill a network with weights that tell up to `most` classes apart; of float16 builds it keeps its own."""
    if cfg.backend.dtype is not Precision.INT8:
        return
    listed = list_dataset(images, "any", None, None).samples
    listed = listed[:: -(-len(listed) // most)]

    def prepare(image: Image.Image) -> Any:
        pixels = np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
        return preprocess.apply(cfg.preprocess, pixels)

    fit_sample_weights(
        network, prepare, [(Path(str(each.source)), each.class_index or 0) for each in listed], norm_bias=SMOOTH
    )


def write(network: nn.Module, cfg: BuildConfig, stem: Path) -> Path:
    """Write the network as the zoo's documents do; return the file."""
    image = torch.zeros(1, *cfg.frontend.chw)
    if cfg.frontend.type is Frontend.PYTORCH:
        path = stem.with_name(f"{stem.name}.torchscript.pt")
        with torch.inference_mode():
            torch.jit.save(torch.jit.trace(network, image), str(path))  # type: ignore[no-untyped-call]
        return path
    path = stem.with_name(f"{stem.name}.onnx")
    with torch.inference_mode():
        torch.onnx.export(
            network,
            (image,),
            str(path),
            dynamo=False,
            input_names=[cfg.frontend.input_name],
            output_names=["output"],
            opset_version=OPSET,
        )
    if is_simplified(cfg):
        import onnx
        from onnxsim import simplify

        simplified, same = simplify(onnx.load(path))
        if not same:
            raise ConfigError(f"{path}: onnxsim made another network of it")
        onnx.save(simplified, path)
    return path


def is_simplified(cfg: BuildConfig) -> bool:
    return cfg.frontend.checkpoint is not None and SIMPLIFIED in cfg.frontend.checkpoint.stem


def stem_of(form: Form, cfg: BuildConfig, fitted: int) -> str:
    """Return a file name of all that a network depends on: build files that agree in it share the network."""
    given = (form.says, cfg.frontend.type, cfg.frontend.chw, cfg.frontend.input_name, is_simplified(cfg))
    spec = cfg.preprocess
    mean, std = (tuple(round(each, 6) for each in values) for values in (spec.mean, spec.std))
    same = replace(spec, mean=mean, std=std, norm=NormType.DIV255_MINUSMEAN_DIVSTD)  # however the file writes them
    words = repr((*given, cfg.backend.dtype, same, fitted))
    return f"{re.sub(r'[^A-Za-z0-9]+', '_', form.says)}-{hashlib.sha256(words.encode()).hexdigest()[:12]}"


def make(form: Form, cfg: BuildConfig, args: argparse.Namespace) -> Path:
    """Return the file of the network; one that an earlier run made is taken."""
    stem = args.out / stem_of(form, cfg, args.fit_images)
    for path in args.out.glob(f"{stem.name}.*"):
        if path.suffix in (".onnx", ".pt"):
            return path
    args.out.mkdir(parents=True, exist_ok=True)
    network = form.make(form.classes, cfg.frontend.chw[1:]).eval()
    fit(network, cfg, args.images, args.fit_images)
    with tempfile.TemporaryDirectory(dir=args.out) as scratch:
        path = write(fuse(network), cfg, Path(scratch) / stem.name)
        return path.rename(args.out / path.name)


def run(args: argparse.Namespace) -> None:
    warnings.simplefilter("ignore")
    import timm

    timm.layers.set_fused_attn(False)  # no operator of opset 11
    torch.manual_seed(0)
    cfg = load_build_file(args.build_file, args.set)
    form = form_of(args.build_file)
    print(json.dumps({"file": str(make(form, cfg, args)), "form": form.says}))


def main(argv: list[str]) -> int:
    args = read_arguments(__doc__, argv)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
