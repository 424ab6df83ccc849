"""YAML documents of bounded size: aliases can make a few lines stand for billions of values."""

import re
from collections import Counter
from typing import Any

from .json_objects import MAX_DEPTH
from .printable import note_names

MAX_BYTES = 64 << 10  # PyYAML reads less than 100 kB per second
MAX_VALUES = 100_000
# NUL, and halves of characters but for those that stand for bytes of names that are not UTF-8.
_NO_TEXT = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")
MOST_SHOWN = 60  # characters of a text in a message
MAX_PLAIN = 1000  # characters without quotes, which may be a number too long to be shown


class DocumentError(ValueError):
    """A YAML document that is not valid, or too large for a config."""


def parse_yaml(text: str) -> Any:
    """Parses a YAML document of plain values.

    Raises:
        DocumentError: it is not valid, a key occurs twice, it contains itself, it is nested too
            deeply, or it has too many values, each counted as often as aliases repeat it.
    """
    import yaml

    if (size := len(text.encode(errors="surrogatepass"))) > MAX_BYTES:
        raise DocumentError(f"{size} bytes; at most {MAX_BYTES} are read")
    try:
        _check_extent(text)
        _check_keys(yaml.compose(text, yaml.SafeLoader))
        return yaml.safe_load(text)
    except DocumentError:
        raise
    except Exception as error:  # PyYAML raises errors of any class for `!!bool x`, 2020-13-45, ...
        raise DocumentError(f"invalid YAML: {' '.join(str(error).split())}") from None


def _check_extent(text: str) -> None:
    """Raises DocumentError for a document that is too deep or large, before it is built."""
    import yaml

    sizes: dict[str, int] = {}  # of each anchor: its values, with those that aliases repeat
    open_collections: list[tuple[str, int]] = [("", 0)]  # anchor, values so far
    for event in yaml.parse(text, yaml.SafeLoader):
        anchor, count = getattr(event, "anchor", None) or "", 0
        match event:
            case yaml.CollectionStartEvent():
                open_collections.append((anchor, 1))
            case yaml.CollectionEndEvent():
                anchor, count = open_collections.pop()
                sizes[anchor] = count
            case yaml.ScalarEvent():
                count = sizes[anchor] = 1
                _check_scalar(event)
            case yaml.AliasEvent():
                _check_ended(anchor, open_collections)
                count = sizes.get(anchor, 1)
        outer, so_far = open_collections[-1]
        open_collections[-1] = outer, so_far + count
        if so_far + count > MAX_VALUES:
            raise DocumentError(f"more than {MAX_VALUES:,} values, counted as often as repeated")
        if len(open_collections) > MAX_DEPTH:
            raise DocumentError(f"nested more than {MAX_DEPTH} levels deep")


def _check_scalar(scalar: Any) -> None:
    if (found := _NO_TEXT.search(scalar.value)) is not None:
        raise DocumentError(
            f"{found[0]!r} in {scalar.value[:MOST_SHOWN]!r} is not a character of a text"
        )
    note_names([scalar.value])
    if scalar.style is None and len(scalar.value) > MAX_PLAIN:
        raise DocumentError(f"{len(scalar.value)} characters without quotes: quote such a text")


def _check_ended(anchor: str, open_collections: list[tuple[str, int]]) -> None:
    if anchor in (name for name, _ in open_collections):
        raise DocumentError(f"*{anchor} contains itself")


def _check_keys(node: Any) -> None:
    """Raises DocumentError for a duplicate key, which PyYAML would accept."""
    import yaml

    if not isinstance(node, yaml.CollectionNode):
        return
    children = node.value
    if isinstance(node, yaml.MappingNode):
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if repeated := sorted(name for name, count in names.items() if count > 1):
            raise DocumentError(f"{', '.join(map(repr, repeated))} occurs more than once")
        children = [value for _, value in node.value]
    for child in children:
        _check_keys(child)
