"""Lazily evaluated choices of options: the modules that define them take seconds to import."""

from collections.abc import Iterator


class LevelNames:
    """Names of the parity levels."""

    def __init__(self, *, by_default: bool = False):
        self.by_default = by_default  # whether to name only those compared by default

    def __iter__(self) -> Iterator[str]:
        from jaxllm.interop.parity.levels.table import LEVELS

        known = LEVELS.values()
        return (level.name for level in known if level.by_default or not self.by_default)

    def __str__(self) -> str:
        return ", ".join(self)


class FormatNames:
    """Names of the checkpoint formats that can be written, and of others that a command has."""

    def __init__(self, *others: str):
        self.others = others

    def __iter__(self) -> Iterator[str]:
        from jaxllm.interop.formats.table import writable_formats

        return iter([*writable_formats(), *self.others])
