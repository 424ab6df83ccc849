"""Writes the adapter of a run with LoRA as a folder of PEFT, with the tokenizer of the run."""

from functools import partial
from pathlib import Path

from jaxllm.checkpoint_origin import copy_files
from jaxllm.hub import local_path
from jaxllm.interop.formats import orbax

from .merging import describe_run, open_adapter
from .peft_writing import write_adapter


def run_to_peft(run: str | Path, path: str | Path, step: int | None = None) -> None:
    """Writes the adapter of a run as a folder that `peft` loads.

    Args:
        run: the run.
        path: a folder that does not exist yet, or is empty.
        step: the step; by default the newest.

    Raises:
        CheckpointError: the run has no adapter or no such step, or the folder is not empty.
    """
    place = local_path(run).resolve()
    model = describe_run(place, step)
    origin = orbax.own_origin(orbax.find_step(place, step), model.origin)
    write_adapter(open_adapter(place, model, step), model, path, [partial(copy_files, origin)])
