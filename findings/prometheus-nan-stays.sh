#!/bin/sh
# One NaN among the observations of prometheus_client's metrics: the entropy, the confidence or the drift of one damaged
# answer, measured beside thousands of good ones.
# Versions: prometheus_client 0.26.0.
# Guess: a Histogram refuses it, or counts it in the bucket +Inf, which holds the rest; a Counter refuses it as it
#   refuses negative amounts, with ValueError.
# Behaviour: nothing is refused. The Histogram counts it in no bucket and not in _count, but adds it to _sum, which is NaN
#   from then on until the process ends: rate(sum) / rate(count) is NaN for every later request, and an alert that
#   compares with it never fires. A Summary counts it and keeps a NaN sum, a Counter becomes NaN for good. A Gauge
#   recovers with its next value.
# Output seen (after 0.5, NaN, 0.5): Histogram bucket +Inf 2, count 2, sum nan; Summary count 3, sum nan; Counter nan;
#   Gauge 0.5; Counter.inc(-1): ValueError.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check prometheus_client==0.26.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

registry = CollectorRegistry()
histogram = Histogram("histogram", "of answers", buckets=[1, 2], registry=registry)
summary = Summary("summary", "of answers", registry=registry)
counter = Counter("counter", "of answers", registry=registry)
gauge = Gauge("gauge", "of answers", registry=registry)
for value in (0.5, math.nan, 0.5):
    for take in (histogram.observe, summary.observe, counter.inc, gauge.set):
        take(value)
try:
    counter.inc(-1)
    raise SystemExit("a Counter takes negative amounts now")
except ValueError as err:
    print("Counter.inc(-1):", err)
seen = {
    "histogram +Inf": registry.get_sample_value("histogram_bucket", {"le": "+Inf"}),
    **{name: registry.get_sample_value(name) for name in ("histogram_count", "histogram_sum")},
    **{name: registry.get_sample_value(name) for name in ("summary_count", "summary_sum", "counter_total", "gauge")},
}
for name, value in seen.items():
    print(f"{name}: {value}")
assert seen["histogram +Inf"] == seen["histogram_count"] == 2, "it is counted now"
assert seen["summary_count"] == 3 and seen["gauge"] == 0.5
assert all(math.isnan(seen[name]) for name in ("histogram_sum", "summary_sum", "counter_total")), "sums recover now"
PY
