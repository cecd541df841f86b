#!/bin/sh
# Two processes on one machine that each run a model in OpenVINO with INFERENCE_NUM_THREADS=1, as several workers of a
# server do that divide the cores among them.
# Versions: openvino 2026.4.1, numpy 2.4.6.
# Guess: the operating system spreads the two over the cores; where OpenVINO binds a thread to a core, it takes one that
#   no other process is bound to, or the one the process is told to use.
# Behaviour: each process binds its thread to a core counted from the first one it may use, whatever other processes
#   do. So all of them compute on the same core while the others idle: two processes answer as much together as one
#   alone. On a CPU without hybrid cores this is the default; ENABLE_CPU_PINNING=False, or a mask of its own for each
#   process (taskset), gives each a core.
# Output seen (cores that the computing thread of either process may use, on 2 cores): default 0 and 0; without
#   pinning 0-1 and 0-1; with masks 0 and 1.
# Needs Linux and two cores; where only one is there it says so and exits 0.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check numpy==2.4.6 openvino==2026.4.1
cd "$dir"
cat > infer.py <<'PY'
"""Prints the cores that the thread which computes in OpenVINO may use while it does."""

import os
import sys
from collections import Counter

if len(sys.argv) > 2:
    os.sched_setaffinity(0, {int(sys.argv[2])})
import numpy as np
import openvino
from openvino import opset13 as ops

x = ops.parameter([2048, 2048], np.float32)
w = ops.constant(np.ones((2048, 2048), np.float32))
model = openvino.Model([ops.matmul(x, w, False, False)], [x], "m")
settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
if sys.argv[1] == "unpinned":
    settings["ENABLE_CPU_PINNING"] = False
request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
request.infer([np.ones((2048, 2048), np.float32)])


def spent():
    found = {}
    for task in map(int, os.listdir("/proc/self/task")):
        fields = open(f"/proc/self/task/{task}/stat").read().rpartition(")")[2].split()
        found[task] = int(fields[11]) + int(fields[12])
    return found


began, seen = spent(), Counter()
for _ in range(20):
    request.start_async([np.ones((2048, 2048), np.float32)])
    while not request.wait_for(5):
        for task in spent():
            seen[task, tuple(sorted(os.sched_getaffinity(task)))] += 1
ended = spent()
busiest = max((task for task in ended if task != os.getpid()), key=lambda task: ended[task] - began.get(task, 0))
cores = max((key for key in seen if key[0] == busiest), key=lambda key: seen[key])[1]
print(",".join(map(str, cores)))
PY
"$dir/venv/bin/python" - <<'PY'
import os
import subprocess
import sys

cores = sorted(os.sched_getaffinity(0))[:2]
if len(cores) < 2:
    raise SystemExit(print("one core only: nothing to see") or 0)
os.sched_setaffinity(0, cores)


def pair(*arguments):
    run = [subprocess.Popen([sys.executable, "infer.py", *some], stdout=subprocess.PIPE, text=True) for some in arguments]
    return [each.communicate()[0].strip() for each in run]


both = ",".join(map(str, cores))
found = {
    "default": pair(["pinned"], ["pinned"]),
    "without pinning": pair(["unpinned"], ["unpinned"]),
    "masks": pair(["pinned", str(cores[0])], ["pinned", str(cores[1])]),
}
print(found)
first, second = map(str, cores)
wanted = {"default": [first, first], "without pinning": [both, both], "masks": [first, second]}
if found != wanted:
    raise SystemExit(f"the behaviour changed: expected {wanted}")
PY
