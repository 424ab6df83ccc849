"""Chat templates: programs that strangers wrote, rendered in limited time and memory.

A template can loop for hours or make a text of gigabytes, which Jinja's sandbox allows.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxllm.errors import UserError

WORKER = Path(__file__).with_name("template_worker.py")
SECONDS = 4  # of CPU time
WAIT_SECONDS = 60.0  # on a machine that is busy with other things
BYTES = 400 << 20  # of memory
MOST_ADDED = 1_000_000  # characters of the text beyond TIMES as many as the variables have
TIMES = 10


def render_template(template: str, variables: Mapping[str, Any]) -> str:
    """Returns the text of a Jinja template, which a process of its own makes in a sandbox.

    Args:
        template: the template.
        variables: plain data.

    Raises:
        UserError: it fails, or takes too much time or memory; the message has no path.
    """
    given = json.dumps(dict(variables))
    limits = {"seconds": SECONDS, "bytes": BYTES, "characters": MOST_ADDED + TIMES * len(given)}
    request = json.dumps({"template": template, "variables": variables, **limits})
    try:
        done = subprocess.run(
            [sys.executable, "-P", WORKER],
            input=request,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=WAIT_SECONDS,
            check=True,
            text=True,
        )
        answer = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError):  # it was ended, also in mid-answer
        raise UserError(
            f"it does not end within {SECONDS} s of CPU time and {BYTES >> 20} MiB of memory"
        ) from None
    if "error" in answer:
        raise UserError(answer["error"])
    return str(answer["text"])
