#!/bin/sh
# JPEG photographs transcoded losslessly to JPEG XL, as archives and data sets are to save a fifth of the space.
# Versions: imagecodecs 2026.3.6 (libjxl), Pillow 13.0.0, numpy 2.4.6.
# Guess: lossless means that the pictures decoded from either file are equal, or differ by a rounding step.
# Behaviour: what is kept is the JPEG file: it comes back to the byte. The pixels that a JPEG XL decoder shows are
#   others: libjxl places each coefficient where it was most likely before it was rounded, not in the middle, does not
#   round between the inverse transform and the colours, and has its own filter for subsampled colour. So a network
#   sees other inputs, and an evaluation on the transcoded files is not that on the files it was published with.
#   Restoring the JPEG first, and decoding that, gives the same pixels.
# Output seen (steps of 255, most and mean): quality 95 without subsampling 13, 1.17; quality 90 with it 4, 0.58; 75 4,
#   0.64; of restored files 0, 0.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 pillow==13.0.0 imagecodecs==2026.3.6
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import io

import imagecodecs
import numpy as np
from PIL import Image

random = np.random.default_rng(0)
coarse = Image.fromarray(random.integers(0, 256, (32, 40, 3), np.uint8)).resize((320, 256), Image.BICUBIC)
photo = (np.asarray(coarse) + random.normal(0, 6, (256, 320, 3))).clip(0, 255).astype(np.uint8)


def decoded(jpeg):
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(int)


seen = []
for quality, subsampling in ((95, 0), (90, 2), (75, 2)):
    stream = io.BytesIO()
    Image.fromarray(photo).save(stream, "JPEG", quality=quality, subsampling=subsampling)
    jpeg = stream.getvalue()
    jxl = imagecodecs.jpegxl_encode_jpeg(jpeg)
    restored = imagecodecs.jpegxl_decode_jpeg(jxl)
    assert restored == jpeg and (decoded(restored) == decoded(jpeg)).all(), "not lossless"
    apart = np.abs(imagecodecs.jpegxl_decode(jxl).astype(int) - decoded(jpeg))
    seen.append(apart.max())
    share = len(jxl) / len(jpeg)
    print(f"quality {quality}, {share:.0%} of the bytes: pixels {apart.max()} steps apart, {apart.mean():.2f} on average")
assert max(seen) > 4 and min(seen) > 1, "both show the same pixels now, to a rounding step"
PY
