"""Products are complete or absent, and the last complete one stays."""

import errno
import json
import os
import subprocess
import sys

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
