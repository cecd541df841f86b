#!/bin/sh
# openvino.convert_model of a PyTorch module: options of its operators that are no attributes of OpenVINO's.
# Versions: openvino 2026.4.1, torch 2.13.0, numpy 2.4.6.
# Guess: what cannot be expressed is refused, as AvgPool2d(divisor_override=...) is; the rest is composed of operators
#   that can, as LPPool2d, Softplus's threshold or remainder are.
# Behaviour: some options are dropped without a word, and the network computes something else: Softplus(beta) is that
#   of beta 1, round(decimals) rounds to integers, std(correction) that is neither 0 nor 1 is that of 1,
#   embedding_bag(padding_idx) averages the padding in. Division of integers that rounds down (x // 3, as in indices of
#   windows and relative positions) rounds towards zero, while the remainder beside it is right, so that quotient and
#   remainder no longer give the number back. Numbers without these options, or not negative, are right.
# Output seen (largest difference from torch; without the option): Softplus(beta=2) 0.35, 0; round(decimals=1) 0.50, 0;
#   std(correction=3) 0.84, 0; embedding_bag(padding_idx=1) 1.33, 0; x // 3 of negative integers 1, of others 0.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check --extra-index-url https://download.pytorch.org/whl/cpu \
    torch==2.13.0+cpu numpy==2.4.6 openvino==2026.4.1
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import openvino as ov
import torch
from torch import nn
from torch.nn import functional

torch.manual_seed(0)
values = 2 * torch.randn(4, 6)
integers = torch.arange(-8, 1).reshape(1, 9)
words = torch.tensor([[0, 1, 2], [1, 3, 3]])
table = torch.arange(8.0).reshape(4, 2)


class Module(nn.Module):
    def __init__(self, compute):
        super().__init__()
        self.compute = compute

    def forward(self, x):
        return self.compute(x)


def difference(compute, x):
    module = Module(compute).eval()
    compiled = ov.compile_model(ov.convert_model(module, example_input=x), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return float(np.abs(compiled(x.numpy())[0] - module(x).numpy()).max())


cases = {  # what, and the same without the option
    "Softplus(beta=2)": (lambda x: functional.softplus(x, beta=2), functional.softplus, values),
    "round(decimals=1)": (lambda x: torch.round(x, decimals=1), torch.round, values),
    "std(correction=3)": (lambda x: torch.std(x, 1, correction=3), lambda x: torch.std(x, 1), values),
    "embedding_bag(padding_idx=1)": (
        lambda x: functional.embedding_bag(x, table, mode="mean", padding_idx=1),
        lambda x: functional.embedding_bag(x, table, mode="mean"),
        words,
    ),
    "x // 3 of integers": (lambda x: x // 3, lambda x: -x // 3, integers),
}
assert difference(lambda x: x % 3, integers) == 0
for name, (with_it, without, x) in cases.items():
    wrong, right = difference(with_it, x), difference(without, x)
    print(f"{name}: {wrong:.2f} from torch, without {right:.1g}")
    assert right < 1e-5
    assert wrong > 0.1, f"{name} is as in torch now"
try:
    difference(lambda x: functional.avg_pool2d(x, 3, divisor_override=2), torch.ones(1, 1, 6, 6))
    raise SystemExit("AvgPool2d(divisor_override) is converted now")
except ov.frontend.OpConversionFailure:
    print("AvgPool2d(divisor_override=2): refused")
PY
