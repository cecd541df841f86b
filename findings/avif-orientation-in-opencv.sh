#!/bin/sh
# An AVIF photograph taken with the camera on its side, read by OpenCV 5, which turns JPEG, PNG, WebP and TIFF files.
# Versions: opencv-python-headless 5.0.0.93, Pillow 13.0.0, numpy 2.4.6.
# Guess: IMREAD_COLOR turns it as it does the others; the more so as AVIF keeps the turn in the picture's own
#   properties (irot, imir), which a viewer has to obey, and not in EXIF alone.
# Behaviour: it is read as it is stored: a data set converted from JPEG to AVIF has its portraits lying on their side,
#   without a word. Pillow gives the orientation in getexif(), and ImageOps.exif_transpose turns the picture.
# Output seen (rows and columns, of a picture of 40 x 60 that is to be turned by 90 degrees): JPEG, PNG, WebP: 60 x 40;
#   AVIF: 40 x 60, as with IMREAD_IGNORE_ORIENTATION; Pillow, transposed: 60 x 40 for each.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 pillow==13.0.0 opencv-python-headless==5.0.0.93
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import io

import cv2
import numpy as np
from PIL import Image, ImageOps

TURNED = 6  # the picture is to be turned by 90 degrees
pixels = np.zeros((40, 60, 3), np.uint8)
pixels[:, :20], pixels[:, 40:] = (255, 0, 0), (0, 0, 255)  # RGB: red at the left, blue at the right

seen = {}
for form in ("JPEG", "PNG", "WEBP", "AVIF"):
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = TURNED
    Image.fromarray(pixels).save(stream, form, exif=exif, quality=95)
    content = stream.getvalue()
    by_pillow = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    assert by_pillow.shape[:2] == (60, 40) and by_pillow[2, 20, 0] > 200 and by_pillow[-3, 20, 2] > 200, form
    seen[form] = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR).shape[:2]
    print(f"{form}: Pillow, transposed {by_pillow.shape[:2]}, OpenCV {seen[form]}")
assert all(seen[form] == (60, 40) for form in ("JPEG", "PNG", "WEBP"))
assert seen["AVIF"] == (40, 60), "OpenCV turns AVIF files now"
PY
