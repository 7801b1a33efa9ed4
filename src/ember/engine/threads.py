"""How many of torch's threads a step is fastest with, by trying."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

import torch

log = logging.getLogger(__name__)

WORTH_THREADS = 1.5  # times as fast as one thread that more of them must be


@contextlib.contextmanager
def restored_threads() -> Iterator[None]:
    """A block after which torch has as many threads as before."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def fastest_threads(step: Callable[[], object]) -> int:
    """torch's number of threads where they pay, 1 otherwise.

    They must be clearly faster: small matrices gain little from a second core, and lose all and
    more whenever another process wants it.
    """
    seconds = {}
    with restored_threads():
        for threads in (torch.get_num_threads(), 1):
            torch.set_num_threads(threads)
            times = []
            for _ in range(4):
                began = time.perf_counter()
                step()
                times.append(time.perf_counter() - began)
            seconds[threads] = sorted(times)[1]
    log.debug("seconds of a decoding step by threads: %s", seconds)
    fastest = min(seconds, key=seconds.get)
    return fastest if seconds[1] > WORTH_THREADS * seconds[fastest] else 1
