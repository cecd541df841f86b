#!/bin/sh
# torch.onnx.export (dynamo=True, the default) of options and values that ONNX has no single operator for.
# Versions: torch 2.13.0, onnxscript 0.7.2, onnx-ir 1.1.0, onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6.
# Guess: what has no equal in ONNX is composed of several operators, as decimals of round() are, or refused with the
#   operator's name, as adaptive_max_pool2d, median or cdist are. The answers are torch's.
# Behaviour: of 241 calls tried, these six are exported without a word and answer otherwise. AvgPool2d(divisor_override)
#   divides by the size of its window. Antialiased resizing with align_corners=True aligns the edges instead, half a
#   pixel away. scatter_reduce("mean") keeps one of the values. A row of attention that masks every key, 0 in torch, is
#   no longer 0. logsigmoid and logaddexp are written out as log(sigmoid) and log(exp + exp), which overflow where
#   torch's do not: a loss or a score of -120 becomes -inf. A check of the exported file on ordinary input finds none of
#   the last three.
# Output seen (largest difference from torch, with it and without): divisor_override 0.7, 0; align_corners 0.6, 1e-07;
#   mean 1e+02, 0; masked row 1.3, 6e-08; logsigmoid of -120 inf, 2e-07; logaddexp of 90 inf, 2e-07.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check --no-deps \
    --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    torch==2.13.0+cpu numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 onnxscript==0.7.2 onnx-ir==1.1.0
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PY'
import contextlib
import io
import logging

import numpy as np
import onnxruntime as ort
import torch
from torch.nn import functional as F

logging.disable(logging.WARNING)
torch.manual_seed(0)
picture, tokens = torch.randn(1, 2, 9, 10), torch.randn(1, 1, 3, 4)
row = torch.tensor([[-120.0, -3.0, 0.5, 90.0]])
to_first = torch.zeros(1, 2, dtype=torch.int64)
causal = torch.ones(3, 3, dtype=torch.bool).tril()
no_key_for_first = causal.tril(-1)


class Call(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def difference(function, x):
    """Export a function and return how far ONNX Runtime's answer is from torch's."""
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(Call(function).eval(), (x,), "model.onnx", dynamo=True, verbose=False)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return float(np.abs(answer - function(x).numpy()).max())


def pool(x, divisor=None):
    return F.avg_pool2d(x, 3, 2, divisor_override=divisor)


def shrink(x, align=False):
    return F.interpolate(x, (5, 7), mode="bilinear", antialias=True, align_corners=align)


def scatter(x, how="sum"):
    return torch.scatter_reduce(x, 1, to_first, x[:, 2:], how)


def attend(x, mask=causal):
    return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)


def add_in_logarithms(x):
    return torch.logaddexp(x, x - 1)


cases = {
    "avg_pool2d, divisor_override": [(lambda x: pool(x, 5), picture), (pool, picture)],
    "interpolate, align_corners": [(lambda x: shrink(x, align=True), picture), (shrink, picture)],
    "scatter_reduce, mean": [(lambda x: scatter(x, "mean"), row), (scatter, row)],
    "attention, a row masked whole": [(lambda x: attend(x, no_key_for_first), tokens), (attend, tokens)],
    "logsigmoid of -120": [(F.logsigmoid, row), (F.logsigmoid, row[:, 1:])],
    "logaddexp of 90": [(add_in_logarithms, row), (add_in_logarithms, row[:, 1:3])],
}
for name, (with_it, without) in cases.items():
    off, usual = difference(*with_it), difference(*without)
    print(f"{name}: {off:.2g}, without {usual:.0e}")
    assert off > 0.3 and usual < 1e-5, f"{name} is exported otherwise now"
PY
