"""Families that users define: a Python file, or any object, with the rules of their own model.

    config_file = "config.json"                  # beside the weights; what `config` is given

    def config(fields):                          # or a DecoderConfig, which needs no file
        return DecoderConfig(embed_dim=fields.take("width", int), ...)

    def rules(config):                           # or a list
        return [Rule("tok.weight : V D", "embed.embedding : V D"), ...]

It may also define `sizes` of its own axes, `tied`, `ignored` and `derived` tensors, as families
have them, and `fields`, the way back from a config to the file: each a value or a function of the
config. Parity runs the PyTorch model that `reference` makes of fields, by its `arguments` and
with those `masks` that it takes.

Such a file is code. It runs because the user named it, and for no other reason: never because it
lies in a checkpoint, and never because a checkpoint names it.
"""

import dataclasses
import runpy
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from jaxllm.config import Config, DecoderConfig, NumericsConfig, StackConfig, flatten, with_fields
from jaxllm.errors import UserError
from jaxllm.interop.families import Derived, Family, Fields, Layout, Table
from jaxllm.interop.families.common.family import Json, decoder_sizes, in_order
from jaxllm.interop.formats import safetensors_file
from jaxllm.interop.formats.pytorch.wrapped_names import strip_wrappers
from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor
from jaxllm.interop.formats.tensor_files import FILE_TYPES, read_only_file
from jaxllm.interop.rules.rule import Rule

from . import checkpoint_dir
from .checkpoint_dir import Checkpoint, read_json

Stored = Mapping[str, StoredTensor]

FORMAT = "rules"  # of the table of formats
REQUIRED = ("config", "rules")
MASKS = ("source_mask", "target_mask")
HOME = safetensors_file.SINGLE_NAME  # of tensors that came in several files
DTYPES = ("numerics.param_dtype", "numerics.dtype")  # of a config, which are those of the tensors
# What makes two configs that compute the same thing the same.
ANY_RUN = {"numerics": NumericsConfig(), "scan_layers": True, "remat": "none"}


@dataclasses.dataclass(frozen=True)
class UserFamily(Family):
    """A family that is a user's."""

    def check_class(self, config: Config) -> None:
        """Any will do: `write_config` says what the file cannot."""


# By name, the families that this process was given and what defines them; None if several do.
GIVEN: dict[str, tuple[Any, UserFamily | None]] = {}


def resolve_family(rules: Any) -> UserFamily:
    """The family that a Python file, a module or any object with the same attributes defines.

    Raises CheckpointError for what is none, with all that it lacks.
    """
    if isinstance(rules, str | Path):
        path = Path(rules).resolve()
        if not path.is_file():
            raise CheckpointError(f"rules={str(rules)!r} is not a file")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path} is not UTF-8 text: {error}") from None
        source, family = path, _run(path, text)
    else:
        source, name = rules, Path(getattr(rules, "__file__", None) or "rules").name
        family = _define(name, lambda attribute, default: getattr(rules, attribute, default))
    before, _ = GIVEN.get(family.name, (source, None))
    GIVEN[family.name] = source, family if before == source else None
    return family


def known_family(name: str) -> UserFamily:
    """The family of this name that was given before.

    Raises CheckpointError if none was: its rules must be named by whoever runs them.
    """
    _, family = GIVEN.get(name, (None, None))
    if family is None:
        what = "of which there are several" if name in GIVEN else "which were not given"
        raise CheckpointError(f"the model came by the rules of {name}, {what}: give rules=")
    return family


def open_checkpoint(path: Path, rules: Any = None) -> Checkpoint:
    """Reads the headers of a folder of a known family, or of a file or folder of the user's.

    Raises CheckpointError for what is not a checkpoint.
    """
    if rules is None:
        return checkpoint_dir.open_checkpoint(path)
    family, fields = identify_family(path, rules)
    folder = path if path.is_dir() else path.parent
    return Checkpoint(folder, family, fields, strip_wrappers(read_only_file(path)))


def identify_family(path: Path, rules: Any = None) -> tuple[Family, Json]:
    """The family of a checkpoint, and the fields of its config file; no tensor is looked for.

    Raises CheckpointError for what is not of a known family, nor of the user's.
    """
    if rules is None:
        checkpoint_dir.check_is_folder(path)
        return checkpoint_dir.read_family(path)
    family = resolve_family(rules)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    folder = path if path.is_dir() else path.parent
    config = folder / family.config_file
    if family.config_file and not config.is_file():
        raise CheckpointError(f"{family.name} reads {family.config_file}, which is not in {folder}")
    return family, read_json(config) if family.config_file else {}


@lru_cache
def _run(path: Path, text: str) -> UserFamily:
    """The family of a file with this text, which finds modules beside it, as a script does.

    Raises UserError with whatever the file raises.
    """
    with _importing_from(path.parent):
        try:
            attributes = runpy.run_path(str(path), run_name=path.stem)
        except Exception as error:  # the file is a program of the user's
            lines = [at.lineno for at in traceback.extract_tb(error.__traceback__)]
            raise UserError(f"{path}, line {lines[-1]}: {type(error).__name__}: {error}") from error
    build: Any = attributes.get("reference")

    def reference(fields: Json) -> Any:
        with _importing_from(path.parent):
            return build(fields)

    if build is not None:
        attributes["reference"] = reference
    return _define(path.name, attributes.get)


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _define(name: str, get: Callable[[str, Any], Any]) -> UserFamily:
    if missing := [attribute for attribute in REQUIRED if get(attribute, None) is None]:
        raise CheckpointError(f"{name} does not define {' and '.join(missing)}")
    own = _Definition(name, get)
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
        masks=_known_masks(name, get("masks", ())),
    )


def _known_masks(name: str, masks: Collection[str]) -> tuple[str, ...]:
    if unknown := sorted({*masks} - {*MASKS}):
        raise CheckpointError(f"{name}: masks={unknown} are not of {', '.join(MASKS)}")
    return tuple(masks)


@dataclasses.dataclass(frozen=True)
class _Definition:
    """What a user's file defines, as the functions of a family."""

    name: str
    get: Callable[[str, Any], Any]  # by name, or a default

    def evaluate(self, attribute: str, config: Config, default: Any) -> Any:
        """What the file says of a config: a value, or a function's."""
        defined = self.get(attribute, default)
        return defined(config) if callable(defined) else defined

    def config(self, fields: Fields) -> Config:
        """The config of the fields. Raises UserError for whatever the file raises."""
        defined = self.get("config", None)
        try:
            config = defined(fields) if callable(defined) else defined
        except Exception as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise UserError(f"{kind}{error}") from error
        if not isinstance(config, Config):
            raise UserError(f"{self.name}: config is a {type(config).__name__}, no DecoderConfig")
        return config

    def read_config(self, fields: Fields, stored: Stored) -> tuple[Json, Layout]:
        """The fields of the config, and the name of the file."""
        paths = [tensor.path for tensor in stored.values() if tensor is not None]
        files = {path.name for path in paths if path.suffix in FILE_TYPES}
        file = files.pop() if len(files) == 1 else HOME
        return _values(self.config(fields)), Layout(file=file, names=tuple(stored))

    def write_config(self, config: Config, base: Json) -> Json:
        """The fields that the model came with, or that `fields` makes, if they say what it is."""
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
            raise ValueError(f"its fields cannot say {'; '.join(unsupported)}")
        return fields.data

    def table(self, config: Config, layout: Layout) -> Table:
        """The rules, and the sizes of their axes: one with labels has as many positions."""
        rules = tuple(self.evaluate("rules", config, ()))
        if wrong := [rule for rule in rules if not isinstance(rule, Rule)]:
            raise ValueError(f"{self.name}: {wrong[0]!r} is not a Rule")
        labels = [side.labels for rule in rules for side in (rule.stored, rule.model)]
        counted = {axis: len(of) for some in labels for axis, of in some.items() if " " not in axis}
        decoder = getattr(config, "decoder", config)
        legend = decoder_sizes(decoder) if isinstance(decoder, DecoderConfig) else {}
        derived, tied = self.evaluate("derived", config, {}), self.evaluate("tied", config, {})
        return Table(
            rules,
            {**counted, **legend, **self.evaluate("sizes", config, {})},
            tied=tied,
            derived=tuple(Derived(name, compute) for name, compute in derived.items()),
            ignored=self.evaluate("ignored", config, {}),
            copies=[copy for copy in tied if not layout.names or copy in layout.names],
            file=Path(layout.file or HOME).name,
        )


def _values(config: Config | StackConfig) -> Json:
    """The fields of a config, and of its stacks, by dotted names and without their dtypes."""
    if isinstance(config, StackConfig):
        return {name: value for name, value in flatten(config).items() if name not in DTYPES}
    return {
        name: _values(value) if isinstance(value, StackConfig) else value
        for name, value in vars(config).items()
    }
