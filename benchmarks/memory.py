"""How much memory a program takes beyond what was there before it."""

import threading
import time
from collections.abc import Callable


def peak_above(run: Callable[[], object]) -> float:
    """The most anonymous memory, in MiB, that this process has while `run` runs, above before."""
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
    """Resident memory in MiB that is no page of a file."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
