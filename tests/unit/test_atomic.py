"""Files and folders appear whole or not at all, whatever happens to their writers."""

import ast
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

import lingu_ray
from lingu_ray.atomic import (
    _HERE,
    locked,
    require_new_folder,
    require_writable,
    whole_file,
    whole_folder,
    write_json,
    write_text,
)
from lingu_ray.errors import UserError

KILLED = """
import os, signal, sys
from pathlib import Path
from lingu_ray.atomic import whole_file, whole_folder
kind, path = sys.argv[1], Path(sys.argv[2])
with (whole_file if kind == "file" else whole_folder)(path) as temporary:
    target = temporary if kind == "file" else temporary / "content"
    target.write_text("new, but not all of i")
    os.kill(os.getpid(), signal.SIGKILL)
"""
WRITERS, ROUNDS, LENGTH = 4, 8, 50_000


def content(path: Path) -> str:
    """What a file holds, or the one file in a folder."""
    return (path / "content" if path.is_dir() else path).read_text()


def write(path: Path, kind: str, text: str) -> None:
    """Write a file, or a folder with one file."""
    if kind == "file":
        write_text(path, text)
        return
    with whole_folder(path) as temporary:
        (temporary / "content").write_text(text)


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("there_before", [True, False])
def test_a_writer_that_is_killed_changes_nothing(tmp_path: Path, kind: str, there_before: bool) -> None:
    """SIGKILL half-way leaves the old content, or none; the next writer removes what the killed one left."""
    path = tmp_path / "x"
    if there_before:
        write(path, kind, "old")
    killed = subprocess.run([sys.executable, "-c", KILLED, kind, str(path)], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1 + there_before  # a hidden leftover
    assert content(path) == "old" if there_before else not path.exists()
    write(path, kind, "new")
    assert list(tmp_path.iterdir()) == [path] and content(path) == "new"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_error_changes_nothing(tmp_path: Path, kind: str) -> None:
    """The old content stays, and nothing is left beside it."""
    path = tmp_path / "x"
    write(path, kind, "old")
    with pytest.raises(OSError, match="disk"), (whole_file if kind == "file" else whole_folder)(path) as temporary:
        (temporary if kind == "file" else temporary / "content").write_text("half")
        raise OSError("disk full")
    assert content(path) == "old" and list(tmp_path.iterdir()) == [path]


def write_often(path: Path, kind: str, letter: str) -> None:
    """One of several writers at a time, each with a letter of its own."""
    for _ in range(ROUNDS):
        write(path, kind, letter * LENGTH)


@pytest.mark.slow
def test_several_writers_leave_one_whole(tmp_path: Path) -> None:
    """Of processes that write one path at a time one wins, whole, and nothing is left of the others."""
    with ProcessPoolExecutor(WRITERS, mp_context=get_context("spawn")) as pool:
        for kind in ("file", "folder"):
            path = tmp_path / kind
            for done in [pool.submit(write_often, path, kind, letter) for letter in "abcd"[:WRITERS]]:
                done.result()
            assert content(path) in {letter * LENGTH for letter in "abcd"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    """A second writer does not remove what the first is still writing; the last to end wins."""
    path = tmp_path / "x"
    with whole_file(path) as first:
        first.write_text("first")
        write_text(path, "second")
        assert first.exists() and content(path) == "second"
    assert content(path) == "first"


def test_what_a_writer_of_another_machine_left_is_not_judged(tmp_path: Path) -> None:
    """Containers and machines may share a host's name; a process that is none here may be one there."""
    dead = 2**22 + 1
    namespace, name = os.stat("/proc/self/ns/pid").st_ino, socket.gethostname()
    ours, *theirs = (tmp_path / f".x.{who}-{dead}-00ff.tmp" for who in (_HERE, f"{name}-1", f"{name}-{namespace}"))
    for leftover in (ours, *theirs):
        leftover.touch()
    write_text(tmp_path / "x", "new")
    assert not ours.exists() and all(leftover.exists() for leftover in theirs)


def test_machines_of_one_name_have_temporary_names_of_their_own(tmp_path: Path) -> None:
    """All machines number their processes in a namespace of one name: the boot tells them apart, as leases do."""
    boot = tmp_path / "boot_id"
    boot.write_text("another boot\n")
    show = f"{sys.executable} -c 'from lingu_ray.atomic import _HERE; print(_HERE)'"
    script = f"mount --bind {boot} /proc/sys/kernel/random/boot_id && {show}"
    there = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    if there.returncode:
        pytest.skip(f"no user namespaces: {there.stderr}")
    assert there.stdout.strip() != _HERE


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Lustre answers where it is mounted so."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    told = r"cannot be locked: Function not implemented. Put its folder on"
    with pytest.raises(UserError, match=told), locked(tmp_path / "lock"):
        raise AssertionError


def test_an_equal_folder_may_stay(tmp_path: Path) -> None:
    """With `keep_existing` the folder that was there first stays; a reader who has it open loses nothing."""
    path = tmp_path / "x"
    with whole_folder(path, keep_existing=True) as second:
        (second / "content").write_text("second")
        write(path, "folder", "first")
    assert content(path) == "first" and list(tmp_path.iterdir()) == [path]


def test_parents_are_made_and_json_is_readable(tmp_path: Path) -> None:
    """A file in a folder that does not exist yet; permissions are those of any new file."""
    path = tmp_path / "a" / "b.json"
    write_json(path, {"x": [1, 2]})
    assert json.loads(path.read_text()) == {"x": [1, 2]} and path.read_text().endswith("}\n")
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    """A command's new folder may be an empty one; what a user has there is never written over."""
    require_new_folder(tmp_path)
    require_new_folder(tmp_path / "new")
    (tmp_path / "weights.gguf").touch()
    for there in (tmp_path, tmp_path / "weights.gguf"):
        with pytest.raises(UserError, match=f"{there} exists; name another folder"):
            require_new_folder(there)


def test_a_folder_that_nothing_can_take_the_place_of_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty volume of a container, which no folder can be renamed to, and the folder that the command is run in."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path} cannot be replaced, since something is run in it: name a folder"):
        require_new_folder(tmp_path)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    require_new_folder(mounted)
    code = "import sys; from lingu_ray.atomic import *; print(1); require_new_folder(Path(sys.argv[1]))"
    script = f"mount -t tmpfs none {mounted} && exec {sys.executable} -c '{code}' {mounted}"
    done = subprocess.run(["unshare", "--map-root-user", "--mount", "sh", "-c", script], capture_output=True, text=True)
    if not done.stdout:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    assert f"UserError: {mounted} cannot be replaced, since something is mounted there: name a folder" in done.stderr


def test_a_file_that_may_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    """Trying to write it leaves nothing beside it, and makes its folder."""
    write_json(tmp_path / "new" / "a.json", 1)
    require_writable(tmp_path / "new" / "a.json", "out")
    require_writable(tmp_path / "newer" / "b.json", "out")
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["new", "a.json", "newer"]


def test_no_page_takes_the_place_of_settings_or_data(tmp_path: Path) -> None:
    """`out=my.yaml` by mistake: a file that no command writes is left, and told before anything is read."""
    for name in ("my.yaml", "rows.jsonl", "README"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(UserError, match=f"out: .*{name} is there, and not of this command; name another one"):
            require_writable(tmp_path / name, "out")
        assert (tmp_path / name).read_text() == "mine"


def renames(path: Path) -> Iterator[str]:
    """Calls in a source file that give a file another name: `x.rename(y)`, `x.replace(y)`, `os.…`, `shutil.move`."""
    text = path.read_text(encoding="utf-8")
    if not any(name in text for name in ("rename", ".replace", "move")):  # most: parsing takes long
        return
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        of_path = node.func.attr == "replace" and len(node.args) == 1 and not node.keywords  # strings take two
        module = node.func.value.id if isinstance(node.func.value, ast.Name) else None
        of_module = (module, node.func.attr) in {("os", "replace"), ("os", "renames"), ("shutil", "move")}
        if node.func.attr == "rename" or of_path or of_module:
            yield f"{path}:{node.lineno}"


def test_no_other_code_renames() -> None:
    """Nothing else in the sources writes and renames by itself."""
    root = Path(lingu_ray.__file__).parents[1]
    sources = [path for part in ("lingu_ray", "tuning") for path in (root / part).rglob("*.py")]
    assert len(sources) > 100 and os.path.samefile(root / "lingu_ray", Path(lingu_ray.__file__).parent)
    found = {path: list(renames(path)) for path in sources}
    assert len(found.pop(root / "lingu_ray" / "atomic.py")) == 4
    assert [place for places in found.values() for place in places] == []


@pytest.mark.parametrize("there_before", [True, False])
def test_a_folder_behind_a_link_is_written(tmp_path: Path, there_before: bool) -> None:
    """A link to an empty folder, or to none, is a new folder: what it names is written, and the link stays."""
    link, named = tmp_path / "link", tmp_path / "elsewhere" / "named"
    link.symlink_to(named)
    if there_before:
        named.mkdir(parents=True)
    require_new_folder(link)
    write(link, "folder", "new")
    assert link.is_symlink() and content(named) == "new" and list(named.parent.iterdir()) == [named]
    with pytest.raises(UserError, match="exists"):
        require_new_folder(link)


@pytest.mark.parametrize("is_file", [True, False])
def test_a_new_folder_that_cannot_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_file: bool
) -> None:
    """Below a file, or where nothing may be written: before there is anything to write."""
    if is_file:
        (tmp_path / "above").write_text("a file")
    else:
        (tmp_path / "above").mkdir()
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=f"{tmp_path / 'above'} is no folder that may be written to"):
        require_new_folder(tmp_path / "above" / "more" / "new")
