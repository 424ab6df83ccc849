"""Families defined by users: a Python file, or any object, with rules for a model of their own.

    config_file = "config.json"                  # beside the weights; `config` gets its fields

    def config(fields):                          # or a DecoderConfig, which needs no file
        return DecoderConfig(embed_dim=fields.take("width", int), ...)

    def rules(config):                           # or a list
        return [Rule("tok.weight : V D", "embed.embedding : V D"), ...]

The file may also define `sizes` of its own axes, `tied`, `ignored` and `derived` tensors, as in
built-in families, and `fields`, which maps a config back to the fields of the config file. Each is
a value or a function of the config. Parity runs the PyTorch model that `reference` builds from the
fields; `arguments` maps the inputs to the model's arguments, and `masks` lists the masks that it
takes.

Such a file is code. It runs only because the user named it: never because it lies in a checkpoint,
and never because a checkpoint names it.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxllm.config import Config, DecoderConfig, NumericsConfig, StackConfig, flatten, with_fields
from jaxllm.interop.families import Derived, Family, Fields, Layout, RuleTable
from jaxllm.interop.families.common.decoder_axes import decoder_sizes
from jaxllm.interop.families.common.family import in_order
from jaxllm.interop.families.common.fields import Json
from jaxllm.interop.formats import safetensors_file
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor
from jaxllm.interop.formats.tensor_files import is_writable
from jaxllm.interop.rules.rule import Rule
from jaxllm.interop.rules.rules_file import RulesError, RulesSource, naming_faults, read_rules

Stored = Mapping[str, StoredTensor]

FORMAT = "rules"  # its name in the table of formats
REQUIRED = ("config", "rules")
MASKS = ("source_mask", "target_mask")
HOME = safetensors_file.SINGLE_NAME  # the file to write if the tensors came in several files
DTYPES = ("numerics.param_dtype", "numerics.dtype")  # config fields that follow from the tensors
# Fixes the fields that do not change what a model computes, so that configs can be compared.
ANY_RUN = {
    "numerics": NumericsConfig(),
    "scan_layers": True,
    "remat": "none",
    "attention.kernel": "auto",
    "norms.sequence_parallel": False,
}


@dataclasses.dataclass(frozen=True)
class UserFamily(Family):
    """A family defined by a user's rules."""

    @property
    def defined_in(self) -> str:
        """The rules: their `config` decides what to do with the fields of the config file."""
        return self.name

    def check_class(self, config: Config) -> None:
        """Accepts any class of config: `write_config` rejects what the file cannot express."""


# The source of each family given to this process, by name, and the family; None if there are
# several of that name.
GIVEN: dict[str, tuple[Any, UserFamily | None]] = {}


def resolve_family(rules: Any) -> UserFamily:
    """Returns the family that rules define, and remembers it by name.

    Args:
        rules: the path of a Python file, which is run, or a module or object with the same
            attributes.

    Raises:
        CheckpointError: the file does not exist, or required attributes are missing.
        RulesError: the file raises an exception.
    """
    source = read_rules(rules)
    family = _define(source)
    before, _ = GIVEN.get(family.name, (source.given, None))
    GIVEN[family.name] = source.given, family if before == source.given else None
    return family


def known_family(name: str) -> UserFamily:
    """Returns the user's family of this name that this process was given before.

    Raises:
        CheckpointError: none was given, or several. A checkpoint's name for its rules is never
            enough to run them: the user must name the file.
    """
    _, family = GIVEN.get(name, (None, None))
    if family is None:
        why = "a name that several files have" if name in GIVEN else "which were not given"
        raise CheckpointError(
            f"the model was loaded by the rules of {name}, {why}: give rules (--rules)"
        )
    return family


def _define(source: RulesSource) -> UserFamily:
    name, get = source.name, source.get
    if missing := [attribute for attribute in REQUIRED if get(attribute, None) is None]:
        raise CheckpointError(f"{name} does not define {' and '.join(missing)}")
    own = _Definition(name, source.file, get)
    has_file = callable(get("config", None))
    return UserFamily(
        name=name,
        format=FORMAT,
        config_file=get("config_file", "config.json") if has_file else "",
        model_type=None,
        read_config=own.read_config,
        write_config=own.write_config,
        table=own.table,
        reference=get("reference", None),
        arguments=get("arguments", in_order),
        masks=known_masks(name, get("masks", ())),
    )


def known_masks(name: str, masks: Collection[str]) -> tuple[str, ...]:
    """Returns the masks that rules say a PyTorch model takes.

    Args:
        name: what messages call the rules.
        masks: some of `MASKS`.

    Raises:
        CheckpointError: there are others among them.
    """
    if unknown := sorted({*masks} - {*MASKS}):
        raise CheckpointError(
            f"{name}: masks={unknown} are unknown, allowed are {', '.join(MASKS)}"
        )
    return tuple(masks)


@dataclasses.dataclass(frozen=True)
class _Definition:
    """The attributes of a user's file, as the functions of a family."""

    name: str
    file: str
    get: Callable[[str, Any], Any]  # takes an attribute's name and a default

    def evaluate(self, attribute: str, given: Config | Fields, default: Any) -> Any:
        """Returns an attribute: its value or, if it is a function, the result for `given`.

        Raises:
            RulesError: the function raises an exception.
        """
        defined = self.get(attribute, default)
        with naming_faults(self.name, self.file):
            found = defined(given) if callable(defined) else defined
            return list(found) if isinstance(found, Iterator) else found

    def config(self, fields: Fields) -> Config:
        """Returns the config of the fields. Raises RulesError if the user's function fails."""
        config = self.evaluate("config", fields, None)
        if not isinstance(config, Config):
            raise RulesError(
                f"{self.name}: config is a {type(config).__name__}, not a model config"
            )
        return config

    def read_config(self, fields: Fields, stored: Stored) -> tuple[Json, Layout]:
        """Returns the fields of the config, and the layout: the file and its tensors' names."""
        paths = [tensor.path for tensor in stored.values() if tensor is not None]
        files = {path.name for path in paths if is_writable(path)}
        file = files.pop() if len(files) == 1 else HOME
        return _values(self.config(fields)), Layout(file=file, names=tuple(stored))

    def write_config(self, config: Config, base: Json) -> Json:
        """Returns fields for the config file: those of the origin, updated by `fields`.

        Raises:
            ValueError: the fields do not give back the config.
        """
        fields = Fields({**base, **self.evaluate("fields", config, {})})
        try:
            read = with_fields(self.config(fields), ANY_RUN)
        except ValueError as error:
            fields.problems += [str(error)] if fields.is_complete else []
        if fields.problems:
            raise ValueError("; ".join(fields.problems))
        ours, theirs = _values(with_fields(config, ANY_RUN)), _values(read)
        if wrong := [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]:
            unsupported = (f"{name}={ours.get(name)!r}" for name in wrong)
            raise ValueError(f"its fields cannot express {'; '.join(unsupported)}")
        return fields.data

    def table(self, config: Config, layout: Layout) -> RuleTable:
        """Returns the rules with the sizes of their axes; a labelled axis is as long as its labels.

        Raises:
            RulesError: an element of `rules` is not a Rule, or a function raises an exception.
        """
        rules = tuple(self.evaluate("rules", config, ()))
        if wrong := [rule for rule in rules if not isinstance(rule, Rule)]:
            raise RulesError(f"{self.name}: {wrong[0]!r} is not a Rule")
        labels = [side.labels for rule in rules for side in (rule.stored, rule.model)]
        counted = {axis: len(of) for some in labels for axis, of in some.items() if " " not in axis}
        decoder = getattr(config, "decoder", config)
        legend = decoder_sizes(decoder) if isinstance(decoder, DecoderConfig) else {}
        derived, tied = self.evaluate("derived", config, {}), self.evaluate("tied", config, {})
        return RuleTable(
            rules,
            {**counted, **legend, **self.evaluate("sizes", config, {})},
            tied=tied,
            derived=tuple(Derived(name, compute) for name, compute in derived.items()),
            ignored=self.evaluate("ignored", config, {}),
            copies=[copy for copy in tied if not layout.names or copy in layout.names],
            file=Path(layout.file or HOME).name,
        )


def _values(config: Config | StackConfig) -> Json:
    """Returns the fields of a config and of its stacks, by dotted names, without the dtypes."""
    if isinstance(config, StackConfig):
        return {name: value for name, value in flatten(config).items() if name not in DTYPES}
    return {
        name: _values(value) if isinstance(value, StackConfig) else value
        for name, value in vars(config).items()
    }
