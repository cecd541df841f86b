#!/bin/sh
# torchao's X86InductorQuantizer given a network whose layers are called as functions: F.conv2d and F.linear.
# Versions: torch 2.13.0, torchao 0.18.0, numpy 2.4.6.
# Guess: `torch.export` turns nn.Conv2d and F.conv2d into the same operator of the graph, aten.conv2d, and the tutorial
#   says that the flow works on that graph, so both are quantized. What cannot be quantized is named or refused.
# Behaviour: the layers called as functions stay float32. Layers are found by the class of module that made an operator,
#   not by the operator, so prepare_pt2e places no observer and convert_pt2e returns the float32 network; no warning, no
#   error. With its weights in the same nn.Conv2d and nn.Linear, called as modules, the network is quantized. It hurts
#   whoever quantizes a network in functional style (or one made by a converter) and compares its accuracy: it is
#   float32's, and only the speed tells.
# Output seen: modules: 6 quantizers, furthest from float32 0.0005; functions: 0 quantizers, furthest 0.0000; both
#   exported graphs have the operators aten.conv2d, relu, mean, linear.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check torch==2.13.0 torchao==0.18.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - 2>"$dir/log" <<'PY' || { cat "$dir/log"; exit 1; }
import sys

import torch
import torch.nn.functional as F
import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e


class Modules(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.linear = torch.nn.Linear(8, 4)

    def forward(self, x):
        return self.linear(torch.relu(self.conv(x)).mean((2, 3)))


class Functions(Modules):
    def forward(self, x):
        x = F.conv2d(x, self.conv.weight, self.conv.bias, 1, 1)
        return F.linear(torch.relu(x).mean((2, 3)), self.linear.weight, self.linear.bias)


def quantize(network):
    torch.manual_seed(0)
    network, images = network().eval(), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    exported = torch.export.export(network, (images,)).module()
    operators = [str(node.target) for node in exported.graph.nodes if str(node.target).startswith("aten.")]
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    prepared(images)
    converted = convert_pt2e(prepared)
    found = sum("quantize_per" in str(node.target) for node in converted.graph.nodes)
    with torch.no_grad():
        furthest = float((converted(images) - network(images)).abs().max())
    print(f"{network.__class__.__name__.lower()}: {found} quantizers, furthest from float32 {furthest:.4f}; {operators}")
    return found, operators


(of_modules, one), (of_functions, other) = quantize(Modules), quantize(Functions)
sys.exit(0 if of_modules > 0 and of_functions == 0 and one == other else 1)
PY
