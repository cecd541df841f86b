"""Which module may import which: the layers of CONTRIBUTING.md, checked against the code."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pipeline"

# Subpackages and modules, lowest layer first: a module imports from its own subpackage and from lower layers.
LAYERS = (
    {"errors", "version", "protobuf_wire", "terminal"},
    {"config", "host"},
    {"artefacts", "runtimes"},
    {"data", "onnx_models"},
    {"models"},
    {"packages", "quant", "weights"},
    {"learn", "proof", "prepare", "run"},
    {"measure", "stages", "serve"},
    {"building"},
    {"reports"},
    {"commands"},
    {"__main__"},
)
LAYER_OF = {unit: number for number, layer in enumerate(LAYERS) for unit in layer}
# The only modules that need torch when they are imported; the export command and stage reach them lazily.
TORCH_UNITS = {"learn", "models", "weights"}
HEAVY = ("ray", "torch", "onnx", "onnxruntime", "openvino", "numpy", "yaml", "PIL")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if "_data" not in path.parts}


def unit_of(module: str) -> str:
    """Return what the map lists: a folder, or a module beside them."""
    return module.split(".")[1]


@functools.cache
def read_tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, *, lazy: bool = True) -> Iterator[str]:
    """Yield every module that a file names in an import.

    Args:
        lazy: those in functions too, which run later, and those below `if TYPE_CHECKING:`, which never run.
    """
    waiting: list[ast.AST] = [read_tree(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else str(node.module) for name in names)
        elif lazy or not is_lazy(node):
            waiting.extend(ast.iter_child_nodes(node))


def is_lazy(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def our_imports(module: str, *, lazy: bool = True) -> set[str]:
    return {name for name in imports(MODULES[module], lazy=lazy) if name.startswith("pipeline.")}


def needed_at_import(path: Path) -> set[str]:
    """Return the top-level packages that importing a file imports, itself alone."""
    return {name.partition(".")[0] for name in imports(path, lazy=False)}


def test_map_names_every_module() -> None:
    units = {unit_of(module) for module in MODULES if module != "pipeline"}
    assert units <= LAYER_OF.keys(), f"give these a layer: {sorted(units - LAYER_OF.keys())}"


def test_contributing_has_the_layers_in_this_order() -> None:
    listed: list[set[str]] = []
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for number, unit in re.findall(r"^\| (\d*) *\| `(\w+)(?:/|\.py)` \|", text, re.MULTILINE):
        if number:
            assert int(number) == len(listed) + 1
            listed.append(set())
        listed[-1].add(unit)
    assert tuple(listed) == LAYERS


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"pipeline"}))
def test_module_imports_from_lower_layers_only(module: str) -> None:
    for name in sorted(our_imports(module)):
        assert unit_of(name) == unit_of(module) or LAYER_OF[unit_of(name)] < LAYER_OF[unit_of(module)], (
            f"{module} imports {name}"
        )


def test_stages_never_import_each_other() -> None:
    for module in MODULES:
        if module.startswith("pipeline.stages."):
            others = {name for name in our_imports(module) if name.startswith("pipeline.stages")}
            assert module == "pipeline.stages.table" or others <= {
                "pipeline.stages.artefact_names",
                "pipeline.stages.rounding_inputs",
                "pipeline.stages.settings",
                "pipeline.stages.int8_parts",
                "pipeline.stages.int8_reading",
            }, f"{module} imports {sorted(others)}"


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for name in sorted(our_imports(module, lazy=False) & MODULES.keys()):
                visit(name, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("module", sorted(MODULES))
def test_torch_is_imported_in_its_subpackages_only(module: str) -> None:
    path = MODULES[module]
    if module != "pipeline" and unit_of(module) not in TORCH_UNITS:
        assert "torch" not in needed_at_import(path)
    if module == "pipeline.models.zoo":
        assert "torch" not in needed_at_import(path), "the table of networks is read without torch"


def test_engines_are_reached_through_runtimes() -> None:
    """But for ONNX Runtime's quantizer and its conversion to float16, which quant/ calls and runs no model with."""
    tools = ("onnxruntime.quantization", "onnxruntime.transformers")
    for module, path in MODULES.items():
        if module != "pipeline" and unit_of(module) != "runtimes":
            engines = [name for name in imports(path) if name.partition(".")[0] in ("openvino", "onnxruntime")]
            allowed = tools if unit_of(module) == "quant" else ()
            assert all(name.startswith(allowed) for name in engines), f"{module} imports {engines}"


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


BLOCKER = """
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
for name in NAMES:
    try:
        importlib.import_module(name)
    except ImportError as err:
        print(name, err)
"""


def failing_imports(blocked: tuple[str, ...], names: list[str]) -> list[str]:
    return run_python(f"BLOCKED, NAMES = {blocked!r}, {names!r}\n{BLOCKER}").splitlines()


@pytest.mark.slow
def test_everything_but_the_networks_imports_without_torch() -> None:
    names = sorted(MODULES.keys() - {"pipeline.__main__"})
    incomplete = {line.partition(" ")[0] for line in failing_imports((), names)}  # `serve` without its extra
    failing = {line.partition(" ")[0] for line in failing_imports(("torch",), names)} - incomplete
    needing = {name for name in MODULES if "torch" in needed_at_import(MODULES[name])}
    assert needing <= failing
    assert {unit_of(name) for name in failing} <= {*TORCH_UNITS, "prepare"}


@pytest.mark.parametrize("blocked", ["openvino", "onnxruntime", "onnx"])
def test_packages_run_without_the_other_engine(blocked: str) -> None:
    names = [
        f"pipeline.{module}"
        for module in (
            "commands.cli",
            "measure.bench",
            "measure.evaluate",
            "packages.package",
            "run.results",
            "run.runner",
        )
    ]
    assert failing_imports(("torch", blocked), names) == []


def test_command_line_imports_nothing_heavy() -> None:
    code = f"import pipeline.commands.cli, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert run_python(code).strip() == "[]"
