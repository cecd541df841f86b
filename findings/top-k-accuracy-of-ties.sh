#!/bin/sh
# scikit-learn's top_k_accuracy_score beside accuracy_score of argmax, on scores with ties, as an int8 classifier's
# outputs are (a few hundred levels, and most classes at the lowest).
# Versions: scikit-learn 1.9.1, numpy 2.4.6.
# Guess: top-1 by one is top-1 by the other; a tie is won by the lower class in both, as numpy's argmax has it.
# Behaviour: top_k_accuracy_score sorts upwards and takes from the end, so that of equal scores the higher class wins.
#   A network that gives every class the same score is right 100% of the time on the last class by one and on the
#   first by the other. The two numbers of one report then contradict one another: top-1 of the one may exceed top-2
#   of the other.
# Output seen (1000 rows of 10 scores on 8 levels, the truth being argmax's answer): accuracy_score 1.000, top-1
#   0.499, top-2 0.834; on scores without ties all three are 1; of constant scores the class 9 is answered, not 0.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 scikit-learn==1.9.1
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import numpy as np
from sklearn.metrics import accuracy_score, top_k_accuracy_score

random = np.random.default_rng(0)
CLASSES = 10


def report(name, scores):
    truth = scores.argmax(axis=1)
    top = [float(top_k_accuracy_score(truth, scores, k=k, labels=range(CLASSES))) for k in (1, 2)]
    plain = float(accuracy_score(truth, scores.argmax(axis=1)))
    print(f"{name}: accuracy_score {plain:.3f}, top-1 {top[0]:.3f}, top-2 {top[1]:.3f}")
    return plain, *top


assert report("without ties", random.normal(size=(1000, CLASSES))) == (1, 1, 1)
tied = report("on 8 levels", random.integers(0, 8, (1000, CLASSES)) / 8)
flat = np.full((CLASSES, CLASSES), 0.1)
won = [k for k in range(CLASSES) if top_k_accuracy_score([k] * CLASSES, flat, k=1, labels=range(CLASSES)) == 1]
print("of constant scores the answer is class", won)
assert tied[0] == 1 and tied[1] < 0.6 and tied[2] < 0.95, "top_k_accuracy_score breaks ties as argmax does now"
assert won == [CLASSES - 1]
PY
