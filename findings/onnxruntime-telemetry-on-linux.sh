#!/bin/sh
# onnxruntime's wheel for Linux: who counts its users, and what onnxruntime.disable_telemetry_events() stops.
# Versions: onnxruntime 1.28.0 and 1.32.0, numpy 2.4.6.
# Guess: nothing is written outside the process and nothing is sent: telemetry was of Windows builds only, for years, by
#   the project's page on privacy. If that has changed, disable_telemetry_events() called before anything else keeps the
#   library from it; its documentation is "Disables platform-specific telemetry collection."
# Behaviour: from 1.29 on the import alone makes a device identifier and a database of events to upload below
#   ~/.cache/Microsoft/DeveloperTools, and a container that may not write there gets a warning at the first session.
#   disable_telemetry_events() comes too late: both are there already. ORT_DISABLE_TELEMETRY=1 in the environment before
#   the import keeps both away; in CI they are not made either, so that tests of what a program writes do not see them.
#   It hurts who runs models on closed networks or promised their users that nothing is collected.
# Output seen (files in the home folder): 1.28.0 none; 1.32.0 deviceid, onnxruntime.db; after
#   disable_telemetry_events() deviceid, onnxruntime.db; with ORT_DISABLE_TELEMETRY=1 none; with CI=true none.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
unset CI GITHUB_ACTIONS TF_BUILD CIRCLECI ORT_DISABLE_TELEMETRY XDG_CACHE_HOME || true

files() { # a name of the case, then the command, in a home folder of its own; prints what is there afterwards
    mkdir "$dir/$1"
    name=$1
    shift
    HOME="$dir/$name" "$@" >/dev/null 2>&1
    (cd "$dir/$name" && find . -type f -name '[!.]*' -exec basename {} \; | sort | tr '\n' ' ')
}

for release in 1.28.0 1.32.0; do
    python3 -m venv "$dir/venv-$release"
    "$dir/venv-$release/bin/pip" install -qq --disable-pip-version-check "onnxruntime==$release" numpy==2.4.6
done
old="$dir/venv-1.28.0/bin/python" new="$dir/venv-1.32.0/bin/python"
before=$(files before "$old" -c "import onnxruntime")
now=$(files now "$new" -c "import onnxruntime")
off=$(files off "$new" -c "import onnxruntime; onnxruntime.disable_telemetry_events()")
unset_=$(files unset env ORT_DISABLE_TELEMETRY=1 "$new" -c "import onnxruntime")
ci=$(files ci env CI=true "$new" -c "import onnxruntime")
echo "1.28.0: ${before:-none}; 1.32.0: ${now:-none}; after disable_telemetry_events(): ${off:-none};" \
    "ORT_DISABLE_TELEMETRY=1: ${unset_:-none}; CI=true: ${ci:-none}"
[ -z "$before" ] && [ "$now" = "deviceid onnxruntime.db " ] && [ "$off" = "$now" ] && [ -z "$unset_" ] && [ -z "$ci" ]
