#!/bin/sh
# scipy.stats.quantile, the newer of SciPy's functions for quantiles, on float16 and float32 activations: the range of a
# calibration by percentile.
# Versions: scipy 1.17.1, numpy 2.4.6.
# Guess: the position of the quantile is computed in float64 whatever the data are, as numpy's is, and the answer is
#   rounded to their dtype at most.
# Behaviour: the position is computed in the dtype of the data. In float16, which has 11 bits, the 49985th of 50000
#   numbers is not addressed but one up to 16 places away: a range that clips 15 outliers comes out as one that clips
#   all 20 of them, without a word. More than 65504 numbers end in an IndexError about -9223372036854775808. In float32
#   the same begins with 2^24 numbers, an ordinary layer's output for a few hundred images. numpy.quantile is right on
#   the same arrays.
# Output seen (scipy, numpy): float16, 50000 numbers: 0.999 3.262, 3.482; 0.9997 3.502, 100. 70000 numbers: IndexError.
#   float32, 60 million: 0.9999999 5.269, 5.283.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check numpy==2.4.6 scipy==1.17.1
"$dir/venv/bin/python" -W ignore - <<'PY'
import numpy as np
from scipy import stats

rng = np.random.default_rng(0)
small = np.abs(rng.standard_normal(50_000)).astype(np.float16)
small[:20] = 100
seen = {q: (float(stats.quantile(small, q)), float(np.quantile(small, q))) for q in (0.999, 0.9997)}
print("float16 (scipy, numpy):", seen)

try:
    message = str(stats.quantile(np.abs(rng.standard_normal(70_000)).astype(np.float16), 0.99))
except IndexError as error:
    message = f"IndexError: {error}"
print("70000 numbers:", message)

large = np.abs(rng.standard_normal(60_000_000, dtype=np.float32))
found, wanted = float(stats.quantile(large, 0.9999999)), float(np.quantile(large, 0.9999999))
print("float32 (scipy, numpy):", found, wanted)

assert seen[0.9997][0] < 4 and seen[0.9997][1] == 100, seen
assert seen[0.999][0] < 3.4 < seen[0.999][1] < 3.6, seen
assert message.startswith("IndexError"), message
assert wanted - found > 0.01, (found, wanted)
print("as described")
PY
