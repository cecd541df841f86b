from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from pipeline import artefacts
from pipeline.artefacts import (
    fingerprint,
    install,
    is_published,
    open_descriptor,
    publish,
    read_manifest,
    verify,
    whole_file,
)
from pipeline.errors import ArtefactError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make(folder: Path, text: str = "weights") -> Path:
    with publish(folder, "test") as scratch:
        (scratch / "sub").mkdir()
        (scratch / "sub" / "b.bin").write_text(text, encoding="utf-8")
        (scratch / "a.txt").write_text("a", encoding="utf-8")
    return folder


def error_of(folder: Path) -> str:
    with pytest.raises(ArtefactError) as caught:
        verify(folder)
    return str(caught.value)


def test_file_digest_is_sha256_when_the_file_is_larger_than_a_chunk(tmp_path: Path) -> None:
    content = bytes(range(256)) * (artefacts._CHUNK // 256 * 2 + 3)
    (tmp_path / "f").write_bytes(content)
    assert artefacts.file_digest(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def test_fingerprint_ignores_the_order_of_keys_only() -> None:
    assert fingerprint({"a": 1, "b": [2, None]}) == fingerprint({"b": [2, None], "a": 1})
    parts = [("a", "b"), ("ab",), ("a", ["b"]), ("b", "a"), (1,), ("1",), (1.5,), (True,), (None,), ({"a": "b"},)]
    assert len({fingerprint(*part) for part in parts}) == len(parts)
    assert len(fingerprint()) == 16


def test_fingerprint_takes_paths_and_refuses_objects() -> None:
    assert fingerprint(Path("a/b")) == fingerprint("a/b")
    with pytest.raises(TypeError, match="set cannot enter a fingerprint"):
        fingerprint({1, 2})


def test_whole_file_leaves_the_old_file_when_the_body_fails(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with whole_file(path) as scratch:
        scratch.write_text("old", encoding="utf-8")
    with pytest.raises(ZeroDivisionError), whole_file(path) as scratch:
        scratch.write_text("half", encoding="utf-8")
        raise ZeroDivisionError
    assert path.read_text(encoding="utf-8") == "old"
    assert names(path.parent) == ["file.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def write(path: Path, content: bytes) -> None:
    with whole_file(path) as scratch:
        scratch.write_bytes(content)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
@pytest.mark.parametrize("through_link", [False, True])
def test_whole_file_keeps_the_permissions_of_the_file_it_replaces(
    tmp_path: Path, mode: int, through_link: bool
) -> None:
    path, link = tmp_path / "answers.csv", tmp_path / "link"
    path.write_text("old", encoding="utf-8")
    path.chmod(mode)
    link.symlink_to(path)
    write(link if through_link else path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_whole_file_follows_a_link_and_replaces_the_file_behind_it(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    real, link, chain = tmp_path / "far" / "real", tmp_path / "link", tmp_path / "chain"
    real.write_bytes(b"old")
    link.symlink_to("far/real")
    chain.symlink_to(link)
    inode = real.stat().st_ino
    write(chain, b"new")
    assert (chain.is_symlink(), link.is_symlink(), real.is_symlink()) == (True, True, False)
    assert (real.read_bytes(), real.stat().st_ino == inode) == (b"new", False)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["chain", "far", "link", "real"]


def test_whole_file_makes_the_file_that_a_dangling_link_names(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("far/real")
    write(tmp_path / "link", b"new")
    assert ((tmp_path / "link").is_symlink(), (tmp_path / "far" / "real").read_bytes()) == (True, b"new")


def test_whole_file_leaves_the_file_behind_a_link_when_the_body_fails(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(RuntimeError), whole_file(tmp_path / "link") as scratch:
        scratch.write_bytes(b"half")
        raise RuntimeError
    assert sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir()) == [("link", b"old"), ("real", b"old")]


@pytest.mark.parametrize("through_link", [False, True])
def test_whole_file_writes_through_a_named_pipe_and_leaves_it(tmp_path: Path, through_link: bool) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to("pipe")
    content = b"x" * 200_000  # more than a pipe holds
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(pipe.read_bytes)
        write(tmp_path / "link" if through_link else pipe, content)
        assert reader.result(30) == content
    assert stat.S_ISFIFO(os.lstat(pipe).st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]


def test_whole_file_opens_no_pipe_when_the_body_fails(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RuntimeError), whole_file(tmp_path / "pipe") as scratch:  # there is no reader: it would wait
        scratch.write_bytes(b"half")
        raise RuntimeError
    assert stat.S_ISFIFO(os.lstat(tmp_path / "pipe").st_mode)


@pytest.mark.skipif(not any(Path("/dev/pts").glob("*")), reason="needs terminals: is /dev/pts mounted?")
def test_whole_file_writes_through_a_device() -> None:
    ours, theirs = os.openpty()
    path = Path(os.ttyname(theirs))
    try:
        write(path, b"text")
        assert os.read(ours, 10) == b"text"
        assert stat.S_ISCHR(os.lstat(path).st_mode)
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("folder", ["/dev/fd", "/proc/self/fd"])
def test_whole_file_writes_to_an_open_descriptor_where_it_stands(tmp_path: Path, folder: str) -> None:
    """As `> file` of a shell: what was written before stays, and the file is not replaced."""
    with (tmp_path / "out").open("wb", buffering=0) as stream:
        stream.write(b"before ")
        write(Path(f"{folder}/{stream.fileno()}"), b"between")
        stream.write(b" after")
    assert (tmp_path / "out").read_bytes() == b"before between after"


@pytest.mark.parametrize(
    ("name", "number"), [("/dev/stdout", 1), ("/dev/stderr", 2), ("/dev/fd/7", 7), ("/dev/null", None)]
)
def test_open_descriptor_knows_the_names_of_descriptors(name: str, number: int | None) -> None:
    assert open_descriptor(Path(name)) == number


def test_whole_file_says_so_when_links_go_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        write(tmp_path / "a", b"x")


def test_publish_writes_a_manifest_of_every_file(tmp_path: Path) -> None:
    folder = make(tmp_path / "deep" / "out")
    assert read_manifest(folder) == {
        "producer": "test",
        "files": {
            "a.txt": {"bytes": 1, "sha256": hashlib.sha256(b"a").hexdigest()},
            "sub/b.bin": {"bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()},
        },
    }
    assert verify(folder) == read_manifest(folder)
    assert [name for name in names(folder.parent) if not name.endswith(".lock")] == ["out"]


@pytest.mark.parametrize("keep_partial", [False, True])
def test_publish_leaves_no_artefact_when_the_body_fails(tmp_path: Path, keep_partial: bool) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), publish(out, "test", keep_partial=keep_partial) as scratch:
        (scratch / "half").write_text("half", encoding="utf-8")
        raise KeyboardInterrupt
    assert not out.exists()
    with publish(out, "test", keep_partial=keep_partial) as scratch:
        assert names(scratch) == (["half"] if keep_partial else [])
    assert is_published(out)
    assert [name for name in names(tmp_path) if not name.endswith(".lock")] == ["out"]


def test_publish_keeps_the_first_when_an_artefact_is_published_again(tmp_path: Path) -> None:
    make(tmp_path / "out", "first")
    make(tmp_path / "out", "second")
    assert (tmp_path / "out" / "sub" / "b.bin").read_text(encoding="utf-8") == "first"
    assert verify(tmp_path / "out")
    assert [name for name in names(tmp_path) if not name.endswith(".lock")] == ["out"]


def test_publish_replaces_a_folder_without_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "half").write_text("half", encoding="utf-8")
    assert names(make(tmp_path / "out")) == ["a.txt", "manifest.json", "sub"]


PUBLISH_AND_COUNT = """
import sys, time
from pathlib import Path
from pipeline.artefacts import is_published, publish
out = Path(sys.argv[1])
with publish(out, "test") as scratch:
    if is_published(out):
        print("found it done")
    else:
        (scratch / "a").write_text("a")
        time.sleep(0.3)
        print("made it")
"""


def test_publish_lets_processes_take_turns_when_they_publish_the_same(
    tmp_path: Path, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    processes = [start_python("-c", PUBLISH_AND_COUNT, str(tmp_path / "out")) for _ in range(3)]
    printed = [process.communicate(timeout=60) for process in processes]
    assert sorted(out for out, _ in printed) == ["found it done\n", "found it done\n", "made it\n"], printed
    assert names(verify_folder(tmp_path / "out")) == ["a", "manifest.json"]


def verify_folder(folder: Path) -> Path:
    verify(folder)
    return folder


def test_publish_goes_on_when_a_process_was_killed_while_it_held_the_lock(
    tmp_path: Path, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    code = PUBLISH_AND_COUNT.replace("time.sleep(0.3)", "print('ready', flush=True); time.sleep(60)")
    process = start_python("-c", code, str(tmp_path / "out"))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.communicate()
    assert not (tmp_path / "out").exists()
    assert names(make(tmp_path / "out")) == ["a.txt", "manifest.json", "sub"]


def test_verify_says_what_to_do_when_there_is_no_manifest(tmp_path: Path) -> None:
    assert error_of(tmp_path) == (
        f"{tmp_path}: no manifest.json, so it is not a finished artefact; run the build again"
    )


def test_verify_names_the_file_when_it_is_missing(tmp_path: Path) -> None:
    folder = make(tmp_path / "out")
    (folder / "a.txt").unlink()
    assert error_of(folder) == (f"{folder}/a.txt: missing; run the build again, or copy the package folder as a whole")


@pytest.mark.parametrize("content", ["weightz", "weights and more", ""])
def test_verify_names_the_file_when_it_was_changed(tmp_path: Path, content: str) -> None:
    folder = make(tmp_path / "out")
    (folder / "sub" / "b.bin").write_text(content, encoding="utf-8")
    assert error_of(folder) == f"{folder}/sub/b.bin: changed since the build (sha256 differs); run the build again"


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", "sub/../../outside.txt"])
def test_verify_refuses_names_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path / "out")
    (tmp_path / "outside.txt").write_text("a", encoding="utf-8")
    manifest = read_manifest(folder)
    manifest["files"][name] = manifest["files"]["a.txt"]
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert error_of(folder) == f"{folder}/manifest.json: file name {name!r} leaves the folder; do not use this package"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); run the "),
        ("[]", "has no list of files; run the build again"),
        ('{"producer": "x"}', "has no list of files; run the build again"),
        ('{"files": ["a"]}', "has no list of files; run the build again"),
        ('{"files": {"a.txt": "b"}}', "has no list of files; run the build again"),
    ],
)
def test_read_manifest_says_what_is_wrong_when_it_is_damaged(tmp_path: Path, content: str, message: str) -> None:
    folder = make(tmp_path / "out")
    (folder / "manifest.json").write_text(content, encoding="utf-8")
    assert error_of(folder).startswith(f"{folder}/manifest.json: {message}")


def test_install_copies_and_replaces_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "packages" / "p"
    install(make(tmp_path / "one", "one"), target)
    assert names(verify_folder(target)) == ["a.txt", "manifest.json", "sub"]
    (target / "leftover").write_text("of the user", encoding="utf-8")
    install(make(tmp_path / "two", "two"), target)
    assert names(verify_folder(target)) == ["a.txt", "manifest.json", "sub"]
    assert (target / "sub" / "b.bin").read_text(encoding="utf-8") == "two"
    assert [name for name in names(target.parent) if not name.endswith(".lock")] == ["p"]


def test_install_writes_nothing_when_the_target_is_equal(tmp_path: Path) -> None:
    source, target = make(tmp_path / "one"), tmp_path / "p"
    install(source, target)
    before = (target.stat().st_ino, (target / "a.txt").stat().st_mtime_ns)
    install(source, target)
    assert (target.stat().st_ino, (target / "a.txt").stat().st_mtime_ns) == before


def test_install_leaves_the_copy_of_a_process_that_came_first(tmp_path: Path) -> None:
    source, target, ahead = make(tmp_path / "one"), tmp_path / "p", make(tmp_path / "ahead")
    with (tmp_path / ".p.lock").open("a") as lock, ThreadPoolExecutor(1) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = pool.submit(install, source, target)
        assert not wait([second], timeout=0.2).done
        ahead.rename(target)
        inode = target.stat().st_ino
        fcntl.flock(lock, fcntl.LOCK_UN)
        second.result()
    assert target.stat().st_ino == inode


def test_install_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / ".p.partial" / "new").mkdir(parents=True)
    install(make(tmp_path / "one"), tmp_path / "p")
    assert [name for name in names(tmp_path) if not name.endswith(".lock")] == ["one", "p"]


def test_install_repairs_the_target_when_a_file_of_it_is_damaged(tmp_path: Path) -> None:
    source, target = make(tmp_path / "one"), tmp_path / "p"
    install(source, target)
    (target / "a.txt").write_text("b", encoding="utf-8")
    install(source, target)
    assert (verify_folder(target) / "a.txt").read_text(encoding="utf-8") == "a"


def test_install_keeps_the_target_when_the_source_cannot_be_copied(tmp_path: Path) -> None:
    target = tmp_path / "p"
    install(make(tmp_path / "one", "one"), target)
    source = make(tmp_path / "two", "two")
    (source / "a.txt").unlink()
    (source / "a.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match="No such file"):
        install(source, target)
    assert (verify_folder(target) / "sub" / "b.bin").read_text(encoding="utf-8") == "one"
    assert [name for name in names(tmp_path) if not name.endswith(".lock")] == ["one", "p", "two"]
