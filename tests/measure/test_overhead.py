"""Parts of a process's time: exclusive, and only of the main thread."""

import subprocess
import sys
import textwrap
import threading
import time

import pytest

from ember.measure import overhead


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(overhead, "_total", {})


def spin(seconds):
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def test_a_part_inside_another_counts_for_the_outer_one(clock):
    began = time.perf_counter()
    with overhead.part("outer"):
        spin(0.02)
        with overhead.part("inner"):
            spin(0.03)
    spin(0.01)
    whole = time.perf_counter() - began
    with overhead.part("outer"):
        spin(0.02)
    parts = overhead.seconds()
    assert set(parts) == {"outer"}
    assert 0.07 <= parts["outer"] <= whole + 0.02 + 0.02


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


def test_a_process_knows_its_age():
    code = """
        import time
        began = time.perf_counter()
        from ember.measure.overhead import process_age_s
        time.sleep(0.05)
        print(process_age_s(), time.perf_counter() - began)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    age, whole = map(float, done.stdout.split())
    assert age >= whole - 0.02
