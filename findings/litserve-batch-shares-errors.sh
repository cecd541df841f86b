#!/bin/sh
# LitServe with max_batch_size above 1, on requests of which one cannot be decoded: a damaged JPEG, a wrong shape.
# Versions: litserve 0.2.19, Pillow 13.0.0.
# Guess: decode_request is called for each request by itself, so the one that fails gets the error, 422 or 500, and the
#   others of its batch are predicted without it.
# Behaviour: an exception in decode_request ends the whole batch. Every request in it gets the same status and text,
#   those of other clients too, which are told that their own image is damaged. Clients that do not repeat a 4xx drop
#   good requests; the busier the server, the more of them fall to each bad one. With max_batch_size=1 only the bad one
#   fails. Decoding has to be done where errors can be kept apart, in a middleware or inside predict.
# Output seen (status of three good requests and a bad one): batches of 4, HTTPException(422): 422, 422, 422, 422;
#   Pillow's error: 500, 500, 500, 500; batches of 1: 200, 200, 200, 422.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check litserve==0.2.19 pillow==13.0.0
cd "$dir"
cat > server.py <<'PY'
import base64
import io
import sys

import litserve
from fastapi import HTTPException
from PIL import Image


class Brightness(litserve.LitAPI):
    def setup(self, device):
        pass

    def decode_request(self, request):
        try:
            return Image.open(io.BytesIO(base64.b64decode(request["image"]))).convert("L")
        except OSError as err:
            if request["polite"]:
                raise HTTPException(422, "this image cannot be read") from err
            raise

    def batch(self, inputs):
        return inputs

    def predict(self, x):
        return [image.getpixel((0, 0)) for image in x] if isinstance(x, list) else x.getpixel((0, 0))

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return {"brightness": output}


if __name__ == "__main__":
    size, port = int(sys.argv[1]), int(sys.argv[2])
    api = Brightness(max_batch_size=size, batch_timeout=2.0) if size > 1 else Brightness()
    server = litserve.LitServer(api, accelerator="cpu", timeout=30)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")
PY
"$dir/venv/bin/python" - <<'PY'
import base64
import io
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from PIL import Image


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def encoded(level):
    file = io.BytesIO()
    Image.new("L", (8, 8), level).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def post(url, image, polite):
    content = json.dumps({"image": image, "polite": polite}).encode()
    request = urllib.request.Request(url, content, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as err:
        return err.code


def wait_until_ready(url):
    for _ in range(240):
        try:
            return urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.25)
    raise SystemExit("the server did not start")


def ask(batch_size, polite):
    """Return the status of three good requests and a bad one, sent at once."""
    port = free_port()
    log = open("log", "w")
    command = [sys.executable, "server.py", str(batch_size), str(port)]
    server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/health")
        images = [encoded(10), encoded(20), encoded(30), base64.b64encode(b"no picture").decode()]
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(lambda image: post(f"http://127.0.0.1:{port}/predict", image, polite), images))
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


seen = {
    "batches of 4, HTTPException": ask(4, polite=True),
    "batches of 4, Pillow's error": ask(4, polite=False),
    "batches of 1, HTTPException": ask(1, polite=True),
}
for name, statuses in seen.items():
    print(f"{name}:", *statuses)
assert list(seen.values()) == [[422] * 4, [500] * 4, [200, 200, 200, 422]], "errors are kept apart now"
PY
