"""What messages advise: every flag that one names is a flag of the command whose user reads it."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.commands.cli import make_parser

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pipeline"
_FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
# `--num of calibset`, `--weights of build and init`, `--num_classes 7 of export`: of these commands alone.
_OF = re.compile(r"(--[a-z][\w-]*)(?: \S+)? of ((?:\w+)(?:(?:, | and )\w+)*)")

# Whose users read the messages of a module; the longest name counts. A flag must be one of every command here, unless
# the message itself says of which it is.
READERS: dict[str, tuple[str, ...]] = {
    "": (),  # what follows names them all: a new module needs a row, or names no flag
    "building": ("build",),
    "config": ("build",),
    "config.paddleclas": ("eval",),
    "data.class_tree": ("build", "init", "calibset", "image2npz"),
    "data.conversion": ("build", "image2npz"),
    "data.ground_truth": ("eval",),
    "data.imagenet": ("build", "init", "calibset", "image2npz"),
    "data.label_check": ("build",),
    "data.labels": ("eval",),
    "data.listed_labels": ("image2npz",),
    "host.cluster": ("bench", "image2npz", "predict"),
    "host.cluster_worker": ("bench", "image2npz", "predict"),
    "measure.analyze": ("analyze",),
    "measure.bench": ("bench",),
    "measure.bench_options": ("bench",),
    "measure.documented_latency": ("bench",),
    "measure.evaluate": ("eval",),
    "measure.load": ("bench",),
    "measure.reference": ("eval",),
    "measure.result_scores": ("eval",),
    "onnx_models": ("build",),
    "packages.formats": ("package",),
    "packages.origin": ("build", "predict"),
    "packages.choice": ("bench", "predict", "serve"),
    "packages.package": ("bench", "eval", "predict", "serve", "analyze", "package"),
    "prepare.doctor": ("doctor",),
    "prepare.export_model": ("export",),
    "prepare.found_network": ("init",),
    "prepare.frontends": ("build",),
    "prepare.from_paddleclas": ("init",),
    "prepare.keras_conventions": ("init",),
    "prepare.new_build_file": ("init",),
    "prepare.written_ops": ("init",),
    "proof.agreement": ("bench", "predict", "serve"),
    "proof.speed": ("build",),
    "reports": ("build", "bench", "eval"),
    "run.predict": ("predict",),
    "run.results": ("bench", "eval"),
    "run.sweep": ("bench",),
    "run.sweep_record": ("bench",),
    "runtimes": ("bench", "predict", "serve", "analyze"),
    "serve": ("serve",),
    "stages": ("build",),
    "stages.calibset": ("build", "calibset"),
    "stages.image2npz": ("build",),
    "weights.checkpoints": ("build", "init", "export"),
    "weights.file_kinds": ("build", "init", "export"),
    "weights.matching": ("build", "init", "export"),
    "weights.state_dicts": ("build", "init", "export"),
    "commands.analyze": ("analyze",),
    "commands.bench": ("bench",),
    "commands.build": ("build",),
    "commands.calibset": ("calibset",),
    "commands.check": ("check",),
    "commands.cli": ("",),
    "commands.completion": ("build", "config show"),
    "commands.config": ("config show",),
    "commands.doctor": ("doctor",),
    "commands.evaluate": ("eval",),
    "commands.export": ("export",),
    "commands.flags": ("build", "bench", "eval", "predict", "image2npz", "analyze", "calibset", "init"),
    "commands.image2npz": ("image2npz",),
    "commands.init": ("init",),
    "commands.package": ("package",),
    "commands.predict": ("predict",),
    "commands.serve": ("serve",),
    "commands.token": ("token",),
}
# Modules whose functions are each of one of these commands: there a flag must be one of any of them.
SHARED = frozenset({"run.results", "commands.flags", "packages.package", "packages.origin", "host.cluster"})
# Of `ray start`, in the advice of `cluster`, and of pip, in that of `extras`.
OTHER_PROGRAMS = frozenset({"--head", "--port", "--extra-index-url", "--no-deps", "--task"})


def flags_of(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, frozenset[str]]]:
    """Yield each command with its flags."""
    yield name, frozenset(flag for action in parser._actions for flag in action.option_strings)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below, sub in action.choices.items():
                yield from flags_of(sub, f"{name} {below}".strip())


FLAGS = dict(flags_of(make_parser()))


def literals(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the texts of a file that are no docstrings, each f-string as one, with `{}` for what is put in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                parts.add(first.value)
        if isinstance(node, ast.JoinedStr):
            parts.update(node.values)
            texts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield node.lineno, "".join(map(str, texts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts:
            yield node.lineno, node.value


def readers_of(module: str) -> str:
    """Return the row of READERS for a module."""
    names = module.split(".")
    return next(row for end in range(len(names), -1, -1) if (row := ".".join(names[:end])) in READERS)


def wrong_flags(text: str, module: str) -> list[str]:
    """Return the flags in a message that its readers' command does not have."""
    wrong = []
    said: set[str] = set()
    for flag, commands in _OF.findall(text):
        named = re.split(r", | and ", commands)
        if all(name in FLAGS for name in named):
            said.add(flag)
            wrong += [f"{flag} of {name}" for name in named if flag not in FLAGS[name]]
    for found in _FLAG.finditer(text):  # `bench --sweep`, `build with --weights auto`: a command line to type
        before = re.findall(r"\w+", text[: found.start()])[-2:]
        said |= {found[0] for command in before if found[0] in FLAGS.get(command, ())}
    row = readers_of(module)
    for flag in set(_FLAG.findall(text)) - said - OTHER_PROGRAMS:
        having = [flag in FLAGS[command] for command in READERS[row]]
        if not having or not (any(having) if row in SHARED else all(having)):
            wrong.append(flag)
    return wrong


def test_readers_name_modules_and_commands_that_exist() -> None:
    subpackages = {module.rpartition(".")[0] for module in MODULES}
    assert [row for row in READERS if row and row not in MODULES and row not in subpackages] == []
    assert {command for row in READERS.values() for command in row} <= FLAGS.keys()


MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "_data" not in path.parts
}


@pytest.mark.parametrize("module", MODULES)
def test_every_flag_in_a_message_is_one_of_its_readers_command(module: str) -> None:
    found = [
        f"{MODULES[module].name}:{line}: {wrong} in {text!r}"
        for line, text in literals(MODULES[module])
        if " " in text and (wrong := wrong_flags(text, module))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "module", "wrong"),
    [
        ("give fewer (--num)", "stages.calibset", ["--num"]),
        ("give fewer (--num of calibset)", "stages.calibset", []),
        ("give fewer (--num of build)", "stages.calibset", ["--num of build"]),
        ("measure it by bench --reference", "stages.calibset", []),
        ("measure it by bench --weights", "stages.calibset", ["--weights"]),
        ("give --weights FILE", "stages.export", []),
        ("give --wieghts FILE", "stages.export", ["--wieghts"]),
        ("give --weights FILE", "terminal.console", ["--weights"]),
    ],
)
def test_wrong_flags_finds_what_a_command_does_not_have(text: str, module: str, wrong: list[str]) -> None:
    assert wrong_flags(text, module) == wrong


def test_no_message_leaves_the_number_of_a_noun_open() -> None:
    paddleclas = {"id(s)", "score(s)", "label_name(s)"}  # its programs' words, printed to the letter
    found = {
        f"{module}: {word}"
        for module, path in MODULES.items()
        for _, text in literals(path)
        for word in re.findall(r"\w+\(e?s\)", text)
        if word not in paddleclas
    }
    assert found == set()  # terminal.counts says `1 image`, `2 images`
