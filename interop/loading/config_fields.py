"""Finds the field of a config file that gives an axis its size, so that errors can name it."""

from jaxllm.config import make_config
from jaxllm.interop.families import Fields, RuleTable

from .checkpoint_dir import Checkpoint


def find_field(checkpoint: Checkpoint, table: RuleTable, axis: str, size: int) -> str | None:
    """Returns the field of the config file that gives an axis its size: tries each that may.

    Args:
        checkpoint: the checkpoint.
        table: its rules, with the present size of the axis.
        axis: the axis.
        size: the size that the axis should have.
    """
    family, now = checkpoint.family, table.sizes.get(axis)
    for name, value in checkpoint.config.items():
        if type(value) is not int or value != now:
            continue
        changed = Fields({**checkpoint.config, name: size})
        try:
            values, layout = family.read_config(changed, checkpoint.tensors)
            sizes = family.table(make_config(values), layout).sizes
        except (ValueError, ArithmeticError, TypeError):
            continue
        if not changed.problems and sizes.get(axis) == size:
            return name
    return None
