#!/bin/sh
# numpy numbers as attributes of OpenTelemetry spans: the score of a classifier, the seconds or the size of a batch.
# Versions: opentelemetry-sdk 1.45.2, opentelemetry-exporter-otlp-proto-common 1.45.2, numpy 2.4.6.
# Guess: an attribute that is a number is exported as a number; a type that the SDK does not know is left out, with a
#   warning, as earlier releases did.
# Behaviour: numpy.float64, a subclass of Python's float, is a number. numpy.float32, int64 and bool are exported as the
#   text that str() makes of them, and an array as "[0.25 0.75]"; a line is logged, which nobody reads on a server
#   without a handler for it. One attribute then is a double in one span and a string in another, which stores of traces
#   keep apart or refuse: a filter such as score < 0.5 or an average over seconds passes over these spans.
#   float(...), int(...) or .item() keeps the number.
# Output seen (kind of the exported value): 0.5 double; float64 double; float32 string; int64 string; bool_ string;
#   array string; float32.item() double.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check numpy==2.4.6 opentelemetry-sdk==1.45.2 \
    opentelemetry-exporter-otlp-proto-common==1.45.2
cd "$dir"
"$dir/venv/bin/python" - 2>log <<'PY' || { cat log; exit 1; }
import numpy as np
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

VALUES = {
    "float": (0.5, "double_value"),
    "float64": (np.float64(0.5), "double_value"),
    "float32": (np.float32(0.5), "string_value"),
    "int64": (np.int64(8), "string_value"),
    "bool_": (np.bool_(True), "string_value"),
    "array": (np.array([0.25, 0.75]), "string_value"),
    "item": (np.float32(0.5).item(), "double_value"),
}
spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
with provider.get_tracer("classifier").start_as_current_span("infer") as span:
    for name, (value, _) in VALUES.items():
        span.set_attribute(name, value)
exported = encode_spans(spans.get_finished_spans()).resource_spans[0].scope_spans[0].spans[0].attributes
seen = {each.key: each.value for each in exported}
for name, (_, wanted) in VALUES.items():
    kind = seen[name].WhichOneof("value") if name in seen else "left out"
    print(f"{name}: {kind} {getattr(seen.get(name), kind, '')!r}")
    assert kind == wanted, f"{name} is exported otherwise now"
PY
