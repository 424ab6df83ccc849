"""Progress of a run: plain lines, the live line, and the speed that they show."""

import io
from datetime import timedelta

import pytest

from jaxllm.train.monitoring import progress as module
from jaxllm.train.monitoring.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run_progress(stream, steps=range(1, 31), **options):
    with Progress(30, tokens_per_step=512, stream=stream, **options) as progress:
        for step in steps:
            progress.update(step, 5 / step)
    return stream.getvalue()


def test_progress_off_a_terminal_is_plain_lines(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = run_progress(io.StringIO(), steps=range(1, 31), log_every=20)
    first, last = text.splitlines()
    assert first.startswith("step 20/30  loss 0.2500  ")
    assert last.startswith("step 30/30  loss 0.1667  ")
    assert "tokens/s" in last
    assert all(character.isprintable() or character == "\n" for character in text)


def test_speed_and_remaining_time_follow_the_clock():
    stream = io.StringIO()
    progress = Progress(30, start=10, tokens_per_step=512, log_every=5, stream=stream)
    clock = iter(range(0, 100, 2))
    progress._display.get_time = lambda: next(clock)
    for step in range(11, 16):
        progress.update(step, 1.0)
    assert stream.getvalue() == "step 15/30  loss 1.0000  256 tokens/s  0:00:30 left\n"


@pytest.mark.parametrize("start", [0, 10])
def test_speed_counts_neither_compilation_nor_the_steps_before_a_resume(start):
    """Also if a step takes longer than the 30 s that rich remembers by default."""
    stream = io.StringIO()
    progress = Progress(30, start=start, tokens_per_step=600, log_every=1, stream=stream)
    clock = iter([1000, 1060, 1120])  # the first step ends at 1000
    progress._display.get_time = lambda: next(clock)
    for step in range(start + 1, start + 4):
        progress.update(step, 1.0)
    first, *others = [line.partition("  loss 1.0000")[2] for line in stream.getvalue().splitlines()]
    assert first == ""
    left = [timedelta(minutes=30 - start - done) for done in (2, 3)]
    assert others == [f"  10 tokens/s  {time} left" for time in left]


def test_speed_does_not_count_pauses(monkeypatch):
    """As for the evaluation after the last step, which a resumed run compiles there."""
    stream, now = io.StringIO(), 0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    progress = Progress(30, tokens_per_step=600, log_every=1, stream=stream)
    for step in (1, 2, 3):
        now += 10
        progress.update(step, 1.0)
        with progress.paused():
            now += 1000
            progress.held_out(step, 1.0)
    speeds = [line for line in stream.getvalue().splitlines() if "tokens/s" in line]
    assert ["60 tokens/s" in line for line in speeds] == [True, True]


def test_the_held_out_loss_is_a_line_of_its_own(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    for stream in (io.StringIO(), Terminal()):
        with Progress(30, tokens_per_step=512, stream=stream) as progress:
            progress.update(10, 0.5)
            progress.held_out(10, 0.25)
        assert "step 10/30  held-out loss 0.2500" in stream.getvalue()


def test_progress_on_a_terminal_rewrites_one_line(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    text = run_progress(Terminal())
    assert "\x1b[" in text
    assert "30/30" in text
    assert "loss 0.1667" in text


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in run_progress(Terminal())
