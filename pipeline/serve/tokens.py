"""Bearer tokens: a file of names and hashes. Only the standard library is needed, so that tokens can be made anywhere.

A line is `NAME sha256:HEX [EXPIRES]`; EXPIRES is a time of UTC, such as 2027-01-31T12:00:00Z. `#` begins a comment.
A token has 256 random bits, so a plain SHA-256 protects it: unlike a password, it cannot be guessed.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from pipeline.artefacts import whole_file
from pipeline.errors import ConfigError
from pipeline.terminal import console
from pipeline.terminal.counts import counted

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_LOOK_S = 1.0  # between two checks whether the file changed
_SCHEME = "bearer"


class UnauthorizedError(Exception):
    """A request has no valid token. The text is for the client."""


@dataclass(frozen=True)
class Entry:
    """A line of the file."""

    name: str
    digest: bytes  # of the token
    expires: float | None  # seconds since the epoch


def make_token(path: Path, name: str, days: int | None) -> str:
    """Return a new token, whose hash is added to a file. The token itself is not stored.

    Args:
        days: until it expires; None: never.

    Raises:
        ConfigError: the name is invalid, or the file cannot be written or is not a token file.
    """
    _check_name(name)
    if path.exists():
        read_tokens(path)
    lines = _lines(path)
    token = secrets.token_urlsafe(32)
    line = f"{name} sha256:{_digest(token).hex()}"
    if days is not None:
        line += (datetime.now(timezone.utc) + timedelta(days=days)).strftime(f" {_TIME}")
    _write(path, [*lines, line])
    return token


def revoke(path: Path, name: str) -> int:
    """Remove all tokens of a name; return how many there were.

    Raises:
        ConfigError: there was none, or the file cannot be written or is not a token file.
    """
    _check_name(name)
    lines = _lines(path)
    kept = [line for line in lines if line.split("#")[0].split()[:1] != [name]]
    if len(kept) == len(lines):
        raise ConfigError(f"{path}: no token of {name!r}")
    _write(path, kept)
    return len(lines) - len(kept)


class Tokens:
    """The tokens of a file, which is read again when it changes."""

    def __init__(self, path: Path) -> None:
        """Read it.

        Raises:
            ConfigError: it cannot be read, others may write to it, or a line is invalid.
        """
        self._path = path
        self._stamp = _stamp(path)
        self._entries = read_tokens(path)
        self._looked = time.monotonic()
        self._ahead = time.time() - time.monotonic()  # of the clock that nobody sets
        self._fault = ""  # that was said

    def owner(self, authorization: str | None) -> str:
        """Return the name of a request's token.

        Args:
            authorization: the header's value.

        Raises:
            UnauthorizedError: there is none, it is not known, or it has expired.
        """
        self._look()
        scheme, _, token = (authorization or "").strip().partition(" ")
        if not authorization:
            raise UnauthorizedError("no token; send the header 'authorization: Bearer TOKEN'")
        if scheme.lower() != _SCHEME or not token.strip():
            raise UnauthorizedError("expected the header 'authorization: Bearer TOKEN'")
        digest = _digest(token.strip())
        # All are compared, each in constant time: the time taken reveals nothing about the file.
        found = [entry for entry in self._entries if hmac.compare_digest(entry.digest, digest)]
        if not found:
            raise UnauthorizedError("the token is not known")
        now = self._now()
        if all(entry.expires is not None and entry.expires <= now for entry in found):
            raise UnauthorizedError(f"the token of {found[0].name!r} has expired")
        return found[0].name

    def _now(self) -> float:
        """Return the time of day; of a clock that was set back, what it would show: expired tokens stay expired."""
        return max(time.time(), self._ahead + time.monotonic())

    def _look(self) -> None:
        """Read the file again if it changed; where that fails, the old tokens stay valid, and a line says why, once."""
        if time.monotonic() - self._looked < _LOOK_S:
            return
        self._looked = time.monotonic()
        try:
            stamp = _stamp(self._path)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._entries = read_tokens(self._path)
        except ConfigError as err:
            if str(err) != self._fault:
                self._fault = str(err)
                console.warning(f"{err}; the tokens known before stay")
        else:
            self._fault = ""
            console.step(f"{self._path}: read again, {counted(len(self._entries), 'token')}")


def read_tokens(path: Path) -> tuple[Entry, ...]:
    """Return the entries of a file.

    Raises:
        ConfigError: it cannot be read, others may write to it, or a line is invalid.
    """
    entries = []
    for number, line in enumerate(_lines(path, must_exist=True), 1):
        words = line.split("#")[0].split()
        if words:
            entries.append(_entry(f"{path}:{number}", words))
    return tuple(entries)


def _entry(where: str, words: Sequence[str]) -> Entry:
    if len(words) not in (2, 3) or not _NAME.fullmatch(words[0]) or not _HASH.fullmatch(words[1]):
        raise ConfigError(
            f"{where}: expected NAME sha256:HEX [EXPIRES]; make tokens by: python -m pipeline token NAME --tokens FILE"
        )
    expires = None
    if len(words) == 3:
        try:
            expires = datetime.strptime(words[2], _TIME).replace(tzinfo=timezone.utc).timestamp()
        except ValueError:
            raise ConfigError(f"{where}: expected a time such as 2027-01-31T12:00:00Z, got {words[2]!r:.80}") from None
    return Entry(words[0], bytes.fromhex(words[1].partition(":")[2]), expires)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r}: expected a name of letters, digits and . _ @ -, at most 64")


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except FileNotFoundError:
        raise _absent(path) from None
    except OSError as err:
        raise ConfigError(f"{path}: cannot be read ({err.strerror})") from None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode


def _absent(path: Path) -> ConfigError:
    return ConfigError(f"{path}: no such file; make one by: python -m pipeline token NAME --tokens {path}")


def _lines(path: Path, *, must_exist: bool = False) -> list[str]:
    try:
        if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(f"{path}: others may write to it, and so let themselves in; run: chmod go-w {path}")
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        if must_exist:
            raise _absent(path) from None
        return []
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"{path}: cannot be read ({getattr(err, 'strerror', None) or 'it is no text'})") from None


def _write(path: Path, lines: Sequence[str]) -> None:
    before = os.umask(0o077)
    try:
        with whole_file(path) as scratch:
            scratch.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as err:
        raise ConfigError(f"{path}: cannot be written ({err.strerror})") from None
    finally:
        os.umask(before)
