#!/bin/sh
# prometheus_client's multiprocess mode: a Gauge of multiprocess_mode="min", as for the free space or the oldest model of
# all workers, and "max" of values below zero.
# Versions: prometheus_client 0.26.0.
# Guess: a worker that has made the Gauge, as importing the module does, and never set it takes no part: the smallest
#   of the values that were set is shown, as "mostrecent" shows the last one that was set.
# Behaviour: making a Gauge writes 0 into the worker's file, and "min" (livemin) shows that 0 until every worker has set
#   its own, "max" the same for values below zero: an alert on a low minimum fires with each new worker. "mostrecent"
#   knows what was set. A Gauge with labels is not written before its first value, so that the guess is right there.
# Output seen (one worker sets it, another only makes it): min of 5: 0, with a label: 5; max of -5: 0, with a label: -5;
#   mostrecent of 5: 5.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check prometheus_client==0.26.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import os
import pathlib
import subprocess
import sys
import tempfile

MAKE = "from prometheus_client import Gauge\ngauge = Gauge('value', 'text', {labels}, multiprocess_mode='{mode}')\n"
SHOW = """
from prometheus_client import CollectorRegistry, multiprocess
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
(family,) = registry.collect()
print(*(sample.value for sample in family.samples))
"""


def shown(mode, value, labelled):
    """Return the value of a Gauge that the first of two workers sets."""
    make = MAKE.format(labels=["model"] if labelled else [], mode=mode)
    gauge = "gauge.labels('a')" if labelled else "gauge"
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": folder}

        def run(program):
            done = subprocess.run([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, check=True)
            return done.stdout.decode()

        run(f"{make}{gauge}.set({value})")
        run(make)
        assert len(list(pathlib.Path(folder).iterdir())) == 2 - labelled
        found = float(run(SHOW))
    print(f"{mode} of {value}{' with a label' if labelled else ''}: {found:g}")
    return found


assert shown("min", 5, labelled=True) == 5
assert shown("max", -5, labelled=True) == -5
assert shown("mostrecent", 5, labelled=False) == 5
assert shown("min", 5, labelled=False) == 0, "workers that set nothing take no part now"
assert shown("max", -5, labelled=False) == 0
PY
