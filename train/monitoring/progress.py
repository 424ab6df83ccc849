"""Progress of a run: a live line on a terminal, otherwise plain lines."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic
from typing import Self, TextIO

import rich.progress
from rich.console import Console


class Progress:
    """Progress of a run: a live line on a terminal, otherwise a line every `log_every` steps.

    The speed is the mean of the last 1000 steps. It counts neither the first step of this process,
    which includes compilation, nor the time spent `paused`.

    Args:
        steps: the steps of the whole run.
        start: the step that a resumed run starts from.
        tokens_per_step: for the speed in tokens per second.
        mfu_of: returns the model FLOPs utilization at a speed in steps per second, if it is known.
        log_every: steps between lines if `stream` is not a terminal.
        stream: where to write; by default stderr.
    """

    def __init__(
        self,
        steps: int,
        *,
        start: int = 0,
        tokens_per_step: int,
        mfu_of: Callable[[float], float | None] = lambda _: None,
        log_every: int = 10,
        stream: TextIO | None = None,
    ):
        self._paused = 0.0  # seconds
        self._pause_began: float | None = None
        self._stream = sys.stderr if stream is None else stream
        self._steps, self._tokens, self._every = steps, tokens_per_step, log_every
        self._mfu_of = mfu_of
        self._held_out = ""  # the last held-out loss, for the live line
        console = Console(file=self._stream)
        # The display also measures the speed for plain lines, for which it is never started.
        is_capable = console.is_terminal and not console.is_dumb_terminal
        self._live = self._stream.isatty() and is_capable
        self._display = rich.progress.Progress(
            "step {task.completed}/{task.total}",
            rich.progress.BarColumn(),
            "{task.description}",
            rich.progress.TimeRemainingColumn(),
            console=console,
            get_time=self._time,
            # By default rich forgets steps after 30 s, and has no speed if they take longer.
            speed_estimate_period=math.inf,
        )
        self._task = self._display.add_task("", total=steps, completed=start)

    def update(self, step: int, loss: float) -> None:
        """Reports that `step` steps are complete, and the loss per target of the last one."""
        self._display.update(self._task, completed=step)
        task = self._display.tasks[0]
        speed = ""
        if task.speed is not None:
            mfu = self._mfu_of(task.speed)
            speed = f"  {task.speed * self._tokens:,.0f} tokens/s"
            speed += "" if mfu is None else f"  MFU {mfu:.1%}"
        text = f"loss {loss:.4f}{speed}"
        if self._live:
            shown = f"loss {loss:.4f}{self._held_out}{speed}"
            self._display.update(self._task, description=shown)
        elif step % self._every == 0 or step == self._steps:
            seconds = task.time_remaining
            left = "" if not seconds else f"  {timedelta(seconds=round(seconds))} left"
            self._stream.write(f"step {step}/{self._steps}  {text}{left}\n")
            self._stream.flush()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count the time inside, as of an evaluation, for the speed."""
        self._pause_began = monotonic()
        try:
            yield
        finally:
            self._paused += monotonic() - self._pause_began
            self._pause_began = None

    def _time(self) -> float:
        """The clock of the speed, which stands still while paused."""
        began = self._pause_began
        return (monotonic() if began is None else began) - self._paused

    def held_out(self, step: int, loss: float) -> None:
        """Reports the loss per held-out target after `step` steps, on a line of its own."""
        self._held_out = f"  held out {loss:.4f}"
        self.say(f"step {step}/{self._steps}  held-out loss {loss:.4f}")

    def say(self, line: str) -> None:
        """Prints a line, above the live one."""
        if self._live:
            self._display.console.print(line, highlight=False)
        else:
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def show(self, text: str) -> None:
        """Shows what is being done until the next step: on the live line, or as a line."""
        if self._live:
            self._display.update(self._task, description=text)
        else:
            self.say(text)

    def __enter__(self) -> Self:
        if self._live:
            self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:  # otherwise rich would print an empty line
            self._display.stop()
