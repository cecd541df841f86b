#!/bin/sh
# pyarrow.compute.tdigest for the percentile of a calibration: activations dumped to Parquet are too many to sort.
# Versions: pyarrow 26.0.1, numpy 2.4.6.
# Guess: a t-digest is made for the tails, and keeps single values there; the 99.99th percentile of a million values is
#   within half a percent of the exact one.
# Behaviour: with the default delta=100 the last centroid but one already stands for hundreds of values, and between it
#   and the maximum the answer is interpolated. Of a long-tailed layer the 99.99th percentile comes out up to twice too
#   wide, the 99.9th by a few percent up to a fifth, and each order of the same values has another answer. Nothing says
#   so; the median is right to .3%. delta=10000 (and a buffer_size to match) is right to .2%.
# Output seen, as tdigest over numpy.quantile: lognormal .5 1.003, .999 1.05, .9999 2.00, the same values sorted .999
#   1.17, .9999 2.02; half-normal .9999 1.05; lognormal with delta=10000, .9999 1.001.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check numpy==2.4.6 pyarrow==26.0.1
"$dir/venv/bin/python" - <<'PY'
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

rng = np.random.default_rng(0)
layers = {
    "half-normal": np.abs(rng.standard_normal(1_000_000)).astype(np.float32),
    "lognormal": rng.lognormal(size=1_000_000).astype(np.float32),
}
layers["lognormal, sorted"] = np.sort(layers["lognormal"])


def ratio(values, q, **options):
    return float(pc.tdigest(pa.array(values), q=q, **options)[0].as_py() / np.quantile(values, q))


seen = {(name, q): ratio(values, q) for name, values in layers.items() for q in (0.5, 0.999, 0.9999)}
for (name, q), value in seen.items():
    print(f"{name} {q}: {value:.3f}")
finer = ratio(layers["lognormal"], 0.9999, delta=10_000, buffer_size=50_000)
print(f"lognormal 0.9999, delta=10000: {finer:.3f}")
assert abs(seen["lognormal", 0.5] - 1) < 0.01 and abs(finer - 1) < 0.005, (seen, finer)
assert seen["lognormal", 0.9999] > 1.5 and seen["lognormal, sorted", 0.999] - seen["lognormal", 0.999] > 0.05
assert seen["half-normal", 0.9999] > 1.02
PY
