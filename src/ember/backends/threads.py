"""How many of torch's threads a step is fastest with, by trying."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

import torch

log = logging.getLogger(__name__)

WORTH_THREADS = 1.2  # times as fast as one thread that more of them must be
TURNS = 4
ENOUGH_S = 1.0  # of trying: long steps are disturbed less, and two turns of them are enough


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
    """torch's number of threads where they are `WORTH_THREADS` times as fast as one, 1 otherwise.

    They must be clearly faster: small matrices gain little from a second core, and lose all and
    more whenever another process wants it. Both take turns, and the least of their times counts: a
    short disturbance of either must not decide.
    """
    all_threads = torch.get_num_threads()
    if all_threads == 1:
        return 1
    seconds = {all_threads: [], 1: []}
    start = time.perf_counter()
    with restored_threads():
        for turn in range(TURNS):
            if turn >= 2 and time.perf_counter() - start > ENOUGH_S:
                break
            for threads, times in seconds.items():
                torch.set_num_threads(threads)
                for _ in range(2):
                    began = time.perf_counter()
                    step()
                    times.append(time.perf_counter() - began)
    least = {threads: min(times) for threads, times in seconds.items()}
    log.debug("seconds of a decoding step by threads: %s", least)
    return all_threads if least[1] > WORTH_THREADS * least[all_threads] else 1


def use_threads(number: int) -> None:
    """Sets torch's threads."""
    if torch.get_num_threads() != number:  # setting them costs more than asking
        torch.set_num_threads(number)
