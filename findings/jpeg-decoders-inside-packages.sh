#!/bin/sh
# The JPEG decoders that two packages of this field bring along: DecodeImage of onnxruntime-extensions (put in front
# of a network so that the file takes JPEG bytes) and kornia_rs, against Pillow.
# Versions: onnxruntime-extensions 0.15.2, onnxruntime 1.32.0, kornia_rs 0.2.0, Pillow 13.0.0, onnx 1.23.2, numpy
#   2.4.6.
# Guess: all come from libjpeg-turbo or follow it: within one step of 255 of Pillow, as OpenCV, simplejpeg and
#   imagecodecs are to the bit; a package with two readers gives one answer.
# Behaviour: DecodeImage agrees where colour is stored in full, but repeats the chroma of 4:2:0 files (nearly all
#   photographs) instead of interpolating it: tens of steps at edges. It also gives a grey JPEG one channel, but a
#   grey PNG three. kornia_rs has two readers: read_image is equal to Pillow, read_image_jpeg is not.
# Output seen (largest and mean difference in steps): DecodeImage 4:4:4 1 and 0.000, 4:2:0 22 and 1.781; kornia_rs
#   4:2:0 read_image 0 and 0.000, read_image_jpeg 3 and 0.391.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    numpy==2.4.6 Pillow==13.0.0 onnx==1.23.2 onnxruntime==1.32.0      onnxruntime-extensions==0.15.2 \
    kornia_rs==0.2.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
from pathlib import Path

import kornia_rs
import numpy as np
import onnxruntime as ort
import onnxruntime_extensions
from onnx import TensorProto, helper
from PIL import Image

rows, columns = np.mgrid[:97, :131]
waves = [rows / 9 + columns / 17, rows / 5 - columns / 11, columns / 6]
photo = np.stack([127 + 100 * np.sin(wave) for wave in waves], axis=-1)
photo = np.clip(photo + np.random.default_rng(0).normal(0, 12, photo.shape), 0, 255).astype(np.uint8)

domain = "com.microsoft.extensions"
graph = helper.make_graph(
    [helper.make_node("DecodeImage", ["file"], ["image"], domain=domain)],
    "g",
    [helper.make_tensor_value_info("file", TensorProto.UINT8, ["bytes"])],
    [helper.make_tensor_value_info("image", TensorProto.UINT8, ["height", "width", "channels"])],
)
opsets = [helper.make_opsetid("", 18), helper.make_opsetid(domain, 1)]
options = ort.SessionOptions()
options.register_custom_ops_library(onnxruntime_extensions.get_library_path())
session = ort.InferenceSession(
    helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString(), options
)


def decode_image(path):
    """Return what DecodeImage gives, with its BGR turned to RGB."""
    return session.run(None, {"file": np.frombuffer(Path(path).read_bytes(), np.uint8)})[0][..., ::-1]


def difference(image, path):
    gap = np.abs(np.asarray(image).astype(int) - np.asarray(Image.open(path)).astype(int))
    return int(gap.max()), float(round(gap.mean(), 3))


Image.fromarray(photo).save("full.jpg", quality=90, subsampling="4:4:4")
Image.fromarray(photo).save("half.jpg", quality=90, subsampling="4:2:0")
Image.fromarray(photo).convert("L").save("grey.jpg")
Image.fromarray(photo).convert("L").save("grey.png")
seen = {
    "DecodeImage 4:4:4": difference(decode_image("full.jpg"), "full.jpg"),
    "DecodeImage 4:2:0": difference(decode_image("half.jpg"), "half.jpg"),
    "kornia_rs.read_image 4:2:0": difference(kornia_rs.read_image("half.jpg"), "half.jpg"),
    "kornia_rs.read_image_jpeg 4:2:0": difference(kornia_rs.read_image_jpeg("half.jpg", "rgb"), "half.jpg"),
}
for name, gap in seen.items():
    print(name, *gap)
channels = decode_image("grey.jpg").shape[2], decode_image("grey.png").shape[2]
print("channels of a grey JPEG and a grey PNG:", *channels)
assert seen["DecodeImage 4:4:4"][0] <= 1 and seen["kornia_rs.read_image 4:2:0"][0] <= 1
assert seen["DecodeImage 4:2:0"][0] > 10, "DecodeImage interpolates chroma now"
assert seen["kornia_rs.read_image_jpeg 4:2:0"][0] > 1, "kornia_rs's two readers agree now"
assert channels == (1, 3)
PY
