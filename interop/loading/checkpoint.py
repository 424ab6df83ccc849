"""Opens checkpoints of known families, and of models that a user's rules describe."""

from pathlib import Path
from typing import Any

from jaxllm.errors import MissingCheckpointError
from jaxllm.interop.families import Family
from jaxllm.interop.families.common.fields import Json
from jaxllm.interop.formats.pytorch.wrapped_names import strip_wrappers
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.formats.tensor_files import read_only_file

from .checkpoint_dir import (
    Checkpoint,
    check_is_folder,
    open_known_checkpoint,
    read_family,
    read_json,
)
from .user_family import resolve_family


def open_checkpoint(path: Path, rules: Any = None) -> Checkpoint:
    """Reads the headers of a checkpoint of a known family, or of one that `rules` describe.

    Raises:
        CheckpointError: the path is not a checkpoint, or is damaged.
    """
    if rules is None:
        return open_known_checkpoint(path)
    family, fields = identify_family(path, rules)
    folder = path if path.is_dir() else path.parent
    return Checkpoint(folder, family, fields, strip_wrappers(read_only_file(path)))


def identify_family(path: Path, rules: Any = None) -> tuple[Family, Json]:
    """Returns the family of a checkpoint and the fields of its config file, without its tensors.

    Raises:
        CheckpointError: the checkpoint is not of a known family, or lacks the rules' config file.
    """
    if rules is None:
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
