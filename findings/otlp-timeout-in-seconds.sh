#!/bin/sh
# OpenTelemetry's timeouts given by environment variables, which its specification counts in milliseconds, in Python.
# Versions: opentelemetry-sdk 1.45.2, opentelemetry-exporter-otlp-proto-http 1.45.2.
# Guess: OTEL_EXPORTER_OTLP_TIMEOUT=500 gives the collector half a second, as OTEL_BSP_SCHEDULE_DELAY=500 sends batches
#   after half a second, and as the same variable means in the SDKs of other languages.
# Behaviour: the exporter takes it for seconds, the batch processor beside it takes its own for milliseconds. Whoever
#   writes the specification's default, 10000, has a timeout of nearly three hours: the first collector that accepts a
#   connection and does not answer stops the thread that exports, and spans are dropped when the queue is full.
# Output seen: OTEL_BSP_SCHEDULE_DELAY=500: sent after 0.5 s. The exporter gave up OTEL_EXPORTER_OTLP_TIMEOUT=1 after
#   1.0 s, and OTEL_EXPORTER_OTLP_TIMEOUT=500 not within 6 s.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    opentelemetry-sdk==1.45.2 opentelemetry-exporter-otlp-proto-http==1.45.2
cd "$dir"
cat > export.py <<'PY'
"""Print after how many seconds a span is sent, and after how many more its export is given up ("no": not in 6 s)."""

import os
import select
import socket
import threading
import time

collector = socket.create_server(("127.0.0.1", 0))  # accepts, and does not answer
os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{collector.getsockname()[1]}"

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
begun = time.monotonic()
provider.get_tracer("example").start_span("work").end()
collector.settimeout(20)
connection, _ = collector.accept()
sent = time.monotonic()
given_up = "no"
while time.monotonic() - sent < 6 and given_up == "no":
    if select.select([connection], [], [], 0.05)[0] and not connection.recv(65536):
        given_up = f"{time.monotonic() - sent:.1f}"
print(f"{sent - begun:.1f} {given_up}", flush=True)
os._exit(0)  # the exporter would go on trying
PY
run() {
    env OTEL_BSP_SCHEDULE_DELAY=500 OTEL_EXPORTER_OTLP_TIMEOUT="$1" "$dir/venv/bin/python" export.py 2>/dev/null
}
one=$(run 1)
many=$(run 500)
echo "OTEL_EXPORTER_OTLP_TIMEOUT=1: sent after ${one% *} s, given up after (s): ${one#* }"
echo "OTEL_EXPORTER_OTLP_TIMEOUT=500: sent after ${many% *} s, given up after (s): ${many#* }"
case $one in
    0.[4-9]\ [01].*|1.*\ [01].*) ;;
    *) echo "the timeout of 1 is not a second now"; exit 1 ;;
esac
case $many in
    *\ no) ;;
    *) echo "the timeout of 500 ended now"; exit 1 ;;
esac
