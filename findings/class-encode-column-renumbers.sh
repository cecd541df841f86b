#!/bin/sh
# Integer labels of an image data set turned into class labels by datasets' class_encode_column, as stratified splitting
# (train_test_split with stratify_by_column) asks for.
# Versions: datasets 5.2.0, pyarrow 26.0.1.
# Guess: integers that are class indices already, 0 to 11, stay what they are; the column only learns its names.
# Behaviour: the integers are written out, the texts sorted, and each label replaced by the place of its text: 2 becomes
#   4, since "10" and "11" come before "2". From ten classes on, a network trained before (or evaluated with the labels of
#   the original files) has other indices for most classes. The names tell it to those who look; nothing else does.
# Output seen: labels 0 1 2 3 10 11 become 0 1 4 5 2 3; names 0 1 10 11 2 3. Of 1000 classes, 988 change their number.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1
HF_HUB_OFFLINE=1 HF_HOME="$dir/cache" HF_DATASETS_DISABLE_PROGRESS_BARS=1 "$dir/venv/bin/python" - <<'PY'
import datasets

datasets.disable_progress_bars()


def encoded(labels):
    column = datasets.Dataset.from_dict({"label": labels}).class_encode_column("label")
    return list(column["label"]), column.features["label"].names


labels, names = encoded([0, 1, 2, 3, 10, 11])
print("labels", *labels, "names", *names)
changed = sum(before != after for before, after in enumerate(encoded(list(range(1000)))[0]))
print("of 1000 classes", changed, "change their number")

assert labels == [0, 1, 4, 5, 2, 3], labels
assert names == ["0", "1", "10", "11", "2", "3"], names
assert changed > 900, changed
print("as described")
PY
