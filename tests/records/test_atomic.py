"""Products are complete or absent, and the last complete one stays."""

import errno
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ember.records.atomic import atomic_dir, atomic_file, write_json, write_text
from ember.records.errors import CannotWrite


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "deep" / "a.png"
    with atomic_file(path) as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == path.parent
        temporary.write_bytes(b"x")
        assert not path.exists()
    assert path.read_bytes() == b"x"
    assert names(path.parent) == ["a.png"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_keeps_what_was_there(tmp_path, error):
    path = write_text(tmp_path / "a.txt", "old")

    def fail():
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_directory_replaces_the_old_one_whole(tmp_path):
    path = tmp_path / "model"
    for content in ("one", "two"):
        with atomic_dir(path) as temporary:
            (temporary / content).write_text(content)
            (temporary / "sub").mkdir()
            (temporary / "sub" / "file").write_text(content)
    assert names(path) == ["sub", "two"]
    assert (path / "sub" / "file").read_text() == "two"
    assert names(tmp_path) == ["model"]


def test_a_failed_directory_keeps_what_was_there(tmp_path):
    path = tmp_path / "model"
    with atomic_dir(path) as temporary:
        (temporary / "weights").write_text("good")

    def fail():
        with atomic_dir(path) as temporary:
            (temporary / "weights").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (path / "weights").read_text() == "good"
    assert names(tmp_path) == ["model"]


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from ember.records.atomic import atomic_dir, atomic_file\n"
        "with atomic_file(sys.argv[1]) as file, atomic_dir(sys.argv[2]) as folder:\n"
        "    file.write_text('half')\n"
        "    (folder / 'weights').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    file, folder = tmp_path / "a.txt", tmp_path / "model"
    killed = subprocess.run([sys.executable, "-c", script, str(file), str(folder)], check=False)
    assert killed.returncode == -9
    assert not file.exists()
    assert not folder.exists()
    assert len(names(tmp_path)) == 2
    write_text(file, "whole")
    with atomic_dir(folder) as temporary:
        (temporary / "weights").write_text("whole")
    assert names(tmp_path) == ["a.txt", "model"]


def test_writers_at_work_are_left_alone(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_file(path) as first:
        first.write_text("first")
        with atomic_file(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match=r"cannot write .*file/a\.txt") as caught:
        write_text(tmp_path / "file" / "a.txt", "x")
    assert "permissions" in str(caught.value)


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write():
        with atomic_file("a.txt"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CannotWrite, match=r"cannot write a\.txt: No space left"):
        write()


def test_a_missing_input_is_not_blamed_on_the_output(tmp_path):
    def write():
        with atomic_file(tmp_path / "a.txt"):
            (tmp_path / "input.txt").read_text()

    with pytest.raises(FileNotFoundError, match=r"input\.txt"):
        write()
    assert names(tmp_path) == []


def test_json(tmp_path):
    assert json.loads(write_json(tmp_path / "a.json", {"a": [1, "ä"]}).read_text()) == {
        "a": [1, "ä"]
    }
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"a": float("nan")})
    assert names(tmp_path) == ["a.json"]


# What stands there already


@pytest.fixture(params=["device", "pipe", "socket", "directory", "link to a device", "loop"])
def odd(request, tmp_path, monkeypatch):
    """Something that is no regular file, and how to see that it is still there."""
    path, device = tmp_path / "odd", Path("/dev/null")
    if os.geteuid() == 0:  # who could destroy the machine's own gets one to try it on
        device = tmp_path / "null"
        os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    if request.param == "device":
        path = device
    elif request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "socket":
        monkeypatch.chdir(tmp_path)  # the name of a socket is short
        socket.socket(socket.AF_UNIX).bind("odd")
    elif request.param == "directory":
        path.mkdir()
    else:
        path.symlink_to(device if request.param == "link to a device" else path)
    return path


def test_what_is_no_regular_file_is_refused_and_stays(odd):
    before = odd.lstat()
    with pytest.raises(CannotWrite, match="cannot write") as caught:
        write_text(odd, "x")
    assert "give another path" in str(caught.value)
    after = odd.lstat()
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)
    assert [p for p in odd.parent.iterdir() if ".tmp" in p.name] == []


def test_a_directory_product_takes_no_files_place(tmp_path):
    (tmp_path / "file").write_text("kept")
    with (
        pytest.raises(CannotWrite, match="it is a file, not a directory"),
        atomic_dir(tmp_path / "file"),
    ):
        pass
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_file_is_written(tmp_path, there):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far/target", tmp_path / "link.txt"
    if there:
        target.write_text("old")
    link.symlink_to("far/target")
    with atomic_file(link) as temporary:
        assert temporary.suffix == link.suffix, "writers of figures go by the ending"
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["far", "link.txt", "target"]


def test_a_link_to_a_directory_product_stays(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far")
    with atomic_dir(tmp_path / "link") as folder:
        (folder / "weights").write_text("w")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far/weights").read_text() == "w"
