"""Parts of a process's time: exclusive, complete, and only of the watched thread."""

import subprocess
import sys
import textwrap
import threading
import time

import pytest

from ember.measure import overhead


@pytest.fixture
def clock(monkeypatch):
    fresh = overhead._Clock()
    monkeypatch.setattr(overhead, "_clock", fresh)
    return fresh


def spin(seconds):
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def test_a_part_inside_another_counts_once(clock):
    began = time.perf_counter()
    with overhead.part("outer"):
        spin(0.02)
        with overhead.part("inner"):
            spin(0.03)
        spin(0.02)
    whole = time.perf_counter() - began
    parts = overhead.seconds()
    assert parts["inner"] >= 0.03
    assert parts["outer"] >= 0.04
    assert parts["outer"] + parts["inner"] <= whole


def test_a_part_ends_with_an_error_too(clock):
    with pytest.raises(ValueError, match="stop"), overhead.part("failed"):
        raise ValueError("stop")
    before = overhead.seconds()["failed"]
    spin(0.01)
    assert overhead.seconds()["failed"] == before


def test_other_threads_are_not_watched(clock):
    def beside():
        with overhead.part("beside"):
            spin(0.01)

    thread = threading.Thread(target=beside)
    thread.start()
    thread.join()
    assert "beside" not in overhead.seconds()


def test_imports_are_timed_once_and_apart_from_the_part_around_them(tmp_path):
    (tmp_path / "slow_one.py").write_text("import time\nimport slow_two\ntime.sleep(0.05)\n")
    (tmp_path / "slow_two.py").write_text("import time\ntime.sleep(0.05)\n")
    script = """
        import time
        from ember.measure import overhead
        overhead.watch_imports()
        overhead.watch_imports()
        began = time.perf_counter()
        with overhead.part("model_load"):
            import slow_one
        print(overhead.seconds()["imports"], overhead.seconds().get("model_load", 0.0),
              time.perf_counter() - began, overhead.process_age_s())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    imports, load, whole, age = map(float, done.stdout.split())
    assert 0.1 <= imports <= whole
    assert load <= whole - imports
    assert age >= whole - 0.02
