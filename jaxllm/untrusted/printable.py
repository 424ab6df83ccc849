"""Text from files as it may be shown: names can hold escape codes that repaint a terminal."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

# Control characters but for tabs and line breaks, directions of writing, and halves of characters,
# which no encoding can write.
_UNSHOWABLE = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Returns the text with escapes such as `\x1b` in place of what would act or not be shown."""
    return _UNSHOWABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def literal(text: str) -> "Text":
    """Returns a text for rich tables, of which nothing is taken for markup or an escape code."""
    from rich.text import Text

    return Text(printable(text))
