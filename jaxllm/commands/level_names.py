"""Names of parity levels in help texts."""


class LevelNames:
    """The parity levels as text, imported when the help is printed: that takes seconds."""

    def __init__(self, *, by_default: bool = False):
        self.by_default = by_default  # whether only those that are compared unasked

    def __str__(self) -> str:
        from jaxllm.interop.parity.levels.table import LEVELS

        known = LEVELS.values()
        return ", ".join(level.name for level in known if level.by_default or not self.by_default)
