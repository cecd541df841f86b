#!/bin/sh
# tritonclient.http's async_infer, called for several images while the caller prepares the next ones.
# Versions: tritonclient 2.73.0 (http), gevent 26.9.0, geventhttpclient 2.6.1, numpy 2.4.6.
# Guess: "asynchronous" requests are on their way when the call returns, side by side: while the caller decodes the next
#   images the server works, and can batch them. That the client has one connection by default costs a little.
# Behaviour: with the default, concurrency=1, only the first is sent. The others are greenlets of the caller's own thread,
#   which run when it waits in gevent and at no other time: they are not sent while it decodes, nor while it sleeps, but
#   one after the other once get_result is called. Nothing overlaps, and a server that batches sees batches of one. With
#   concurrency=4 four small requests leave at once; of large bodies what the socket does not take at once waits too.
# Output seen (four requests, a server that takes 0.4 s for each, a second of other work, then get_result): concurrency
#   1: arrived during the work 1, waited 1.3 s; concurrency 4: 4 and 0.0 s.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check numpy==2.4.6 'tritonclient[http]==2.73.0' gevent==26.9.0 \
    geventhttpclient==2.6.1
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import http.server
import json
import threading
import time

import numpy as np
import tritonclient.http as triton

REQUESTS, TAKES_S, WORK_S = 4, 0.4, 1.0
OUTPUT = {"name": "y", "datatype": "FP32", "shape": [1], "data": [1.0]}
ANSWER = json.dumps({"model_name": "m", "model_version": "1", "outputs": [OUTPUT]}).encode()
arrived = []


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        arrived.append(time.monotonic())
        time.sleep(TAKES_S)
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
threading.Thread(target=server.serve_forever, daemon=True).start()
image = triton.InferInput("x", [1], "FP32")
image.set_data_from_numpy(np.ones(1, np.float32))


def trial(**options):
    """Return how many requests arrived during the caller's other work, and the seconds that it waited afterwards."""
    client = triton.InferenceServerClient(f"127.0.0.1:{server.server_port}", **options)
    arrived.clear()
    asked = [client.async_infer("m", [image]) for _ in range(REQUESTS)]
    time.sleep(WORK_S)  # decoding, say
    early, begun = len(arrived), time.monotonic()
    for each in asked:
        each.get_result()
    waited = time.monotonic() - begun
    client.close()
    return early, waited


for name, options, wanted in [("default", {}, 1), ("concurrency=4", {"concurrency": 4}, REQUESTS)]:
    early, waited = trial(**options)
    print(f"{name}: {early} of {REQUESTS} arrived during the work, then waited {waited:.1f} s")
    assert early == wanted, "the requests leave otherwise now"
    assert (waited > 2 * TAKES_S) == (wanted == 1), waited
PY
