"""What is done, how far, how long still: the log lines of an experiment."""

import logging
import time


class Progress:
    """Logs steps of a known number at most every `every_s` seconds, and the last one."""

    def __init__(self, log: logging.Logger, total: int, every_s: float = 5.0):
        self.log, self.total, self.every_s = log, total, every_s
        self.done = 0
        self.began = self.said = time.perf_counter()

    def step(self, what: str) -> None:
        """One more step is done; `what` names it."""
        self.done += 1
        now = time.perf_counter()
        if now - self.said >= self.every_s or self.done == self.total:
            self.said = now
            left = (now - self.began) / self.done * (self.total - self.done)
            self.log.info("%d of %d: %s, about %.0f s left", self.done, self.total, what, left)
