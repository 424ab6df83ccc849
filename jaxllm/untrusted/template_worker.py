"""`python template_worker.py`: renders a chat template in a process of its own, with limits.

Reads a JSON object with the template, its variables and the limits from stdin, and writes one with
the text or the error to stdout. It imports nothing of jaxllm, which would take longer than most
templates.
"""

import contextlib
import datetime
import json
import resource
import sys
from typing import Any


def render(template: str, variables: dict[str, Any]) -> str:
    """Renders a template in Jinja's sandbox: it can compute texts, and nothing else."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def fail(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _generation_block()],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = fail
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template).render(variables)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """The filter `tojson` of chat templates: unlike Jinja's own, it escapes nothing for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _generation_block() -> type:
    """Returns the Jinja extension of `{% generation %}`, which marks what a model has written."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 # the base class declares it so

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    return Generation


def _limit(kind: int, most: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # a lower limit, or a system without this one
        resource.setrlimit(kind, (most, most))


def main() -> None:
    """Answers one request."""
    request = json.load(sys.stdin)
    _limit(resource.RLIMIT_AS, request["bytes"])
    _limit(resource.RLIMIT_CPU, request["seconds"])
    try:
        text = render(request["template"], request["variables"])
        answer = {"text": text} if len(text) <= request["characters"] else {"error": "too long"}
    except MemoryError:
        answer = {"error": "it needs too much memory"}
    except Exception as error:  # a template may fail with any error of Python
        answer = {"error": str(error) or type(error).__name__}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
