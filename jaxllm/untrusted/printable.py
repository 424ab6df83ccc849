"""Text from files as it may be shown: names can hold escape codes that repaint a terminal."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from jaxllm.errors import on_one_line

if TYPE_CHECKING:
    from rich.text import Text

# Control characters but for tabs and line breaks, directions of writing, and halves of characters,
# which no encoding can write.
_UNSHOWABLE = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

_broken: set[str] = set()  # parts of names that have line breaks


def printable(text: str) -> str:
    r"""Returns the text with escapes such as `\x1b` in place of what would act or not be shown."""
    return _UNSHOWABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def note_names(names: Iterable[str]) -> None:
    """Keeps names that have line breaks, such as those of paths, for `shown`."""
    parts = {part for name in names for part in re.split("[/=]", name)}
    _broken.update(part for part in parts if "\n" in part and part.strip())


def shown(text: str) -> str:
    """Returns a message as it may be shown, in which a line break in a noted name ends no line."""
    if "\n" in text:
        for part in sorted(_broken, key=len, reverse=True):
            text = text.replace(part, on_one_line(part))
    return printable(text)


def literal(text: str) -> "Text":
    """Returns a text for rich tables, of which nothing is taken for markup or an escape code."""
    from rich.text import Text

    return Text(printable(text))
