#!/bin/sh
# A webdataset shard of photographs whose names contain dots, such as IMG_1.2024.jpg.
# Versions: webdataset 1.0.2, Pillow 13.0.0, numpy 2.4.6.
# Guess: a sample is all files that differ in their last suffix only; two pictures are two samples.
# Behaviour: the name ends at its first dot, and everything behind it is the suffix. beach.jpg and beach.2024.jpg are
#   one sample with the parts "jpg" and "2024.jpg", of which to_tuple("jpg") takes the first and drops the other: no
#   warning, and fewer samples than files. Two that both have a dot more, beach.2023.jpg and beach.2024.jpg, become a
#   sample without "jpg". Dots in folders are no such end.
# Output seen (files, samples, pictures by to_tuple): beach.jpg, forest.jpg: 2, 2, 2; beach.jpg, beach.2024.jpg: 2, 1,
#   1; v1.0/a.jpg, v1.0/b.jpg: 2, 2, 2; beach.2023.jpg, beach.2024.jpg: 2, 1 and an error that names its parts.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 webdataset==1.0.2 pillow==13.0.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import io
import tarfile

import webdataset
from PIL import Image


def shard(names):
    with tarfile.open("shard.tar", "w") as tar:
        for number, name in enumerate(names):
            picture = io.BytesIO()
            Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(picture, "JPEG")
            member = tarfile.TarInfo(name)
            member.size = picture.tell()
            picture.seek(0)
            tar.addfile(member, picture)
    return webdataset.WebDataset("shard.tar", shardshuffle=False)


def counts(*names):
    samples = len(list(shard(names)))
    try:
        pictures = len(list(shard(names).decode("pil").to_tuple("jpg")))
    except ValueError as error:
        pictures = str(error)
    print(f"{', '.join(names)}: {len(names)} files, {samples} samples, pictures: {pictures}")
    return samples, pictures


assert counts("beach.jpg", "forest.jpg") == (2, 2)
assert counts("v1.0/a.jpg", "v1.0/b.jpg") == (2, 2)
assert counts("beach.jpg", "beach.2024.jpg") == (1, 1), "webdataset ends names at another dot now"
samples, error = counts("beach.2023.jpg", "beach.2024.jpg")
assert samples == 1 and "2023.jpg" in str(error)
PY
