"""The model's part of a folder that `torch.distributed.checkpoint` (DCP) wrote."""

from collections.abc import Mapping
from pathlib import Path

from jaxllm.interop.formats.pytorch import dcp
from jaxllm.interop.formats.sharded_tensor import ShardedTensor

METADATA = dcp.METADATA
# Prefixes of names that are not the model's; the model may have a prefix of its own.
NOT_THE_MODEL = (
    *("optimizer.", "optim.", "lr_scheduler.", "train_state.", "dataloader."),
    *("state.", "param_groups."),
)


def weights(contents: dcp.Contents) -> dict[str, ShardedTensor]:
    """Returns the tensors that belong to the model, not to its training."""
    return {
        name: tensor
        for name, tensor in contents.tensors.items()
        if not name.startswith(NOT_THE_MODEL)
    }


def read_weights(folder: Path) -> Mapping[str, ShardedTensor]:
    """Locates the model's tensors, by name; none is read.

    Raises:
        CheckpointError: see `dcp.read`.
    """
    return weights(dcp.read(folder))
