#!/bin/sh
# Histograms of activations by torch.histc, which torch's own HistogramObserver collects to choose int8 ranges, and by
# jax.numpy.histogram.
# Versions: torch 2.13.0 (2 threads), jax 0.10.2, numpy 2.4.6.
# Guess: counts are exact. A histogram of numbers of any dtype, however many, adds up to how many they are.
# Behaviour: counts have the dtype of the input, and a bin adds 1 at a time: it stops where 1 more is rounded away, at
#   2^24 in float32 and at 256 in bfloat16; in torch in each thread's share, so the result depends on the number of
#   threads. torch.bincount with float32 weights stops at 2^24 as well. HistogramObserver fed with the bfloat16
#   activations of an autocast network counts 2% of them, weighs four outliers as much as full bins, and takes a range
#   nine times as wide as from the same numbers in float32. Nothing is said.
# Output seen: histc of 40 million zeros: float32 16777216 with one thread, 33554432 with two; bfloat16 256 and 512.
#   bincount 40000000, with weights 16777216. jax: 16777216, 256 and, in float16, 2048. Observer of 4 million: float32
#   counts 4000000, range 4.32; bfloat16 counts 81438, range 39.08.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check --no-deps \
    --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"$dir/venv/bin/pip" install -qq --disable-pip-version-check torch==2.13.0+cpu numpy==2.4.6 jax==0.10.2
"$dir/venv/bin/python" -W ignore - <<'PY'
import jax.numpy as jnp
import torch
from torch.ao.quantization.observer import HistogramObserver

COUNT = 40_000_000


def count_in_one_bin(dtype, threads):
    torch.set_num_threads(threads)
    return int(torch.histc(torch.zeros(COUNT, dtype=dtype), bins=4, min=-1, max=1).max())


counts = {
    (str(dtype), threads): count_in_one_bin(dtype, threads)
    for dtype in (torch.float32, torch.bfloat16)
    for threads in (1, 2)
}
print("histc of", COUNT, "zeros:", counts)
zeros = torch.zeros(COUNT, dtype=torch.int64)
whole, weighted = int(torch.bincount(zeros)), int(torch.bincount(zeros, weights=torch.ones(COUNT)))
print("bincount", whole, "with weights of 1", weighted)
in_jax = {
    dtype.__name__: int(jnp.histogram(jnp.zeros(COUNT, dtype), bins=4, range=(-1, 1))[0].max())
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16)
}
print("jax", in_jax)

torch.manual_seed(0)
activations = torch.relu(torch.randn(4_000_000))
activations[:4] = torch.tensor([38.0, 39.0, 40.0, 41.0])
observed = {}
for dtype in (torch.float32, torch.bfloat16):
    observer = HistogramObserver(qscheme=torch.per_tensor_affine)
    observer(activations.to(dtype))
    scale, _ = observer.calculate_qparams()
    observed[dtype] = int(observer.histogram.sum()), 255 * float(scale)
    print(dtype, "counted %d, range %.2f" % observed[dtype])

assert counts["torch.float32", 1] == 2**24 and counts["torch.bfloat16", 1] == 256, counts
assert counts["torch.float32", 2] == 2 * 2**24 and counts["torch.bfloat16", 2] == 512, counts
assert whole == COUNT and weighted == 2**24, (whole, weighted)
assert in_jax == {"float32": 2**24, "bfloat16": 256, "float16": 2048}, in_jax
assert observed[torch.float32][0] == 4_000_000 and observed[torch.float32][1] < 4.5, observed
assert observed[torch.bfloat16][0] < 200_000 and observed[torch.bfloat16][1] > 35, observed
print("as described")
PY
