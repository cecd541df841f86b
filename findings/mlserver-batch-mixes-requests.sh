#!/bin/sh
# Requests that MLServer's adaptive batching puts into one batch.
# Versions: mlserver 1.7.1, numpy 2.4.6.
# Guess: requests are joined only where that changes no answer: those with other parameters, or with another datatype of
#   an input, stay apart, as they do in Triton and in other servers that batch.
# Behaviour: any two requests are joined. Parameters of the requests are merged into one set, so that the last request's
#   value answers all, and a request without the parameter is answered with a stranger's. The datatype is the first
#   request's: numbers that were sent as FP32 are read as UINT8 and lose their fractions. Each request alone is answered
#   rightly, so tests with one client see nothing; under load the answers depend on who else asks.
# Output seen, of a model that adds up its input and multiplies by the parameter "factor": factor 1 and factor 10, alone
#   3 and 30, together 30 and 30; factor 10 and none, alone 30 and 3, together 30 and 30; UINT8 and FP32, alone 3 and
#   1.25, together 3 and 0.
set -eu
dir=$(mktemp -d)
trap 'kill $server 2>/dev/null || true; rm -rf "$dir"' EXIT
server=
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check mlserver==1.7.1 numpy==2.4.6
cd "$dir"
cat > adding.py <<'PY'
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Adding(MLModel):
    """Answers with the sum of each row of its input, times the request's parameter "factor"."""

    async def load(self) -> bool:
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0])
        given = payload.parameters.model_dump() if payload.parameters else {}
        sums = rows.sum(axis=1, keepdims=True).astype("float64") * given.get("factor", 1)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("sum", sums)])
PY
cat > model-settings.json <<'JSON'
{"name": "adding", "implementation": "adding.Adding", "max_batch_size": 2, "max_batch_time": 2}
JSON
port=$("$dir/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat > settings.json <<JSON
{"host": "127.0.0.1", "http_port": $port, "grpc_port": 0, "metrics_endpoint": null, "parallel_workers": 0}
JSON
PATH="$dir/venv/bin:$PATH" mlserver start . > server.log 2>&1 &
server=$!
"$dir/venv/bin/python" - "$port" <<'PY' || { cat server.log; exit 1; }
import json
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

address = f"http://127.0.0.1:{sys.argv[1]}/v2"


def ask(request):
    headers = {"content-type": "application/json"}
    posted = urllib.request.Request(f"{address}/models/adding/infer", json.dumps(request).encode(), headers)
    with urllib.request.urlopen(posted, timeout=60) as response:
        return json.load(response)["outputs"][0]["data"][0]


def request(data, datatype="FP32", **parameters):
    return {"parameters": parameters, "inputs": [{"name": "x", "shape": [1, 2], "datatype": datatype, "data": data}]}


def wait_until_ready():
    for _ in range(120):
        try:
            return urllib.request.urlopen(f"{address}/health/ready", timeout=5)
        except OSError:
            time.sleep(0.5)
    raise SystemExit("the server did not start")


def compare(first, second):
    """Return the answers to two requests, one after the other and in one batch."""
    alone = ask(first), ask(second)
    with ThreadPoolExecutor(2) as clients:
        earlier = clients.submit(ask, first)
        time.sleep(0.3)  # the batch is open for two seconds, or until it holds two requests
        later = clients.submit(ask, second)
        return alone, (earlier.result(), later.result())


wait_until_ready()
seen = {
    "factor 1 and 10": compare(request([1, 2], factor=1), request([1, 2], factor=10)),
    "factor 10 and none": compare(request([1, 2], factor=10), request([1, 2])),
    "UINT8 and FP32": compare(request([1, 2], "UINT8"), request([0.5, 0.75])),
}
for name, (alone, together) in seen.items():
    print(f"{name}: alone {alone}, together {together}")
assert seen == {
    "factor 1 and 10": ((3, 30), (30, 30)),
    "factor 10 and none": ((30, 3), (30, 30)),
    "UINT8 and FP32": ((3, 1.25), (3, 0)),
}, seen
PY
