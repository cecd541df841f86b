"""Files -> `Document`: safe YAML and JSON, overrides from the command line, and where data files are found."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.schema import Document, Fault, KeyPath, dotted, shown
from pipeline.errors import ConfigError

# Build files are a few KiB. The limits keep a wrong file (an ONNX model, a label list) from being parsed for minutes.
MAX_BYTES = 1 << 20
MAX_DEPTH = 20
MAX_ALIASED = 200  # characters
_SPELLED = ("--set", "-o")  # flags whose key is typed, and may be wrong


def shown_path(path: Path) -> str:
    """Relative to the current folder where it is below it: short, and clickable in editors."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def read_text(path: Path) -> str:
    """The text of a file of at most MAX_BYTES. Raises ConfigError where it cannot be read or is not UTF-8."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{shown_path(path)}: cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{shown_path(path)}: larger than {MAX_BYTES} bytes, so it is not a configuration file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown_path(path)}: not UTF-8 text (byte {error.start})") from error


def _refusal(event: yaml.Event, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)  # type: ignore[arg-type]


class _Loader(yaml.SafeLoader):
    """Safe, bounded in depth, and with aliases of short values only: others can make gigabytes out of a few lines."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            known = self.anchors.get(event.anchor)
            if not isinstance(known, yaml.ScalarNode) or len(known.value) > MAX_ALIASED:
                raise _refusal(event, "aliases (*name) are supported for single short values only")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _refusal(event, f"nested deeper than {MAX_DEPTH}")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def parse_yaml(text: str, path: str) -> Document:
    """Values and lines of a YAML text whose top level is a mapping. Raises ConfigError where it is not YAML."""
    document = Document(path=path)
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        values = {} if node is None else _plain(loader, node, (), document)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "malformed"
        line = mark.line + 1 if mark else None
        raise ConfigError(str(Fault(path, line, "", f"not valid YAML: {problem}{_advice(problem)}"))) from error
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections of keys (name:, frontend:, ...), got {shown(values)}")
    document.values = values
    return document


def _advice(problem: str) -> str:
    """Return what usually lies behind an error of the parser, which stops where it can no longer go on."""
    if "mapping values" in problem or "':'" in problem:
        return "; a colon with a space is missing in the line above, or this one has too many spaces before it"
    if "block" in problem:
        return "; this line has too few or too many spaces before it"
    if "unexpected end of stream" in problem:
        return "; a quotation mark is not closed"
    return "; indent with spaces" if r"'\t'" in problem else ""


def _plain(loader: _Loader, node: yaml.Node, key: KeyPath, document: Document) -> object:
    """The node as dict, list or scalar; notes the line of every key, and duplicates as faults."""
    document.lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, item, (*key, index), document) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        try:
            return loader.construct_object(node)
        except ValueError:  # such as the date 2020-99-99, or an integer of ten thousand digits
            document.fault(key, f"cannot be read as a value: {shown(node.value)}")
            return None
    values: dict[str, object] = {}
    for name_node, value_node in node.value:
        line = name_node.start_mark.line + 1
        name = name_node.value if isinstance(name_node, yaml.ScalarNode) else None
        if name is None or name_node.tag != "tag:yaml.org,2002:str":
            document.faults.append(Fault(document.path, line, dotted(key), f"expected a key that is text, got {name}"))
        elif name in values:
            document.faults.append(Fault(document.path, line, dotted((*key, name)), "given twice"))
        else:
            below = (*key, name)
            document.lines[below] = line
            values[name] = _plain(loader, value_node, below, document)
    return values


def parse_json(text: str, path: str) -> Document:
    """Values of a JSON text whose top level is an object. JSON has no lines here: its faults name the key alone."""
    twice: list[str] = []

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        names = [name for name, _ in items]
        twice.extend(name for name, count in Counter(names).items() if count > 1)
        return dict(items)

    try:
        values = json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    except (RecursionError, ValueError) as error:  # nested too deeply; an integer of too many digits
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected an object of keys, got {shown(values)}")
    document = Document(path=path, values=values)
    document.faults.extend(Fault(path, None, name, "given twice") for name in twice)
    return document


def apply_override(document: Document, key: str, value: object, flag: str) -> None:
    """Set the dotted `key` as if it were in the file; its faults then name `flag`. Missing sections are created.

    An item of a list is named by its number (`dataset.process_ops.1.size`). A key that contains dots is found
    where the file already has it.
    """
    parts = key.split(".")
    here: object = document.values
    above: KeyPath = ()
    for depth, part in enumerate(parts):
        rest = ".".join(parts[depth:])
        step: str | int
        if isinstance(here, dict):
            step = rest if rest in here else part
        elif isinstance(here, list) and part in map(str, range(len(here))):
            step = int(part)
        else:
            wanted = f"the number of one of its {len(here)} items" if isinstance(here, list) else "a section above it"
            document.faults.append(Fault(flag, None, key, f"expected {wanted}, got {part!r} in {shown(here)}"))
            return
        above = (*above, step)
        container: Any = here  # a dict has the step by name, a list by number
        if step == rest or depth == len(parts) - 1:
            container[step] = value
            document.flags[above] = flag
            return
        if isinstance(here, dict) and here.get(step) is None:
            here[step] = {}
            if flag in _SPELLED:  # of a flag with a key of its own, the file lacks what the section lacks beside that
                document.flags[above] = flag
        here = container[step]


def data_folders(folder_name: str) -> Iterator[Path]:
    """Where a data folder may be: beside the package in a clone, inside it in a wheel."""
    package = Path(__file__).resolve().parents[1]
    yield package.parent / folder_name
    yield package / "_data" / folder_name


def find_data_file(folder_name: str, name: str | Path) -> Path:
    """The file of `folder_name` (build_configs, vdsp_params, ...) that has the last component of `name`.

    Raises ConfigError with the nearest names where there is none.
    """
    last = re.split(r"[\\/]", str(name))[-1]
    names: set[str] = set()
    for folder in data_folders(folder_name):
        if last and (folder / last).is_file():
            return folder / last
        if folder.is_dir():
            names.update(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    hint = _meant(Path(name))
    if not hint:
        near = _nearest(last, names)
        hint = f"; nearest: {', '.join(near)}" if near else ""
    raise ConfigError(f"{name}: no such file, nor one of that name in {folder_name}/{hint}")


def _nearest(name: str, known: Collection[str]) -> list[str]:
    """Return up to three known names: first those that end in `_<name>` (timm_resnet18.yaml for resnet18).

    Similar names follow.
    """
    stem = Path(name).stem.casefold()
    ending = [each for each in sorted(known) if Path(each).stem.casefold().endswith(f"_{stem}")]
    similar = difflib.get_close_matches(name, sorted(set(known) - set(ending)), n=3, cutoff=0.4)
    return [*ending, *similar][:3]


def _meant(path: Path) -> str:
    """Return a hint at the file of the user's own that a path nearly names; "" where there is none."""
    if path.name and Path(f"{path}.yaml").is_file():
        return f"; did you mean {path}.yaml?"
    beside = [each.name for each in path.parent.glob(f"*{path.suffix}") if each.is_file()] if path.suffix else []
    near = difflib.get_close_matches(path.name, sorted(beside), n=1, cutoff=0.75)
    return f"; did you mean {path.with_name(near[0])}?" if near else ""


def find_file(path_or_name: str | Path, folder_name: str) -> Path:
    """A path where that file exists, else the file of the same name in `folder_name`."""
    path = Path(path_or_name)
    try:
        if path.is_dir():
            raise ConfigError(f"{path_or_name}: is a folder, expected a file{_meant(path)}")
        return path if path.is_file() else find_data_file(folder_name, path_or_name)
    except OSError as error:  # a name too long, a folder without permission
        raise ConfigError(f"{shown(str(path_or_name))}: cannot be read: {error.strerror}") from error
