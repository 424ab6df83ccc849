"""The module that a model's state dict is for: its names, shapes, tied tensors and buffers."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllm.errors import CheckpointArgumentError, MissingPackageError, UserError, listed
from jaxllm.interop.families import FAMILIES, Family, Fields, RuleTable
from jaxllm.interop.families.common.fields import Json
from jaxllm.interop.formats.pytorch.wrapped_names import (
    plain_name,
    strip_wrappers,
    without_prefix,
)
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor
from jaxllm.interop.formats.table import first_shard_prefix
from jaxllm.interop.loading.diagnostics import reason_to_ignore
from jaxllm.interop.loading.model_arrays import ModelArrays
from jaxllm.interop.loading.name_folding import fold
from jaxllm.interop.optimizer_state.parameter_order import build_without_weights
from jaxllm.interop.saving.export import choose_family, possible_families

from .config_check import differing_fields
from .module_config import config_fields, find_config, inner_module, own_config, unwrap_module
from .process_shards import is_sharded
from .state_dict import HeldTensor, describe
from .torch_tensors import why_unreadable

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Target:
    """The module that a model's state dict is loaded into, and the names that it uses.

    Attributes:
        family: the family whose names are used.
        table: its rules for the model, with the names that modules have.
        tied: the tensors that are others under a second name, by names as modules have them.
        prefix: of tensor names in the table that modules do not have.
        module: the module; None if nothing builds it.
        tensors: its tensors by plain names; parameters may be on the meta device.
        is_given: whether the module is the user's and is to be filled.
        problems: fields by which the user's module computes something else than the model.
    """

    family: Family
    table: RuleTable
    tied: Mapping[str, str]
    prefix: str
    module: Any
    tensors: Mapping[str, StoredTensor]
    is_given: bool
    problems: Sequence[str] = ()

    @property
    def buffers(self) -> dict[str, Any]:
        """The tensors of the module that follow from its config or are no numbers of the model."""
        derived = {one.name for one in self.table.derived}
        return {
            name: tensor.data
            for name, tensor in self.tensors.items()
            if isinstance(tensor, HeldTensor)
            and (self.is_given or not tensor.data.is_meta)
            and (self.prefix + name in derived or self.is_outside(name))
        }

    def is_outside(self, name: str) -> bool:
        """Whether a tensor of the module is no part of the model, such as a classifier's head."""
        return reason_to_ignore(self.table, self.prefix + name) is not None

    @property
    def parameters(self) -> list[str]:
        """The plain names of the module's parameters, in the order in which PyTorch numbers them.

        Raises:
            CheckpointError: the module is not known.
        """
        if self.module is None:
            raise CheckpointError(
                f"the order of the parameters of {self.family.name} is unknown: give the module "
                "that the optimizer trains as into="
            )
        return [plain_name(name) for name, _ in self.module.named_parameters()]


def find_target(model: ModelArrays, into: Any, rules: Any, chosen: str | None) -> Target:
    """Finds the module that a state dict of the model is for.

    Args:
        model: the model.
        into: the module to fill; None builds one without weights, if PyTorch and the package that
            defines it are installed.
        rules: rules for a model of one's own.
        chosen: the format whose families may name the tensors; by default the model's own.

    Raises:
        CheckpointError: no family can express the model.
    """
    families = _families(model, into, rules, chosen)
    prefix = first_shard_prefix(families[0].format)
    family, fields, table = choose_family(model, families, 1 if prefix else None)
    module = into if into is not None else _build(family, fields)
    tensors: Mapping[str, StoredTensor] = {}
    problems: Sequence[str] = ()
    if module is not None:
        described = strip_wrappers(describe(module.state_dict(), Path(type(module).__name__)))
        tensors = without_prefix(described, family.trainer_prefix(described))
        named: Any = {prefix + name: tensor for name, tensor in tensors.items()}
        table = family.table(model.config, family.read_config(Fields(fields), named)[1])
        theirs = None if into is None else _own_fields(family, unwrap_module(into))
        problems = [] if theirs is None else differing_fields(family, fields, theirs, named)
    replicas = (pair for bound in table.bound(model.stacks) for pair in bound.replicas())
    pairs = dict(replicas) | table.tied
    tied = {c.removeprefix(prefix): o.removeprefix(prefix) for c, o in pairs.items()}
    return Target(family, table, tied, prefix, module, tensors, into is not None, problems)


def _families(model: ModelArrays, into: Any, rules: Any, chosen: str | None) -> Sequence[Family]:
    origin = model.origin
    own = "" if origin is None else origin.family
    is_users = own and all(own != family.name for family in FAMILIES)
    if into is not None and rules is None and not is_users:
        if own_config(unwrap_module(into)) is None:
            raise UserError(
                f"into={type(into).__name__} has no config{inner_module(into)}: give a module of "
                "transformers or of a source system, or rules="
            )
        return [find_config(unwrap_module(into), None, None)[0]]
    families = possible_families(origin, chosen, None, rules)
    if not families:
        raise CheckpointArgumentError(f"format={chosen!r} has no state dict of PyTorch")
    return families


def _own_fields(family: Family, module: Any) -> Json | None:
    """Returns the fields of the module's own config, or None if its family reads none."""
    given = own_config(module)
    return None if given is None or not family.config_file else config_fields(given)


def _build(family: Family, fields: Mapping[str, Any]) -> Any:
    """Builds the module without weights, or returns None if its package is missing."""
    try:
        return build_without_weights(family, fields)
    except MissingPackageError:
        return None


def check_target(target: Target, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Checks that the module has exactly the model's tensors.

    Logs a warning if a module that would be built from the config has tied tensors that the model
    has not.

    Args:
        target: the module; nothing is checked if it is not known.
        shapes: the shapes of the model's tensors by the names that modules have.

    Raises:
        CheckpointError: names, shapes or configs differ, the module to fill has tied tensors that
            the model has not, or its tensors cannot be filled. Lists every problem.
    """
    if target.module is None:
        return
    expected, tied, buffers = target.tensors, target.tied, target.buffers
    present = {*shapes, *buffers, *(copy for copy in tied if tied[copy] in shapes)}
    place, one_sided = type(target.module).__name__, list(_wrongly_tied(target))
    problems = [
        *target.problems,
        *_folded(
            [name for name in expected if name not in present],
            lambda name: (
                "is in the module, but not part of the model: give the module as into=, where it "
                "stays as it is"
                if target.is_outside(name)
                else "is in the module, but not in the model"
            ),
        ),
        *_folded(
            [name for name in shapes if name not in expected],
            lambda name: "is in the model, but not in the module",
        ),
        *_folded(
            [name for name in shapes if name in expected and expected[name].shape != shapes[name]],
            lambda name: (
                f"has shape {list(expected[name].shape)} in the module, {list(shapes[name])} in "
                "the model"
            ),
        ),
        *(_unwritable(target) if target.is_given else ()),
        *(one_sided if target.is_given else ()),
    ]
    if problems:
        raise CheckpointError(problems, place)
    for problem in one_sided:
        logger.warning("%s as its config builds it: %s: untie it first", place, problem)


def _folded(names: Sequence[str], describe_one: Callable[[str], str]) -> list[str]:
    """Returns one message for each group of names that differ only in indices."""
    said = {name: describe_one(name) for name in names}
    return listed(fold(said), lambda group: f"{group.name} {said[group.members[0]]}")


def _wrongly_tied(target: Target) -> Iterator[str]:
    """Yields tensors that are one in the module, but not in the model."""
    names: dict[int, list[str]] = {}
    for name, part in target.module.named_parameters(remove_duplicate=False):
        names.setdefault(id(part), []).append(plain_name(name))
    for group in names.values():
        originals = {target.tied.get(name, name) for name in group}
        if len(originals) > 1:
            yield f"{' and '.join(group)} are one tensor in the module, but not in the model"


def _unwritable(target: Target) -> list[str]:
    """Returns a message for each tensor of the module that has no memory for numbers."""
    reasons = {}
    for name, tensor in target.tensors.items():
        data: Any = getattr(tensor, "data", None)
        if (why := None if is_sharded(data) else why_unreadable(data)) is not None:
            reasons[name] = why
    return _folded(list(reasons), reasons.__getitem__)
