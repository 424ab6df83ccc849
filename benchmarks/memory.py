"""Measures the peak memory that a function needs in addition to what the process already uses."""

import threading
import time
from collections.abc import Callable


def peak_above(run: Callable[[], object]) -> float:
    """Returns the peak anonymous memory during `run` minus that before it, in MiB."""
    before = peak = _anonymous()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, _anonymous())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return peak - before


def _anonymous() -> float:
    """Returns the resident memory, without file-backed pages, in MiB."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
