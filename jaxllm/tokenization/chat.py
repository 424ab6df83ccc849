"""Chat templates: a conversation as the text that a chat model was trained on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllm.errors import UserError
from jaxllm.hub import local_path
from jaxllm.untrusted.chat_templates import render_template
from jaxllm.untrusted.regular_files import is_named, read_bytes

from .gguf_companions import companion_folder
from .special_tokens import TOKENIZER_CONFIG, named_texts, read_json

TEMPLATE = "chat_template.jinja"
MOST_CHARACTERS = 1_000_000  # of a template


def render_chat(path: str | Path, messages: Sequence[Mapping[str, str]]) -> str:
    """Applies the chat template of a model to messages; the model's answer comes next.

    Templates run in Jinja's sandbox, in limited time and memory: they can compute texts, and
    nothing else.

    Args:
        path: a folder that has a tokenizer with a chat template, or a GGUF file.
        messages: with a `role`, such as "user", and a `content`.

    Returns:
        A text whose special tokens are meant as such: encode it as trusted, without adding more.

    Raises:
        UserError: there is no template, or it fails.
        MissingPackageError: a package that reads the GGUF file is not installed.
    """
    folder = companion_folder(local_path(path))
    template = _find_template(folder)
    special = {f"{role}_token": text for role, text in named_texts(folder).items()}
    variables = {"messages": [dict(message) for message in messages], **special}
    fixed = {"tools": None, "documents": None, "add_generation_prompt": True}
    try:
        return render_template(template, {**variables, **fixed})
    except UserError as error:
        raise UserError(f"{path}: the chat template fails: {error}") from None


def _find_template(folder: Path) -> str:
    """Returns the template of a folder; of several in its config, the one named default."""
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


def _read_text(file: Path) -> str:
    try:
        return read_bytes(file).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8: {error}") from None
