"""The plot that is redrawn while a run trains: seldom, one at a time, and once at the end."""

import threading

import pytest

from jaxllm.errors import UserError
from jaxllm.train.monitoring import live_plot
from jaxllm.train.monitoring.live_plot import LEAST_S, LivePlot


def test_drawings_are_rare_and_never_two_at_a_time(monkeypatch):
    now, drawn, may_end = 0.0, [], threading.Event()
    monkeypatch.setattr(live_plot, "monotonic", lambda: now)

    def draw() -> None:
        drawn.append(now)
        may_end.wait(10)

    plot = LivePlot(draw)
    plot.update()
    assert drawn == []
    now = LEAST_S
    plot.update()
    now = 3 * LEAST_S
    plot.update()  # the first is not done
    may_end.set()
    plot._thread.join()
    plot.update()  # it took 60 s, so the next is due after 50 times as long
    assert drawn == [LEAST_S]
    now = 3 * LEAST_S + 50 * 60
    plot.update()
    plot.close()
    assert drawn == [LEAST_S, now, now]


@pytest.mark.parametrize("error", [UserError("no loss yet"), RuntimeError("of the font")])
def test_an_error_while_training_does_not_end_the_run_and_is_not_repeated_at_each_step(error):
    drawn = []

    def draw() -> None:
        drawn.append(True)
        raise error

    plot = LivePlot(draw)
    plot._due = 0.0
    plot.update()
    plot._thread.join()
    plot.update()
    plot._thread.join()
    assert drawn == [True]
    with pytest.raises(type(error)):
        plot.close()
