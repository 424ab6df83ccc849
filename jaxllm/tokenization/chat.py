"""Chat templates: a conversation as the text that a chat model was trained on."""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllm.errors import UserError
from jaxllm.hub import local_path

from .gguf_companions import companion_folder
from .special_tokens import TOKENIZER_CONFIG, named_texts, read_json

TEMPLATE = "chat_template.jinja"
MOST_CHARACTERS = 1_000_000  # of a template


def render_chat(path: str | Path, messages: Sequence[Mapping[str, str]]) -> str:
    """Applies the chat template of a model to messages; the model's answer comes next.

    Templates run in Jinja's sandbox: they can compute texts, and nothing else.

    Args:
        path: a folder that has a tokenizer with a chat template, or a GGUF file.
        messages: with a `role`, such as "user", and a `content`.

    Returns:
        A text whose special tokens are meant as such: encode it as trusted, without adding more.

    Raises:
        UserError: there is no template, or it fails.
        MissingPackageError: a package that reads the GGUF file is not installed.
    """
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    folder = companion_folder(local_path(path))
    template = _find_template(folder)

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
    special = {f"{role}_token": text for role, text in named_texts(folder).items()}
    given = [dict(message) for message in messages]
    try:
        return environment.from_string(template).render(
            messages=given, tools=None, documents=None, add_generation_prompt=True, **special
        )
    except Exception as error:  # a template may fail with any error of Python
        raise UserError(f"{path}: the chat template fails: {error}") from None


def _find_template(folder: Path) -> str:
    """Returns the template of a folder; of several in its config, the one named default."""
    file = folder / TEMPLATE
    if file.is_file():
        given: Any = file.read_text(encoding="utf-8")
    else:
        given = read_json(folder / TOKENIZER_CONFIG).get("chat_template")
    if isinstance(given, list):  # of objects with a name and a template
        named = {each.get("name"): each.get("template") for each in given if isinstance(each, dict)}
        given = named.get("default")
    if not isinstance(given, str):
        raise UserError(
            f"{folder} has no chat template: neither {TEMPLATE} nor chat_template in "
            f"{TOKENIZER_CONFIG} is a text"
        )
    if len(given) > MOST_CHARACTERS:
        raise UserError(f"{folder}: the chat template has more than {MOST_CHARACTERS} characters")
    return given


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
