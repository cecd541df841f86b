"""The `config` command: the keys of a build file, and a build file resolved."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.flags import add_command

if TYPE_CHECKING:
    from pipeline.config.build_config import BuildConfig


def add_config(commands: Any) -> None:
    parser = add_command(
        commands,
        "config",
        _config,
        "show the keys of build files, or a build file with defaults and overrides resolved",
        "python -m pipeline config keys",
    )
    kinds = parser.add_subparsers(title="subcommands", required=True, metavar="WHAT", dest="what")
    kinds.add_parser("keys", help="list every key with its default, its values and its meaning")
    kinds.add_parser("schema", help="print the same as a JSON Schema, for editors")
    docs = kinds.add_parser("docs", help="print the same as a table in Markdown")
    docs.add_argument(
        "page", type=Path, nargs="?", metavar="PAGE", help="page whose table is renewed, docs/build-files.md"
    )
    show = kinds.add_parser("show", help="print a build file with every default and override resolved")
    show.add_argument("config", metavar="CONFIG", help="build file, or the name of one in build_configs/")
    show.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override any key")


def _config(args: argparse.Namespace) -> None:
    from pipeline.config import json_schema, key_table

    if args.what == "schema":
        print(json.dumps(json_schema.build_file_schema(), indent=1))
    elif args.what == "keys":
        print("\n".join(key_table.lines()))
    elif args.what == "docs" and args.page is None:
        print(key_table.table())
    elif args.what == "docs":
        print(f"{args.page}: {'renewed' if key_table.renew(args.page) else 'up to date'}")
    else:
        from pipeline.config.build_file import load_build_file

        print(resolved(load_build_file(args.config, args.set)), end="")


def resolved(cfg: BuildConfig) -> str:
    """Return a build file that says all that `cfg` does, in YAML."""
    import yaml

    sections = {key: value for key, value in cfg.as_dict().items() if key != "preprocess"}  # dataset says it
    text: str = yaml.safe_dump(sections, sort_keys=False, allow_unicode=True)
    return text
