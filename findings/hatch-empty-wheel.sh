#!/bin/sh
# A wheel built by hatchling from a pyproject.toml whose packages, include or only-include names a folder that is not
# there: a spelling mistake, or a folder that was renamed.
# Versions: hatchling 1.33.0, build 1.3.0.
# Guess: the build fails, as it does where nothing is configured and no folder has the project's name, and as
#   force-include does with a missing path.
# Behaviour: it succeeds without a word, and the wheel holds the metadata alone. It installs, and importing fails on
#   the user's machine. Only the automatic choice and force-include check that there is something.
# Output seen (Python files in the wheel): packages, include and only-include of a missing folder: 0, exit 0; nothing
#   configured: exit 1; force-include: exit 1; packages spelt right: 1.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    hatchling==1.33.0 build==1.3.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import subprocess
import sys
import zipfile
from pathlib import Path

HEAD = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "demo"
version = "1"
"""
TABLE = "[tool.hatch.build.targets.wheel"


def build(number, table):
    """Return the exit code and how many Python files are in the wheel."""
    root = Path(f"project{number}")
    (root / "network").mkdir(parents=True)
    (root / "network" / "__init__.py").write_text("SIZE = 224")
    (root / "pyproject.toml").write_text(HEAD + table)
    done = subprocess.run([sys.executable, "-m", "build", "-w", "-n", str(root)], capture_output=True, text=True)
    wheels = list((root / "dist").glob("*.whl"))
    files = zipfile.ZipFile(wheels[0]).namelist() if wheels else []
    return done.returncode, sum(name.endswith(".py") for name in files)


cases = {
    "packages, spelt right": f'{TABLE}]\npackages = ["network"]',
    "packages": f'{TABLE}]\npackages = ["netwrok"]',
    "include": f'{TABLE}]\ninclude = ["netwrok/**"]',
    "only-include": f'{TABLE}]\nonly-include = ["netwrok"]',
    "nothing": "",
    "force-include": f'{TABLE}.force-include]\n"netwrok" = "netwrok"',
}
seen = {}
for number, (name, table) in enumerate(cases.items()):
    seen[name] = build(number, table)
    print(f"{name}: exit {seen[name][0]}, {seen[name][1]} Python files")
assert list(seen.values()) == [(0, 1), (0, 0), (0, 0), (0, 0), (1, 0), (1, 0)], "hatchling checks what is missing now"
PY
