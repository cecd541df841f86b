#!/bin/sh
# Image files sent to a model server by tritonclient as a BYTES tensor, the array made by np.array([content]).
# Versions: tritonclient 2.73.0, Pillow 13.0.0, numpy 2.4.6.
# Guess: the whole file arrives; set_data_from_numpy takes such an array (dtype S) without a word.
# Behaviour: numpy takes zero bytes at the end of an S element for padding and hands it out without them, so the file
#   is sent shorter. PNG and JPEG never end in a zero; a BMP does whose last (in the file: top) rows are black, and
#   many a WebP, whose parts are padded to an even length. Some decoders still read it, others call it truncated.
#   With dtype=object everything arrives.
# Output seen (bytes of the file, sent, sent with dtype=object): BMP 822, 438, 822; WebP 52, 50, 52; PNG 85, 85, 85;
#   JPEG 632, 632, 632; the BMP that was sent: image file is truncated.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 pillow==13.0.0 'tritonclient[grpc]==2.73.0'
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import io

import numpy as np
import tritonclient.grpc as triton
from PIL import Image

pixels = np.zeros((16, 16, 3), np.uint8)
pixels[8:] = 200  # a black upper half


def sent(array):
    given = triton.InferInput("file", [1], "BYTES")
    given.set_data_from_numpy(array)
    raw = given._get_content()  # as it goes over the wire: a length of four bytes, then the file
    assert len(raw) == 4 + int.from_bytes(raw[:4], "little")
    return raw[4:]


lost = {}
for form in ("BMP", "WEBP", "PNG", "JPEG"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    content = stream.getvalue()
    plain, whole = sent(np.array([content])), sent(np.array([content], dtype=object))
    assert whole == content and content.startswith(plain)
    lost[form] = len(content) - len(plain)
    print(f"{form}: {len(content)} bytes, sent {len(plain)}, with dtype=object {len(whole)}")
    if form == "BMP":
        try:
            Image.open(io.BytesIO(plain)).load()
            print("the BMP that was sent can be read")
        except OSError as error:
            print("the BMP that was sent:", error)
assert not lost["PNG"] and not lost["JPEG"]
assert lost["BMP"] and lost["WEBP"], "zero bytes at the end are sent now"
PY
