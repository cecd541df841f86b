"""The `token` command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.commands.flags import add_command, count
from pipeline.errors import ConfigError
from pipeline.terminal import console
from pipeline.terminal.counts import counted


def add_token(commands: Any) -> None:
    parser = add_command(
        commands,
        "token",
        _token,
        "make a bearer token for clients of serve, or revoke one",
        "python -m pipeline token alice --tokens tokens.txt --days 90",
    )
    parser.add_argument("name", metavar="NAME", help="owner of the token: letters, digits and . _ @ -")
    parser.add_argument(
        "--tokens",
        type=Path,
        required=True,
        metavar="FILE",
        help="file of names and hashes; created if it does not exist",
    )
    parser.add_argument("--days", type=count, metavar="N", help="days until it expires (default: never)")
    parser.add_argument("--revoke", action="store_true", help="remove all tokens of that name")


def _token(args: argparse.Namespace) -> None:
    from pipeline.serve import tokens

    if args.revoke and args.days is not None:
        raise ConfigError("--days: applies only to new tokens; leave it out with --revoke")
    if args.revoke:
        removed = tokens.revoke(args.tokens, args.name)
        console.step(f"{args.tokens}: {counted(removed, 'token')} of {args.name} removed")
        return
    token = tokens.make_token(args.tokens, args.name, args.days)
    console.note(f"{args.tokens}: the hash of a token of {args.name} added; the token, shown this once:")
    print(token)
