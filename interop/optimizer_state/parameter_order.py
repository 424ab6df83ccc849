"""Which parameter a number in an optimizer's state stands for, where no name is stored with it.

PyTorch numbers the parameters in the order in which the groups list them. Within a group, that is
the order of `model.named_parameters()`; which of them a group has, only their shapes can tell.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jaxllm.interop.families import Family
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor
from jaxllm.interop.formats.tensor_files import TORCH_SUFFIXES
from jaxllm.interop.reference.transformers_models import require_torch

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
MOST_WAYS = 1000  # that are followed at a time
GIVE = "give the names, as `for name, _ in model.named_parameters(): print(name)` prints them"


def named_groups(groups: Sequence[Sequence[Shape]], names: Shapes) -> list[list[str]]:
    """The names of each group's parameters, which it has in the order of `names`.

    Raises CheckpointError unless there is exactly one way to deal them out by their shapes.
    """
    start = (0,) * len(groups)
    before: list[dict[tuple[int, ...], list[int]]] = []  # of each state, the groups that led to it
    ways = {start: 1}
    for shape in names.values():
        came: dict[tuple[int, ...], list[int]] = {}
        after: dict[tuple[int, ...], int] = {}
        for taken, count in ways.items():
            for number, group in enumerate(groups):
                if taken[number] < len(group) and group[taken[number]] == shape:
                    state = _step(taken, number, 1)
                    after[state] = after.get(state, 0) + count
                    came.setdefault(state, []).append(number)
        before.append(came)
        ways = after if len(after) <= MOST_WAYS else {}
    end = tuple(map(len, groups))
    if ways.get(end, 0) != 1:
        said = "fit in several ways, or in none"
        raise CheckpointError(
            f"no names are stored, and by their shapes the model's {len(names)} parameters {said} "
            f"into groups of {' and '.join(str(len(group)) for group in groups)}: {GIVE}"
        )
    dealt: list[list[str]] = [[] for _ in groups]
    for name, came in zip(reversed(list(names)), reversed(before), strict=True):
        (number,) = (n for n in came[end])
        dealt[number].insert(0, name)
        end = _step(end, number, -1)
    return dealt


def _step(taken: tuple[int, ...], number: int, by: int) -> tuple[int, ...]:
    return (*taken[:number], taken[number] + by, *taken[number + 1 :])


def read_names(path: Path) -> list[str]:
    """The names in a file, one on each line. Raises CheckpointError for one that occurs twice."""
    names = path.read_text(encoding="utf-8").split()
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CheckpointError(f"{path}: {', '.join(twice)} occurs more than once")
    return names


def find_order(
    family: Family, fields: Mapping[str, Any], stored: Mapping[str, StoredTensor]
) -> list[str]:
    """The names of a checkpoint's tensors, its parameters in the order of the PyTorch model's.

    Files of `torch.save` keep that order. Others do not, so the model is built, without weights, to
    be asked: by the family's reference, or by transformers. Raises CheckpointError where none can
    tell.

    Args:
        family: of the checkpoint.
        fields: of its config file.
        stored: its tensors; none of them, if it is yet to be written.
    """
    if family.reference is not None:
        return _names_of(partial(family.reference, dict(fields)))
    if stored and all(t.path.suffix in TORCH_SUFFIXES for t in stored.values()):
        return list(stored)
    if family.format == "hf":
        return _names_of(partial(_build, fields))
    raise CheckpointError(f"nothing says in which order {family.name} has its parameters: {GIVE}")


def _names_of(build: Callable[[], Any]) -> list[str]:
    torch, _ = require_torch()
    with torch.device("meta"):
        return [name for name, _ in build().named_parameters()]


def _build(fields: Mapping[str, Any]) -> Any:
    """The model of a config file, of the class that it names."""
    _, transformers = require_torch()
    config = transformers.AutoConfig.for_model(**fields)
    architecture = getattr(transformers, (fields.get("architectures") or [""])[0], None)
    if architecture is None:
        return transformers.AutoModelForCausalLM.from_config(config)
    return architecture(config)
