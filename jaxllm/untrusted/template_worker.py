"""`python template_worker.py`: renders a chat template in a process of its own, with limits.

Reads JSON objects from stdin, one a line: first the template and the limits, then the variables of
each rendering. Writes one line for each with the text and the spans that `{% generation %}` marks,
or the error. It imports nothing of jaxllm, which would take longer than most templates.
"""

import contextlib
import datetime
import json
import resource
import sys
from collections.abc import Callable
from typing import Any

Rendered = tuple[str, list[tuple[int, int]]]  # the text, and the spans that a model has written


def compile_template(template: str) -> Callable[[dict[str, Any]], Rendered]:
    """Compiles a template in Jinja's sandbox: it can compute texts, and nothing else."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def fail(message: str) -> None:
        raise jinja2.TemplateError(message)

    length = 0  # of the text so far
    spans: list[tuple[int, int]] = []

    def mark(text: str) -> str:
        if text:
            spans.append((length, length + len(text)))
        return text

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _generation_block(mark)],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = fail
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    compiled = environment.from_string(template)

    def render(variables: dict[str, Any]) -> Rendered:
        nonlocal length
        length, pieces = 0, []
        spans.clear()
        for piece in compiled.generate(variables):
            pieces.append(piece)
            length += len(piece)
        return "".join(pieces), list(spans)

    return render


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """The filter `tojson` of chat templates: unlike Jinja's own, it escapes nothing for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _generation_block(mark: Callable[[str], str]) -> type:
    """Returns the Jinja extension of `{% generation %}`, which marks what a model has written."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 # the base class declares it so

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_mark")
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _mark(self, caller: Callable[[], str]) -> str:
            return mark(caller())

    return Generation


def _limit(kind: int, most: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # a lower limit, or a system without this one
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (most, hard))


def main() -> None:
    """Answers requests until stdin ends."""
    first = json.loads(sys.stdin.readline())
    _limit(resource.RLIMIT_AS, first["bytes"])
    render = None
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + first["seconds"])
        try:
            render = render or compile_template(first["template"])
            text, spans = render(json.loads(line))
            is_short = len(text) <= first["added"] + first["times"] * len(line)
            answer = {"text": text, "spans": spans} if is_short else {"error": "too long"}
        except MemoryError:
            answer = {"error": "it needs too much memory"}
        except Exception as error:  # a template may fail with any error of Python
            answer = {"error": str(error) or type(error).__name__}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
