"""Chat templates: finds the one of a model, or a named one."""

from pathlib import Path
from typing import Any

from jaxllm.errors import UserError, did_you_mean
from jaxllm.untrusted.regular_files import is_named, read_bytes

from .special_tokens import TOKENIZER_CONFIG, named_texts, read_json

TEMPLATE = "chat_template.jinja"
MOST_CHARACTERS = 1_000_000  # of a template
NAMED = Path(__file__).with_name("templates")  # templates by name, which mark what a model writes


def find_template(folder: Path) -> str:
    """Returns the template of a folder; of several in its config, the one named default.

    Raises UserError if there is none.
    """
    file = folder / TEMPLATE
    if is_named(file):
        given: Any = _read_text(file)
    else:
        given = read_json(folder / TOKENIZER_CONFIG).get("chat_template")
    if isinstance(given, list):  # of objects with a name and a template
        named = [each for each in given if isinstance(each, dict) and each.get("name") == "default"]
        given = named[-1].get("template") if named else None
    if not isinstance(given, str):
        raise UserError(
            f"{folder} has no chat template: neither {TEMPLATE} nor chat_template in "
            f"{TOKENIZER_CONFIG} is a text"
        )
    if len(given) > MOST_CHARACTERS:
        raise UserError(f"{folder}: the chat template has more than {MOST_CHARACTERS} characters")
    return given


def named_template(name: str) -> str:
    """Returns the template in a file ending in .jinja, or one of those that jaxllm has.

    Raises UserError if there is no such file or name.
    """
    if name.endswith(".jinja"):
        file = Path(name)
        if not is_named(file):
            raise UserError(f"the chat template {file} does not exist")
        return _read_text(file)
    known = sorted(file.stem for file in NAMED.glob("*.jinja"))
    if name not in known:
        raise UserError(
            f"{name!r} is no chat template: give a file ending in .jinja, or one of "
            f"{', '.join(known)}{did_you_mean(name, known)}"
        )
    return (NAMED / f"{name}.jinja").read_text()


def template_variables(folder: Path) -> dict[str, str]:
    """Returns the special tokens of a folder as templates name them, such as `eos_token`."""
    return {f"{role}_token": text for role, text in named_texts(folder).items()}


def _read_text(file: Path) -> str:
    try:
        return read_bytes(file).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8: {error}") from None
