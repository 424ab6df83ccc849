"""Opens checkpoints of known families, and of models that a user's rules describe."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxllm.config import Config, make_config
from jaxllm.errors import MissingCheckpointError
from jaxllm.interop.families import Family
from jaxllm.interop.families.common.fields import Json
from jaxllm.interop.families.gguf.translate import is_gguf
from jaxllm.interop.formats.pytorch.wrapped_names import strip_wrappers
from jaxllm.interop.formats.quantized.codecs import decode_tensors, take_settings
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.formats.tensor_files import read_only_file

from .allowances import apply_allowances
from .checkpoint_dir import (
    HF,
    Checkpoint,
    check_is_folder,
    open_known_checkpoint,
    read_family,
    read_json,
    with_facts_beside,
)
from .user_family import resolve_family

logger = logging.getLogger(__name__)


def open_checkpoint(
    path: Path, rules: Any = None, *, strict: bool = True, allow: Sequence[str] = ()
) -> Checkpoint:
    """Reads the headers of a checkpoint of a known family, or of one that `rules` describe.

    Arguments and errors are those of `load_pretrained`. What is allowed is logged.

    Raises:
        CheckpointError: the path is not a checkpoint, or is damaged.
    """
    if rules is None:
        found = open_known_checkpoint(path)
    else:
        family, fields = identify_family(path, rules)
        folder = path if path.is_dir() else path.parent
        found = Checkpoint(folder, family, fields, strip_wrappers(read_only_file(path)))
    return with_allowances(found, strict=strict, allow=allow)


def with_allowances(
    checkpoint: Checkpoint, *, strict: bool = True, allow: Sequence[str] = ()
) -> Checkpoint:
    """Returns a checkpoint whose config is read as the user allows, and logs what differs.

    Its tensors in quantized storage, which the config describes, are decoded when they are read.
    """
    config, allowed = apply_allowances(checkpoint.config, allow)
    for line in allowed:
        logger.warning("%s: %s", checkpoint.config_path, line)
    found = dataclasses.replace(checkpoint, config=config, strict=strict, allowed=allowed)
    return _decoded(found) if found.family.format == HF else found


def _decoded(checkpoint: Checkpoint) -> Checkpoint:
    """Returns a checkpoint whose tensors in quantized storage are decoded when they are read."""
    config, settings = take_settings(checkpoint.config)
    if settings is None:
        return checkpoint
    try:
        tensors, problems = decode_tensors(checkpoint.tensors, config, settings), ()
    except CheckpointError as error:
        tensors, problems = checkpoint.tensors, error.problems
    return dataclasses.replace(checkpoint, config=config, tensors=tensors, problems=problems)


def identify_family(path: Path, rules: Any = None) -> tuple[Family, Json]:
    """Returns the family of a checkpoint and the fields of its config file, without its tensors.

    Raises:
        CheckpointError: the checkpoint is not of a known family, or lacks the rules' config file.
    """
    if rules is None:
        if not is_gguf(path):
            check_is_folder(path)
        return read_family(path)
    family = resolve_family(rules)
    if not path.exists():
        raise MissingCheckpointError(f"{path} does not exist")
    folder = path if path.is_dir() else path.parent
    config = folder / family.config_file
    if family.config_file and not config.is_file():
        raise CheckpointError(f"{family.name} reads {family.config_file}, which is not in {folder}")
    return family, read_json(config) if family.config_file else {}


def read_model_config(path: Path) -> Config:
    """Returns the config of the model in a folder, of which only its config file is read.

    Raises:
        CheckpointError: the folder has no config of a known family, or one that is not understood.
            Lists every problem.
    """
    family, found = identify_family(path)
    fields = family.fields(with_facts_beside(family, take_settings(found)[0], path))
    try:
        values, _ = family.read_config(fields, {})
        config = make_config(values)
    except (ValueError, ArithmeticError) as error:
        raise CheckpointError([*fields.problems, *str(error).splitlines()], path) from None
    if problems := fields.finish():
        raise CheckpointError(problems, path)
    return config
