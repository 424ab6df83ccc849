"""Chat templates: programs that strangers wrote, rendered in limited time and memory.

A template can loop for hours or make a text of gigabytes, which Jinja's sandbox allows.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from jaxllm.errors import UserError

WORKER = Path(__file__).with_name("template_worker.py")
SECONDS = 4  # of CPU time, for each text
WAIT_SECONDS = 60.0  # on a machine that is busy with other things
BYTES = 400 << 20  # of memory
MOST_ADDED = 1_000_000  # characters of the text beyond TIMES as many as the variables have
TIMES = 10


class Rendered(NamedTuple):
    """A text that a template made, and the spans that `{% generation %}` marks in it."""

    text: str
    spans: list[tuple[int, int]]  # characters, half-open


class TemplateRenderer:
    """Renders one Jinja template, in a sandbox in a process of its own.

    The process begins with the first text, and again after one that had to be stopped. It ends with
    the context, or with `close`.
    """

    def __init__(self, template: str):
        self._template = template
        self._process: subprocess.Popen[str] | None = None

    def render(self, variables: Mapping[str, Any]) -> Rendered:
        """Returns the text for `variables`, which are plain data.

        Raises UserError if the template fails, or takes too much time or memory; the message has no
        path.
        """
        process = self._process or self._start()
        watch = threading.Timer(WAIT_SECONDS, process.kill)
        watch.start()
        assert process.stdin is not None, "opened as pipes"
        assert process.stdout is not None, "opened as pipes"
        try:
            process.stdin.write(json.dumps(dict(variables)) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
        except (OSError, ValueError):  # it was ended, also in mid-answer
            self.close()
            raise UserError(
                f"it does not end within {SECONDS} s of CPU time and {BYTES >> 20} MiB of memory"
            ) from None
        finally:
            watch.cancel()
        if "error" in answer:
            raise UserError(answer["error"])
        return Rendered(str(answer["text"]), [(first, end) for first, end in answer["spans"]])

    def _start(self) -> subprocess.Popen[str]:
        self._process = process = subprocess.Popen(
            [sys.executable, "-P", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        limits = {"seconds": SECONDS, "bytes": BYTES, "added": MOST_ADDED, "times": TIMES}
        assert process.stdin is not None, "opened as a pipe"
        with suppress(OSError):  # the answer to the first text says so
            process.stdin.write(json.dumps({"template": self._template, **limits}) + "\n")
        return process

    def close(self) -> None:
        """Ends the process."""
        if self._process is None:
            return
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # what was written and not read
                assert pipe is not None, "opened as pipes"
                pipe.close()
        self._process.wait()
        self._process = None

    def __enter__(self) -> "TemplateRenderer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def render_template(template: str, variables: Mapping[str, Any]) -> str:
    """Returns the text of a Jinja template; see `TemplateRenderer`."""
    with TemplateRenderer(template) as renderer:
        return renderer.render(variables).text
