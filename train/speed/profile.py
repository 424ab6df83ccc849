"""Profiles: a trace of chosen steps, which xprof, TensorBoard and Perfetto open."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax


class Profile:
    """Traces the steps of a range, in a context; process 0 writes.

    Args:
        steps: the numbers of the steps to trace.
        folder: receives `plugins/profile/TIME/`.
    """

    def __init__(self, steps: range, folder: Path):
        self._steps = steps if jax.process_index() == 0 else range(0)
        self._folder = folder
        self._is_tracing = False

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Context of the dispatch of a step, which it names in the trace."""
        if number in self._steps and not self._is_tracing:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=False)
            self._is_tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def finish(self, number: int, result: Any) -> None:
        """Ends the trace after its last step, when the result of the step is computed."""
        if self._is_tracing and number >= self._steps[-1]:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends a trace that is open, as when a run is interrupted."""
        if self._is_tracing:
            self._is_tracing = False
            jax.profiler.stop_trace()

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
