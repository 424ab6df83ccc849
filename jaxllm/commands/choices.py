"""Choices that options offer, looked up only when they are needed: importing them takes seconds."""

from collections.abc import Iterator


class LevelNames:
    """The names of the parity levels as text, for help."""

    def __init__(self, *, by_default: bool = False):
        self.by_default = by_default  # whether to name only those compared by default

    def __str__(self) -> str:
        from jaxllm.interop.parity.levels.table import LEVELS

        known = LEVELS.values()
        return ", ".join(level.name for level in known if level.by_default or not self.by_default)


class FormatNames:
    """The names of the checkpoint formats that can be written."""

    def __iter__(self) -> Iterator[str]:
        from jaxllm.interop.formats.table import writable_formats

        return iter(writable_formats())
