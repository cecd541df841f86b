#!/bin/sh
# torchmetrics' classification metrics given logits, which they take as well as probabilities, in batches of different
# size: a loader's last, smaller batch, or a stream of single images.
# Versions: torchmetrics 1.9.0, torch 2.13.0, numpy 2.4.6.
# Guess: the same logits give the same number however they are divided into batches; what they are is settled once, or
#   for all of them at compute().
# Behaviour: each update() looks at its own batch. If all of its values happen to lie within 0 and 1 it takes them for
#   probabilities as they are, otherwise it applies sigmoid or softmax. So some images of one evaluation are judged by
#   a threshold of 0.5 on the logit (or ranked by it) and the others by that on the probability, and the smaller the
#   batches, the more of the former there are. Nothing is said. Probabilities, or logits that never are within 0 and 1
#   by themselves, are right.
# Output seen (all 2000 in one batch; batches of 2; of 1): BinaryAccuracy 0.779, 0.743, 0.689; BinaryAUROC 0.869, 0.787,
#   0.688; MulticlassAUROC of five classes 0.907, 0.822, 0.770; of probabilities the first number each time.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check --no-deps \
    --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"$dir/venv/bin/pip" install -qq --disable-pip-version-check torchmetrics==1.9.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import torch
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, MulticlassAUROC

IMAGES, CLASSES = 2000, 5
rng = np.random.default_rng(0)
one_score = torch.tensor(rng.normal(0, 0.6, IMAGES), dtype=torch.float32)
is_one = (one_score + torch.tensor(rng.normal(0, 0.5, IMAGES)) > 0).int()
scores = torch.tensor(rng.normal(0.5, 0.35, (IMAGES, CLASSES)), dtype=torch.float32)
classes = (scores + torch.tensor(rng.normal(0, 0.2, (IMAGES, CLASSES)))).argmax(1)


def measure(metric, predictions, target, batch):
    for start in range(0, IMAGES, batch):
        metric.update(predictions[start : start + batch], target[start : start + batch])
    return round(float(metric.compute()), 3)


cases = {
    "BinaryAccuracy": (BinaryAccuracy, one_score, torch.sigmoid(one_score), is_one),
    "BinaryAUROC": (BinaryAUROC, one_score, torch.sigmoid(one_score), is_one),
    "MulticlassAUROC": (lambda: MulticlassAUROC(CLASSES), scores, torch.softmax(scores, 1), classes),
}
for name, (make, logits, probabilities, target) in cases.items():
    by_batch = [measure(make(), logits, target, batch) for batch in (IMAGES, 2, 1)]
    right = [measure(make(), probabilities, target, batch) for batch in (IMAGES, 2, 1)]
    print(f"{name}: logits", *by_batch, "probabilities", *right)
    assert right == [by_batch[0]] * 3
    assert by_batch[0] - 0.02 > by_batch[1] > by_batch[2], f"{name} no longer depends on the batch"
PY
