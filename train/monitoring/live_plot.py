"""The loss plot of a run, redrawn while it trains, in a thread and seldom enough to cost little."""

import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

LEAST_S = 30.0  # between two drawings
MOST_SHARE = 0.02  # of the time; long runs take longer to draw


class LivePlot:
    """Calls `draw` now and then while a run trains, and once more when it ends.

    Args:
        draw: reads the metrics and writes the file; raises UserError if there is no loss yet.
    """

    def __init__(self, draw: Callable[[], None]):
        self._draw = draw
        self._thread: threading.Thread | None = None
        self._due = monotonic() + LEAST_S

    def update(self) -> None:
        """Begins a drawing if one is due and none is in progress."""
        if monotonic() < self._due or (self._thread is not None and self._thread.is_alive()):
            return
        self._thread = threading.Thread(target=self._redraw, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Draws the whole run, after a drawing that is in progress."""
        if self._thread is not None:
            self._thread.join()
        self._draw()

    def _redraw(self) -> None:
        began = monotonic()
        with suppress(Exception):  # whatever is wrong, the last drawing says so
            self._draw()
        ended = monotonic()
        self._due = ended + max(LEAST_S, (ended - began) / MOST_SHARE)
