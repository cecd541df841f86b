"""Tokens and what one client may take, without a server."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from pathlib import Path

import pytest

from pipeline.commands.cli import main
from pipeline.errors import ConfigError
from pipeline.serve.clients import Clients, OwnStore, Shares, TooMuchError, network_of
from pipeline.serve.tokens import Tokens, UnauthorizedError, make_token, read_tokens


def fault(tokens: Tokens, authorization: str | None) -> str:
    with pytest.raises(UnauthorizedError) as caught:
        tokens.owner(authorization)
    return str(caught.value)


def test_token_command_keeps_the_hash_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tokens.txt"
    made = []
    for flags in ([], ["--days", "2"]):
        assert main(["token", "alice", "--tokens", str(path), *flags]) == 0
        made.append(capsys.readouterr().out.strip())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    for token in made:
        assert len(token) == 43
        assert token not in text
        assert hashlib.sha256(token.encode()).hexdigest() in text
        assert Tokens(path).owner(f"Bearer {token}") == "alice"
    first, second = read_tokens(path)
    assert first.expires is None
    assert second.expires == pytest.approx(time.time() + 2 * 86400, abs=60)


def test_token_command_revokes_all_of_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tokens.txt"
    bob = make_token(path, "bob", None)
    path.write_text("# kept\n" + path.read_text())
    path.chmod(0o640)
    alice = [make_token(path, "alice", None) for _ in range(2)]
    assert main(["token", "alice", "--tokens", str(path), "--revoke"]) == 0
    assert "2 tokens of alice removed" in capsys.readouterr().out
    tokens = Tokens(path)
    assert tokens.owner(f"bearer {bob}") == "bob"
    assert [fault(tokens, f"Bearer {token}") for token in alice] == ["the token is not known"] * 2
    assert path.read_text().startswith("# kept\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert main(["token", "alice", "--tokens", str(path), "--revoke"]) == 2
    assert main(["token", "alice", "--tokens", str(path), "--revoke", "--days", "3"]) == 2
    assert main(["token", "no name", "--tokens", str(path)]) == 2


def test_owner_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "tokens.txt"
    token = make_token(path, "alice", 1)
    line = path.read_text().split()
    path.write_text(f"{line[0]} {line[1]} 2001-02-03T04:05:06Z\n")
    tokens = Tokens(path)
    assert fault(tokens, None) == fault(tokens, "") == "no token; send the header 'authorization: Bearer TOKEN'"
    for wrong in (token, f"Basic {token}", "Bearer", "Bearer "):
        assert fault(tokens, wrong) == "expected the header 'authorization: Bearer TOKEN'"
    assert fault(tokens, f"Bearer {token}x") == fault(tokens, "Bearer \udcff") == "the token is not known"
    assert fault(tokens, f"Bearer {token}") == "the token of 'alice' has expired"


def test_expired_tokens_stay_so_when_the_clock_is_set_back_and_good_ones_when_it_jumps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokens.txt"
    token = make_token(path, "alice", 1)
    tokens = Tokens(path)
    wall, day = time.time, 24 * 3600.0
    monkeypatch.setattr(time, "time", lambda: wall() + 2 * day)  # and back, as after a wrong answer of a time server
    assert fault(tokens, f"Bearer {token}") == "the token of 'alice' has expired"
    monkeypatch.setattr(time, "time", wall)
    assert tokens.owner(f"Bearer {token}") == "alice"
    steady = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: steady() + 2 * day)  # two days, in which the clock was set back
    assert fault(tokens, f"Bearer {token}") == "the token of 'alice' has expired"


def test_tokens_are_read_again_when_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.serve.tokens._LOOK_S", 0.0)
    path = tmp_path / "tokens.txt"
    alice = make_token(path, "alice", None)
    tokens = Tokens(path)
    bob = make_token(path, "bob", None)
    assert tokens.owner(f"Bearer {bob}") == "bob"
    path.write_text("nonsense\n")
    assert tokens.owner(f"Bearer {alice}") == "alice"
    for _ in range(3):
        path.unlink(missing_ok=True)
        assert tokens.owner(f"Bearer {alice}") == "alice"
    said = capsys.readouterr().err
    assert said.count("the tokens known before stay") == 2  # of nonsense, and of no file
    carol = make_token(path, "carol", None)
    path.chmod(0o620)
    assert fault(tokens, f"Bearer {carol}") == "the token is not known"
    path.chmod(0o600)  # as the message says
    assert tokens.owner(f"Bearer {carol}") == "carol"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("alice", ":1: expected NAME sha256:HEX"),
        ("alice sha256:12", ":1: expected NAME sha256:HEX"),
        (f"a/b sha256:{'0' * 64}", ":1: expected NAME sha256:HEX"),
        (f"# x\n\nalice sha256:{'0' * 64} tomorrow", ":3: expected a time such as"),
        ("\udcff", "it is no text"),
    ],
)
def test_read_tokens_names_the_line(tmp_path: Path, text: str, wanted: str) -> None:
    path = tmp_path / "tokens.txt"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ConfigError, match=wanted):
        read_tokens(path)
    with pytest.raises(ConfigError):
        make_token(path, "bob", None)


def test_read_tokens_refuses_a_file_that_others_write(tmp_path: Path) -> None:
    path = tmp_path / "tokens.txt"
    make_token(path, "alice", None)
    path.chmod(0o660)
    with pytest.raises(ConfigError, match=r"others may write to it, and so let themselves in; run: chmod go-w"):
        read_tokens(path)
    with pytest.raises(ConfigError, match="no such file; make one by: python -m pipeline token NAME"):
        read_tokens(tmp_path / "none")
    if os.getuid():
        path.chmod(0)
        with pytest.raises(ConfigError, match="cannot be read"):
            read_tokens(path)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_clients_have_so_many_requests_under_way() -> None:
    clients = Clients(Shares(requests=2))
    clients.enter("a")
    clients.enter("a")
    clients.enter("b")
    with pytest.raises(TooMuchError, match="more than 2 requests of one client under way"):
        clients.enter("a")
    clients.leave("a", 10**9)
    clients.enter("a")


def test_clients_have_so_many_requests_a_second() -> None:
    clock = Clock()
    clients = Clients(Shares(per_second=2), clock)

    def taken() -> int:
        count = 0
        while True:
            try:
                clients.enter("a")
            except TooMuchError:
                return count
            clients.leave("a", 0)
            count += 1

    assert taken() == 4  # two seconds' worth
    clock.now += 0.4
    assert taken() == 0
    clock.now += 0.2
    assert taken() == 1
    clock.now += 60
    assert taken() == 4


def test_clients_have_so_many_bytes_a_second() -> None:
    clock = Clock()
    clients = Clients(Shares(bytes_per_second=1000), clock)
    clients.enter("a")
    clients.leave("a", 5000)  # 3000 more than two seconds' worth
    clock.now += 2.9
    with pytest.raises(TooMuchError, match="more than 1000 bytes a second of one client"):
        clients.enter("a")
    clock.now += 0.2
    clients.enter("a")


def test_clients_that_are_idle_are_forgotten_and_others_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.serve.clients._MOST_CLIENTS", 3)
    store = OwnStore()
    clients = Clients(Shares(requests=1), store=store)
    clients.enter("a")
    for name in "bcdef":
        clients.enter(name)
        clients.leave(name, 0)
    assert list(store._known) == ["a", "e", "f"]
    with pytest.raises(TooMuchError):
        clients.enter("a")


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.7"),
        ("", ""),
    ],
)
def test_network_of_an_address(address: str, wanted: str) -> None:
    assert network_of(address) == wanted
