"""Finds the families that the modules of a package define."""

import pkgutil
from collections.abc import Iterator, Sequence
from importlib import import_module
from types import ModuleType

from .common.family import Family


def families_in(package: ModuleType, first: Sequence[str] = ()) -> tuple[Family, ...]:
    """Returns the families that modules anywhere in a package define, alone or in tuples.

    Args:
        package: the package; all of its modules are imported.
        first: names of families that come first, in this order; the others follow by name.

    Raises:
        ValueError: a name in `first` is no family's.
    """
    found = {family.name: family for module in _modules(package) for family in _defined_in(module)}
    if unknown := [name for name in first if name not in found]:
        raise ValueError(f"no family of {package.__name__} is named {', '.join(unknown)}")
    return tuple(found[name] for name in dict.fromkeys((*first, *sorted(found))))


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    for entry in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        yield import_module(entry.name)


def _defined_in(module: ModuleType) -> Iterator[Family]:
    for value in vars(module).values():
        several = value if isinstance(value, tuple) else (value,)
        yield from (one for one in several if isinstance(one, Family))
